"""What all families use: a tiny but complete run, started as a program, and what is read from it.

The digest of a run is taken from its last checkpoint through Orbax alone, so that the code under
test does not vouch for itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "train_mnist.py"
TINY = {
    "data.name": "digits",
    "data.augment": "flip",
    "batch-size": 8,
    "network.channels": 8,
    "network.channel-multipliers": 1,
    "network.num-res-blocks": 1,
    # The middle of the network has attention all the same.
    "network.attention-resolutions": (),
    "network.num-groups": 4,
    "network.dropout": 0.1,
    "diffusion.num-timesteps": 20,
    "diffusion.beta-end": 0.4,
    "optimizer.warmup-steps": 5,
    "report.log-every": 1,
    "report.heldout-every": 12,
    "report.heldout-draws": 64,
    "report.sample-every": 20,
    "report.sample-count": 4,
    "report.sample-steps": 20,
    "report.checkpoint-every": 4,
    "report.final-count": 9,
    "devices.watchdog-seconds": 300,
}
"""Everything a run has, in little: dropout, mirroring, attention, held-out loss, sheets of samples,
a checkpoint every four steps. A save costs half a second all the same: Orbax takes a millisecond an
array, and there are hundreds, however small."""
SHORT_STEPS = 24
"""Steps of the runs of --short."""
PATIENCE = 300.0
"""Seconds after which a program that should have ended is given up."""


@dataclasses.dataclass
class Report:
    """What a campaign found.

    Attributes:
        counts: what was tried and what came of it, in the order to be printed.
        problems: every broken promise, in words; none is a pass.
    """

    counts: dict[str, Any] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, amount: float = 1) -> None:
        """Counts something."""
        self.counts[name] = self.counts.get(name, 0) + amount

    def add_part(self, whole: str, part: str) -> None:
        """Counts a part of another count, in a row right after it and its earlier parts."""
        if f"… {part}" not in self.counts:
            names = list(self.counts)
            place = names.index(whole) + 1
            while names[place : place + 1] and names[place].startswith("… "):
                place += 1
            names.insert(place, f"… {part}")
            self.counts = {name: self.counts.get(name, 0) for name in names}
        self.add(f"… {part}")

    def expect(self, holds: Any, problem: str) -> bool:
        """Notes a problem unless something holds."""
        if not holds:
            self.problems.append(problem)
            print(f"    broken promise: {problem}", flush=True)
        return bool(holds)


@dataclasses.dataclass(frozen=True)
class Ended:
    """A program that has ended: its exit code, what it printed, and how long it ran."""

    code: int
    output: str
    seconds: float


class Program:
    """A program that is running; what it prints goes to a file."""

    def __init__(self, command: list[str], output: Path, env: Mapping[str, str]):
        output.parent.mkdir(parents=True, exist_ok=True)
        self.path = output
        self.begin = output.stat().st_size if output.exists() else 0
        self.began = time.monotonic()
        with output.open("ab") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=dict(env), cwd=ROOT
            )
        self.pid = self.process.pid

    def output(self) -> str:
        """What it has printed so far."""
        return self.path.read_bytes()[self.begin :].decode(errors="replace")

    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def catches(self, number: signal.Signals) -> bool:
        """Whether it has a handler for this signal (from /proc)."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False
        (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(mask, 16) >> (number - 1) & 1)

    def until(self, happened: Callable[[], Any], seconds: float = PATIENCE, nap=0.01) -> bool:
        """Waits until something happened: False where the program ended first.

        Raises TimeoutError when neither comes.
        """
        deadline = time.monotonic() + seconds
        while not happened():
            if not self.running():
                return bool(happened())
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"nothing happened for {seconds} s:\n{self.output()[-3000:]}")
            time.sleep(nap)
        return True

    def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        self.process.kill()
        self.process.wait()

    def end(self, seconds: float = PATIENCE) -> Ended:
        """Waits for the end; TimeoutError, after a SIGKILL, when it does not come."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"no end after {seconds} s:\n{self.output()[-3000:]}") from None
        return Ended(code, self.output(), time.monotonic() - self.began)


class Bench:
    """Where campaigns run: a scratch folder, a seed, and the tiny run.

    Args:
        work: the scratch folder of one family, in one that all share.
        short: whether the form for continuous integration is wanted.
        seed: of every random moment and bit.
    """

    references: ClassVar[dict[Any, Path]] = {}
    lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, work: Path, short: bool, seed: int):
        self.work, self.short = work, short
        self.shared = work.parent
        self.random = random.Random(seed)

    def env(self, **more: str) -> dict[str, str]:
        """The environment of the programs: they share what they have compiled."""
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        return {
            **kept,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(self.shared / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "DDPM_JAX_CACHE": str(self.shared / "cache"),
            **more,
        }

    def start(
        self,
        folder: Path,
        num_steps: int,
        fault: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        output: Path | None = None,
        **options: Any,
    ) -> Program:
        """Starts the tiny run in a folder; options are config fields with __ for a dot."""
        named = {name.replace("__", ".").replace("_", "-"): v for name, v in options.items()}
        flags = {"run-dir": folder, "num-steps": num_steps, **TINY, **named}
        output = output or self.work / f"{folder.name}.out"
        return self.script(SCRIPT, flags, output, fault, env)

    def script(
        self,
        name: str,
        flags: Mapping[str, Any],
        output: Path,
        fault: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Program:
        """Starts a script of experiments/, with a fault built in where one is given."""
        words = name.split()
        script = str(ROOT / "experiments" / words[0])
        if fault is None:
            command = [sys.executable, script]
        else:
            command = [sys.executable, "-m", "tests.faults.driver", json.dumps(fault), script]
        arguments = []
        for option, value in flags.items():
            if isinstance(value, tuple):
                arguments += [f"--{option}", *map(str, value)]
            else:
                arguments.append(f"--{option}" if value is None else f"--{option}={value}")
        return Program([*command, *words[1:], *arguments], output, self.env(**(env or {})))

    def reference(self, num_steps: int, **options: Any) -> Path:
        """The folder of a run of so many steps that nothing happened to, made once."""
        key = (num_steps, tuple(sorted(options.items())))
        with self.lock:
            if key not in self.references:
                folder = self.shared / f"reference-{len(self.references)}"
                ended = self.start(folder, num_steps, **options).end()
                if ended.code != 0:
                    raise RuntimeError(f"the uninterrupted run failed:\n{ended.output[-3000:]}")
                self.references[key] = folder
            return self.references[key]

    def chance(self, low: float, high: float) -> float:
        """A random number between two."""
        return self.random.uniform(low, high)


def steps(folder: Path) -> list[int]:
    """The steps of a run that have a checkpoint under its final name."""
    try:
        return sorted(int(n) for n in os.listdir(folder / "checkpoints") if n.isdecimal())
    except FileNotFoundError:
        return []


def incoming(folder: Path) -> list[str]:
    """What lies in a run's folder of a save under way, or of a killed one."""
    try:
        return [n for n in os.listdir(folder / "checkpoints") if n.startswith("incoming")]
    except FileNotFoundError:
        return []


