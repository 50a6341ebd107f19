"""NaN, infinity and sudden jumps of the loss at chosen steps."""

from __future__ import annotations

import json
from pathlib import Path

from ddpm_jax.training.spikes import PATIENCE
from tests.faults.harness import Bench, Report, arrays, digest_of, records, steps

PROMISE = (
    "A step whose loss or gradient is not finite, or whose loss is over --optimizer.spike-factor "
    "times its running mean, changes nothing but the step count, and is in the log; after "
    "--max-bad-steps of them in a row training ends with exit code 1 and a dump of the last steps, "
    "the last checkpoint being good."
)
NUM_STEPS = 14
BAD = (3, 5, 6)
IN_A_ROW = tuple(range(8, 12))
KEEP = {
    "report__checkpoint_every": 1,
    "report__checkpoint_keep": NUM_STEPS,
    "report__sample_every": 0,
    "report__heldout_every": 0,
}


def campaign(bench: Bench) -> Report:
    """Bad steps of each kind, the state before and after each; at last too many in a row."""
    report = Report()
    for factor in ("nan",) if bench.short else ("nan", "inf", "-inf"):
        _bad_steps(bench, report, factor)
    if not bench.short:
        _spikes(bench, report)
    return report


def _bad_steps(bench: Bench, report: Report, factor: str) -> None:
    folder = bench.work / f"bad{factor}"
    fault = {"loss": {"steps": [*BAD, *IN_A_ROW], "factor": factor}}
    ended = bench.start(folder, NUM_STEPS, fault, max_bad_steps=4, **KEEP).end()
    report.add("runs ended after 4 bad steps in a row", ended.code == 1)
    report.expect(ended.code == 1, f"{factor}: exit code {ended.code}: {ended.output[-1000:]}")
    losses = {r["step"]: r["loss"] for r in records(folder) if r["kind"] == "train"}
    bad = tuple(step for step, loss in losses.items() if loss - loss != 0)
    report.expect(bad == BAD + IN_A_ROW, f"{factor}: the log has bad losses at {bad}")
    skipped = tuple(r["step"] for r in records(folder) if r["kind"] == "skipped")
    report.expect(skipped == bad, f"{factor}: the log names {skipped} as skipped")
    # The step that ends the run comes before its save.
    _check(report, folder, factor, BAD + IN_A_ROW, IN_A_ROW[-1])
    dumps = list(folder.glob("nonfinite_step_*.json"))
    report.expect([d.name for d in dumps] == [f"nonfinite_step_{IN_A_ROW[-1]}.json"], f"{dumps}")
    for dump in dumps:
        report.expect(len(json.loads(dump.read_text())["examples"]) == 8, "no examples named")
    if not bench.short:
        # Without the fault, the same command takes up the state the bad steps left alone.
        ended = bench.start(folder, NUM_STEPS, **KEEP).end()
        report.expect(ended.code == 0, f"no way on: {ended.output[-1000:]}")


def _check(report: Report, folder: Path, what: str, bad: tuple[int, ...], end: int) -> None:
    """Expects that the bad steps changed nothing but the count, and the others something."""
    states = {s: digest_of(arrays(folder, s), ("['step']",)) for s in steps(folder)}
    report.expect(max(states) >= end - 1, f"{what}: only the steps {list(states)} were kept")
    for step in sorted(states)[1:]:
        unchanged = states[step] == states[step - 1]
        if step in bad:
            report.add(f"bad steps ({what})")
            report.add("bad steps that changed the state", not unchanged)
            report.expect(unchanged, f"{what}: step {step} changed the state")
        else:
            report.expect(not unchanged, f"{what}: good step {step} changed nothing")


def _spikes(bench: Bench, report: Report) -> None:
    """A finite loss far over the running mean, once the guard has seen enough steps."""
    folder, spikes = bench.work / "spikes", (PATIENCE + 4, PATIENCE + 6)
    fault = {"loss": {"steps": spikes, "factor": 1e4}}
    options = KEEP | {"optimizer__spike_factor": 100}
    # In two programs: the guard remembers what it saw before the restart.
    quick = options | {"report__checkpoint_every": 0}
    bench.start(folder, PATIENCE + 2, fault, **quick).end()
    ended = bench.start(folder, PATIENCE + 8, fault, **options).end()
    report.expect(ended.code == 0, f"exit code {ended.code}: {ended.output[-1000:]}")
    _check(report, folder, "spikes", spikes, PATIENCE + 8)
    skipped = tuple(r["step"] for r in records(folder) if r["kind"] == "skipped")
    report.expect(skipped == spikes, f"the log names {skipped} as skipped")
