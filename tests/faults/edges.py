"""SIGKILL in the few milliseconds in which a checkpoint gets its manifest, its name, or goes."""

from __future__ import annotations

from pathlib import Path

from tests.faults.harness import Bench, Program, Report, incoming
from tests.faults.kill import kill_often, stage

PROMISE = (
    "That holds in the few milliseconds between Orbax's last byte and the manifest, between the "
    "manifest and the final name, and while an old checkpoint is removed."
)


def campaign(bench: Bench) -> Report:
    """24 kills (short: 2) right after one of those moments has begun."""
    report = kill_often(bench, 2 if bench.short else 24, at_an_edge)
    inside = report.counts["inside a save"]
    report.expect(inside, "none of the kills came in time")
    return report


def at_an_edge(bench: Bench, program: Program, folder: Path) -> None:
    """Until a save has come as far as this time's choice."""
    edge = bench.random.choice(("between Orbax", "between the manifest", "while an old"))
    program.until(lambda: "compiled in" in program.output(), nap=0.05)
    # Three saves must lie there before an old one is removed.
    program.until(
        lambda: any(stage(folder / "checkpoints" / n).startswith(edge) for n in incoming(folder)),
        nap=0.0002,
    )
