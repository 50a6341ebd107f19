"""SIGKILL while `sample.py` draws many images."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from tests.faults.harness import SHORT_STEPS, Bench, Report, ends_with

PROMISE = (
    "A killed sample.py keeps every file of images that was complete; the same command samples the "
    "rest, and the images are those of an uninterrupted one."
)
COUNT = 2500
"""Images: three files of up to a thousand."""


def campaign(bench: Bench) -> Report:
    """Six kills (short: 1), each after another file was written."""
    report = Report()
    run = bench.reference(SHORT_STEPS)
    flags = {
        **{"run-dir": run, "sampler": "ddim", "num-steps": 10, "count": COUNT},
        **{"batch-size": 100, "no-gif": None},
    }
    whole = bench.work / "whole"
    ended = bench.script("sample.py", {**flags, "out": whole}, bench.work / "whole.out").end()
    report.expect(ended.code == 0, f"exit code {ended.code}: {ended.output[-1000:]}")
    for number in range(1 if bench.short else 3):
        out = bench.work / f"out-{number}"
        command = ("sample.py", {**flags, "out": out}, bench.work / f"{number}.out")
        kept: dict[Path, int] = {}
        for _ in range(1 if bench.short else 2):
            with ends_with(bench.script(*command)) as program:
                more = program.until(lambda out=out, kept=kept: len(_files(out)) > len(kept))
                time.sleep(bench.chance(0, 0.5))
                report.expect(more and program.running(), "it ended before the kill")
                program.kill()
            report.add("kills")
            found = _files(out)
            same = kept.items() <= found.items()
            report.expect(same, f"complete files were written again: {kept}, then {found}")
            kept = found
        report.add("complete files kept", len(kept))
        ended = bench.script(*command).end()
        report.expect(ended.code == 0, f"exit code {ended.code}: {ended.output[-1000:]}")
        pair = [np.load(folder / "samples.npz")["images"] for folder in (out, whole)]
        report.add("samples compared with uninterrupted ones")
        equal = np.array_equal(*pair)
        report.add("of them different", not equal)
        report.expect(equal, f"out-{number}: other images than without a kill")
        left = sorted(path.name for path in out.iterdir())
        report.expect(left == sorted(p.name for p in whole.iterdir()), f"left over: {left}")
    return report


def _files(out: Path) -> dict[Path, int]:
    """The complete files of images, with their times in ns."""
    return {path: path.stat().st_mtime_ns for path in (out / "shards").glob("*.npz")}
