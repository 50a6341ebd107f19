"""The program: runs each benchmark in its own process and renews the page after each.

A benchmark that fails, crashes or exceeds its time is recorded as failed, with the reason; the
others still run, and the exit code is 1. With `only`, the other results on the page are kept, each
with its own date, commit and load.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import compiled
from benchmarks.common import say
from benchmarks.provenance import ROOT, machine_slug, stamp
from benchmarks.registry import NAMES, Name, benchmark
from benchmarks.report import write_page
from benchmarks.sizes import plan_for, to_json

Compiled = Literal["compiled"]
"""What compilers make of the programs; not among the measurements, so not in "everything"."""
SCHEMA = 1
MIN_SECONDS = 20.0  # no benchmark starts with less time left


@dataclass(frozen=True)
class Options:
    """Which benchmarks to run, and where to write the results."""

    quick: bool = False
    """Tiny sizes that only show that everything runs; kept apart from real results."""
    only: tuple[Name | Compiled, ...] = ()
    """The benchmarks to run; all that measure if empty. "compiled" needs no device: it compiles for
    GPUs and TPUs, where [cuda12] or [tpu] is installed (benchmarks/compiled)."""
    out: Path | None = None
    """Folder of results.json, pictures and README.md; None for docs/results/benchmarks/MACHINE, or
    runs/benchmarks/MACHINE-quick with --quick."""
    minutes: float | None = None
    """Minutes for everything. None: 9.5 on accelerators, unlimited on CPUs."""
    batch_size: int | None = None
    """Images per training step; None for the plan's (16 on CPUs, 128 on accelerators)."""
    sample_steps: int | None = None
    """Ancestral steps of the wide network; None for the plan's (10 on CPUs, 1000 elsewhere)."""
    ddim_steps: int | None = None
    """DDIM steps of the wide network; None for the plan's (10 on CPUs, 50 elsewhere)."""
    rounds: int | None = None
    """Number of rounds, in each of which every contestant runs once; None for the plan's."""
    torch_compile: bool | None = None
    """Whether torch.compile takes part; None for the plan's (yes, unless quick)."""
    set: dict[str, str] = field(default_factory=dict)
    """Further fields of the plan (benchmarks/sizes.py), as NAME VALUE with VALUE in JSON."""


def run(options: Options) -> int:
    """Runs the benchmarks, writes the page and returns the exit code: 1 if one failed."""
    if "compiled" in options.only:
        code = compiled.run(compiled.Choice(out=options.out, quick=options.quick))
        rest = tuple(name for name in options.only if name != "compiled")
        return max(code, run(dataclasses.replace(options, only=rest))) if rest else code
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as scratch:
        environment = _environment(Path(scratch))
        machine = _run_worker("machine", {}, Path(scratch), environment, 300.0)
        if "error" in machine:
            say(f"benchmarks: JAX found no device to run on: {machine['error']}")
            return 1
        about = machine["result"]
        out = options.out or _default_folder(about, options.quick)
        plan = plan_for(about["platform"], quick=options.quick, **_changes(options))
        minutes = options.minutes
        if minutes is None and about["platform"] != "cpu":
            minutes = 9.5
        out.mkdir(parents=True, exist_ok=True)
        page = _read(out / "results.json")
        page |= {"schema": SCHEMA, "machine": about}
        say(f"{about['device']}, {about['cores']} cores of {about['processor']} → {out}")
        names = [name for name in NAMES if name in (options.only or NAMES)]
        failed = []
        for number, name in enumerate(names, 1):
            say(f"[{number}/{len(names)}] {name}: {benchmark(name).title}")
            left = None if minutes is None else 60 * minutes - (time.monotonic() - begun)
            entry = _measured(name, to_json(plan), Path(scratch), environment, left)
            page["benchmarks"][name] = entry
            if entry["status"] != "ok":
                failed.append(name)
            say(f"  {summary(name, entry)}  ({entry['seconds']:.0f} s)")
            problem = write_page(page, out)
            if problem and name not in failed:
                failed.append(name)
                say(f"  {problem}")
        say(f"{len(names) - len(failed)} of {len(names)} measured: {out / 'README.md'}")
        if failed:
            say(f"failed: {', '.join(failed)}")
        return int(bool(failed))


def summary(name: str, entry: dict[str, Any]) -> str:
    """A result, or why there is none, in one line."""
    if entry["status"] != "ok":
        return f"{name} failed: {entry['reason'].splitlines()[-1]}"
    return f"{name}: {benchmark(name).line(entry['result'])}"


def _measured(
    name: str,
    plan: dict[str, Any],
    scratch: Path,
    environment: dict[str, str],
    left: float | None,
) -> dict[str, Any]:
    entry: dict[str, Any] = {**stamp(), "plan": plan, "seconds": 0.0}
    if left is not None and left < MIN_SECONDS:
        reason = f"not started: only {left:.0f} s were left (--minutes; run it alone with --only)"
        return entry | {"status": "failed", "reason": reason}
    begun = time.monotonic()
    reply = _run_worker(name, plan, scratch, environment, left)
    entry |= {"seconds": round(time.monotonic() - begun, 1), "cpu": reply.get("cpu")}
    if "error" in reply:
        return entry | {"status": "failed", "reason": reply["error"]}
    return entry | {"status": "ok", "result": reply["result"]}


def _run_worker(
    name: str,
    plan: dict[str, Any],
    scratch: Path,
    environment: dict[str, str],
    limit: float | None,
) -> dict[str, Any]:
    """Runs `benchmarks.worker` and returns its result; {"error"} if there is none."""
    plan_file, result_file = scratch / "plan.json", scratch / f"{name}.json"
    plan_file.write_text(json.dumps(plan))
    command = [sys.executable, "-m", "benchmarks.worker", name, str(plan_file), str(result_file)]
    # In its own process group, so that a limit ends its rivals too.
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        return {"error": f"ended after {limit:.0f} s, when the time for all was over (--minutes)"}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if not result_file.exists():
        return {"error": f"its process ended with exit code {code} and no result"}
    return json.loads(result_file.read_text())


def _environment(scratch: Path) -> dict[str, str]:
    """The environment of every process: one compilation cache, and a shared accelerator."""
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "compilation-cache"),
        # Rivals share the accelerator's memory, so no process may reserve most of it at the start.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


def _changes(options: Options) -> dict[str, Any]:
    named = ("batch_size", "sample_steps", "ddim_steps", "rounds", "torch_compile")
    changes = {name: getattr(options, name) for name in named}
    changes = {name: value for name, value in changes.items() if value is not None}
    for name, text in options.set.items():
        value = json.loads(text)
        changes[name] = tuple(value) if isinstance(value, list) else value
    return changes


def _default_folder(about: dict[str, Any], quick: bool) -> Path:
    slug = machine_slug(about)
    if quick:
        return ROOT / "runs" / "benchmarks" / f"{slug}-quick"
    return ROOT / "docs" / "results" / "benchmarks" / slug


def _read(file: Path) -> dict[str, Any]:
    """The existing page, or an empty one if there is none of this schema."""
    try:
        page = json.loads(file.read_text())
    except (OSError, ValueError):
        page = {}
    return page if page.get("schema") == SCHEMA else {"benchmarks": {}}
