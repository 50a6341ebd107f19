"""SIGTERM, SIGHUP and SIGUSR1 at random moments: from the imports to the last picture."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

from tests.faults.harness import (
    SHORT_STEPS,
    Bench,
    Program,
    Report,
    compare,
    ends_with,
    records,
    steps,
)

PROMISE = (
    "On SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C training ends within 10 s with exit code 0 and loses no "
    "step. (Until Python has imported the program, about two seconds, a signal ends it as it ends "
    "any process; nothing has been touched then.)"
)
LIMIT = 10.0
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
MOMENTS = ("any", "start-up", "compiling", "any", "a sheet", "any", "the last pictures", "any")


def campaign(bench: Bench) -> Report:
    """20 signals (short: 3) over runs of 80 steps (24)."""
    report = Report()
    wanted, num_steps = (3, SHORT_STEPS) if bench.short else (20, 80)
    moments = ("start-up", "a sheet", "the last pictures") if bench.short else MOMENTS
    # Under nohup SIGHUP is ignored, here and in the program.
    signals = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    reference = bench.reference(num_steps)
    report.counts |= {"signals": 0, "exit code 0": 0, "before the program had begun": 0}
    slowest, sent, run = 0.0, 0, 0
    while sent < wanted:
        folder = bench.work / f"term-{run}"
        code = None
        while code != 0 or not _done(folder, num_steps):
            moment = moments[sent % len(moments)] if sent < wanted else None
            # An empty cache of its own makes compiling take long enough to be hit.
            cache = {"JAX_COMPILATION_CACHE_DIR": str(bench.work / f"none-{sent}")}
            env = cache if moment == "compiling" else {}
            with ends_with(bench.start(folder, num_steps, env=env)) as program:
                if moment is None or not _wait(bench, program, moment):
                    code = program.end().code
                    report.expect(code == 0, f"exit code {code}: {program.output()[-1000:]}")
                    if code != 0:
                        return report
                    continue
                number = signals[sent % len(signals)]
                sent += 1
                code, seconds = _signal(report, program, folder, moment, number)
                slowest = max(slowest, seconds)
        compare(report, folder, reference, f"run {run}")
        run += 1
    report.counts["slowest end in s"] = round(slowest, 2)
    return report


def _done(folder: Path, num_steps: int) -> bool:
    return steps(folder)[-1:] == [num_steps] and (folder / "loss.png").exists()


def _wait(bench: Bench, program: Program, moment: str) -> bool:
    """Until the moment; False where the program ended before it came."""
    signs = {"compiling": "training:", "a sheet": "samples at step", "the last pictures": "sampl"}
    if moment in signs:
        sign = r"sampling: " if moment == "the last pictures" else signs[moment]
        if not program.until(lambda: re.search(sign, program.output()), nap=0.002):
            return False
        time.sleep(bench.chance(0, 1.0 if moment == "compiling" else 0.1))
    else:
        time.sleep(bench.chance(0, 4 if moment == "start-up" else 25))
    return program.running()


def _signal(
    report: Report, program: Program, folder: Path, moment: str, number: signal.Signals
) -> tuple[int, float]:
    begun = program.catches(number)
    before = steps(folder)
    program.process.send_signal(number)
    began = time.monotonic()
    code = program.end(60).code
    seconds = time.monotonic() - began
    report.add("signals")
    report.add(number.name)
    if not begun and code == -number:
        report.add("before the program had begun")
        report.expect(steps(folder) == before, "a signal during the imports changed checkpoints")
        return code, 0.0
    report.add("exit code 0", code == 0)
    report.add_part("exit code 0", _phase(program.output(), moment))
    report.expect(code == 0, f"exit code {code} after {number.name}: {program.output()[-1500:]}")
    report.expect(seconds <= LIMIT, f"{seconds:.1f} s from {number.name} to the end ({moment})")
    logged = [r["step"] for r in records(folder)] if (folder / "log.jsonl").exists() else []
    kept, reached = max(steps(folder), default=0), max(logged, default=0)
    report.add("steps lost", max(0, reached - kept))
    report.expect(kept >= reached, f"step {reached} was logged, and {kept} is what is kept")
    return code, seconds


def _phase(output: str, moment: str) -> str:
    if "stopped while compiling" in output:
        return "while compiling"
    if "before training" in output:
        return "while starting"
    if "stopped while drawing" in output:
        return "while drawing the last pictures"
    if "stopped by" not in output:
        return "after the last step"
    return "while drawing a sheet" if moment == "a sheet" else "while training"