def arrays(folder: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by name, the last one's by default, read by Orbax alone."""
    step = steps(folder)[-1] if step is None else step
    path = (folder / "checkpoints" / str(step)).absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        described = reader.metadata(path).item_metadata.tree
        # As NumPy arrays: whatever devices they were saved from are not here.
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described)
        tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def digest_of(values: Mapping[str, np.ndarray], without: tuple[str, ...] = ()) -> str:
    """sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(values):
        if not any(part in name for part in without):
            array = values[name]
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def digest(folder: Path, step: int | None = None) -> str:
    """The digest of a checkpoint, the last one by default."""
    return digest_of(arrays(folder, step))


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl, each of which must be whole."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint's files are those of its manifest, by this module's own reading."""
    listed = json.loads((checkpoint / "manifest.json").read_text())["files"]
    return all(
        hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == about["sha256"]
        for name, about in listed.items()
    )


def compare(report: Report, folder: Path, reference: Path, what: str) -> None:
    """Expects the last state and the log of a run to be those of the uninterrupted one."""
    same = digest(folder) == digest(reference)
    report.add("runs compared with the uninterrupted one")
    report.add("of them with another digest", not same)
    report.expect(same, f"{what}: another digest than the uninterrupted run")
    same = records(folder) == records(reference)
    report.add("of them with another log", not same)
    report.expect(same, f"{what}: log.jsonl reads differently than the uninterrupted run's")


@contextlib.contextmanager
def ends_with(program: Program) -> Iterator[Program]:
    """Sees to it that a program does not outlive the campaign."""
    try:
        yield program
    finally:
        if program.running():
            program.kill()
