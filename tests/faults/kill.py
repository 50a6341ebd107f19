"""SIGKILL at random moments, most of them inside a save, each followed by the same command."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.harness import (
    SHORT_STEPS,
    Bench,
    Program,
    Report,
    compare,
    ends_with,
    incoming,
    is_whole,
    steps,
)

PROMISE = (
    "A training process killed at any instant resumes from its newest whole checkpoint, and the "
    "finished run equals, bit for bit, the one that was never killed."
)
KILLS_A_RUN = 25
Wait = Callable[[Bench, Program, Path], None]


def campaign(bench: Bench) -> Report:
    """100 kills (short: 5) over runs of 200 steps (24), at least half of them inside a save."""
    report = kill_often(bench, 5 if bench.short else 100, at_random)
    inside, wanted = report.counts["inside a save"], report.counts["kills"]
    report.expect(2 * inside >= wanted, f"only {inside} of {wanted} kills were inside a save")
    return report


def kill_often(bench: Bench, wanted: int, wait: Wait) -> Report:
    """So many kills, each when `wait` returns, over as many runs as that takes."""
    report = Report()
    num_steps = SHORT_STEPS if bench.short else 200
    reference = bench.reference(num_steps)
    for name in ("kills", "inside a save", "restarts", "damaged checkpoints seen"):
        report.counts[name] = 0
    number = 0
    while report.counts["kills"] < wanted:
        folder = bench.work / f"kill-{number}"
        until = min(wanted, report.counts["kills"] + KILLS_A_RUN)
        _one_run(bench, report, folder, num_steps, until, wait)
        compare(report, folder, reference, f"run {number}")
        number += 1
    return report


def _one_run(
    bench: Bench, report: Report, folder: Path, num_steps: int, until: int, wait: Wait
) -> None:
    life = 0
    while True:
        life += 1
        with ends_with(bench.start(folder, num_steps)) as program:
            if report.counts["kills"] < until:
                wait(bench, program, folder)
                if program.running():
                    program.kill()
            ended = program.end()
        report.add("restarts", life > 1)
        report.expect("damaged" not in ended.output, f"{folder.name}: {ended.output[-500:]}")
        report.add("damaged checkpoints seen", "damaged" in ended.output)
        if ended.code == 0:
            return
        if not report.expect(ended.code == -9, f"exit code {ended.code}: {ended.output[-1000:]}"):
            raise RuntimeError("the program fails by itself; see above")
        report.add("kills")
        _look(report, folder)


def at_random(bench: Bench, program: Program, folder: Path) -> None:
    """Until a random moment: of the program's life, or of a save under way."""
    if bench.random.random() < 0.25:
        end = time.monotonic() + bench.chance(0, 12)
        program.until(lambda: time.monotonic() > end)
        return
    seen: set[str] = set()
    # Those are swept away at the start; a save of this life has another name, or comes later.
    program.until(lambda: "compiled in" in program.output(), nap=0.05)
    # A short run has six saves in all, and is to be killed five times.
    wanted = 1 if bench.short else bench.random.choice((1, 2, 2, 3, 4))

    def saves() -> bool:
        seen.update(re.findall(r"\d+", " ".join(incoming(folder))))
        return len(seen) >= wanted

    if not program.until(saves, nap=0.002):
        return
    time.sleep(bench.chance(0, 0.4))
    program.until(lambda: incoming(folder), nap=0.0005)


def _look(report: Report, folder: Path) -> None:
    """Counts where a kill struck, and checks what it left."""
    left = incoming(folder)
    report.add("inside a save", bool(left))
    stages = {stage(folder / "checkpoints" / name) for name in left}
    for name in sorted(stages):
        report.add_part("inside a save", name)
    for step in steps(folder):
        whole = is_whole(folder / "checkpoints" / str(step))
        report.add("damaged checkpoints seen", not whole)
        report.expect(whole, f"{folder.name}: step {step} under its final name is not whole")


def stage(left: Path) -> str:
    """What a save was at when it was killed, by what it left."""
    if left.name.endswith("-old"):
        return "while an old checkpoint was removed"
    if "orbax" in left.name or not (left / "_CHECKPOINT_METADATA").exists():
        return "while Orbax wrote"
    if not (left / "manifest.json").exists():
        return "between Orbax and the manifest"
    return "between the manifest and the final name"
