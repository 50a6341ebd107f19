"""Counts the wrong calls of the tests: `python -m tests.contracts.count` prints a Markdown table.

Nothing is called; the rows, the ways in which their arguments can be wrong, and the calls with a
documented meaning are counted.
"""

import os

# As in tests/conftest.py, before JAX is imported: some rows are of several devices.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

from collections.abc import Iterator
from typing import NamedTuple

from tests.contracts import test_wrong_calls as functions
from tests.contracts import test_wrong_calls_of_programs as programs
from tests.contracts import test_wrong_calls_of_runs as runs
from tests.contracts.wrong import Net

NETS = {
    "test_wrong_calls.py": functions.NET,
    "test_wrong_calls_of_programs.py": programs.NET,
    "test_wrong_calls_of_runs.py": runs.NET,
}


class Count(NamedTuple):
    """Of one net: functions and methods with a row, wrong calls, and those with a meaning."""

    rows: int
    calls: int
    documented: int


def count(net: Net) -> Count:
    """Counts the wrong calls of a net."""
    calls = sum(1 for name in net.rows for _ in net.wrong_calls(name))
    return Count(len(net.rows), calls, len(net.documented))


def count_fields() -> tuple[int, int]:
    """The fields of all configurations, and the values of other types that they are given."""
    return len(runs.FIELDS), sum(len(runs.wrong_values(hint)) for *_, hint in runs.FIELDS)


def table() -> Iterator[str]:
    """The lines of the table in docs/reliability.md."""
    counts = {name: count(net) for name, net in NETS.items()}
    counts["together"] = Count(*map(sum, zip(*counts.values(), strict=True)))
    yield "| test file | rows | wrong calls | with a documented meaning |"
    yield "|---|---:|---:|---:|"
    for name, (rows, calls, documented) in counts.items():
        yield f"| {name} | {rows:,} | {calls:,} | {documented:,} |"
    fields, values = count_fields()
    yield f"| fields of configurations | {fields:,} | {values:,} | 0 |"


if __name__ == "__main__":
    print("\n".join(table()))
