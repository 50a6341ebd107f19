"""A second process on the run directory of the first."""

from __future__ import annotations

from tests.faults.harness import SHORT_STEPS, Bench, Report, compare, ends_with, steps

PROMISE = (
    "A run directory has one writer: a second program on it is refused with exit code 2 and told "
    "who has it, and the first is not disturbed."
)
LIMIT = 60.0


def campaign(bench: Bench) -> Report:
    """Four refusals (short: 1) while one run goes on."""
    report = Report()
    num_steps = SHORT_STEPS if bench.short else 200
    reference = bench.reference(num_steps)
    folder = bench.work / "run"
    with ends_with(bench.start(folder, num_steps)) as first:
        first.until(lambda: steps(folder))
        for number in range(1 if bench.short else 4):
            second = bench.start(folder, num_steps, output=bench.work / f"second-{number}").end()
            report.add("second programs")
            report.expect(first.running(), "the first ended too early for this campaign")
            refused = second.code == 2 and f"in use by process {first.pid}" in second.output
            report.add("refused", refused)
            report.expect(refused, f"exit code {second.code}: {second.output[-1000:]}")
            report.expect(second.seconds < LIMIT, f"refused only after {second.seconds:.1f} s")
            slowest = max(report.counts.get("slowest refusal in s", 0), round(second.seconds, 1))
            report.counts["slowest refusal in s"] = slowest
        ended = first.end()
    report.expect(ended.code == 0, f"exit code {ended.code}: {ended.output[-1000:]}")
    compare(report, folder, reference, "the first run")
    return report
