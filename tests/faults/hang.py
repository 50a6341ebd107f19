"""A device that never finishes a step, and data that never come."""

from __future__ import annotations

import time

from tests.faults.harness import SHORT_STEPS, Bench, Report, compare, ends_with

PROMISE = (
    "A run that makes no progress for --devices.watchdog-seconds ends with exit code 75, the "
    "stacks of all threads in hang-STEP.txt and what it waited for; the same command continues "
    "from the newest checkpoint."
)
TIMEOUT = 6.0
STEP = 14
CASES = {
    "device": ("the device to take step", {}),
    "data": ("the data of step", {"devices__resident_gib": 0}),
}


def campaign(bench: Bench) -> Report:
    """Each kind of hang at step 14, a restart without it, and the comparison."""
    report = Report()
    reference = bench.reference(SHORT_STEPS)
    running = []
    cases = dict([*CASES.items()][:1]) if bench.short else CASES
    for where, (waiting, options) in cases.items():
        folder = bench.work / where
        fault = {"hang": {"where": where, "step": STEP}}
        timeout = {"devices__watchdog_seconds": TIMEOUT}
        # Side by side: they spend their time waiting.
        running.append(
            (folder, bench.start(folder, SHORT_STEPS, fault, **timeout, **options), waiting)
        )
    for folder, program, waiting in running:
        with ends_with(program):
            program.until(lambda f=folder: list(f.glob("hang-*.txt")), nap=0.05)
            noticed = time.monotonic()
            ended = program.end()
        report.add("hangs")
        report.add("ended with 75", ended.code == 75)
        report.expect(ended.code == 75, f"exit code {ended.code}: {ended.output[-1500:]}")
        report.expect(time.monotonic() - noticed < 5, "the report was there, and the end was not")
        (said, *_) = [p.read_text() for p in folder.glob("hang-*.txt")] or [""]
        report.expect(waiting in said, f"the report does not say what it waited for: {said[:500]}")
        report.expect("driver.py" in said, "the report does not show where it stands")
        ended = bench.start(folder, SHORT_STEPS).end()
        report.add("restarts")
        report.expect("resuming" in ended.output, f"no resumption: {ended.output[-1000:]}")
        compare(report, folder, reference, folder.name)
    return report
