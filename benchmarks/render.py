"""Renders results: one line for the console, Markdown tables and pictures for the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.sizes import Plan


class Benchmark(NamedTuple):
    """One benchmark: how it is measured, and how its result is rendered.

    title    its heading
    measure  `measure(plan)` -> plain JSON values, in a process of its own
    line     the result in one line
    page     the result in Markdown
    draw     `draw(result, folder)` writes pictures there and returns their names
    """

    title: str
    measure: Callable[[Plan], dict[str, Any]]
    line: Callable[[dict[str, Any]], str]
    page: Callable[[dict[str, Any]], str]
    draw: Callable[[dict[str, Any], Path], list[str]]


OURS = ("ddpm_jax", "ddpm_jax, one device", "resident", "streamed", "training step")


def contestant_name(name: str) -> str:
    """The name shown on pages and pictures: PyTorch's variants say whose they are."""
    return name if name in OURS else f"PyTorch {name}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; every column but the first is aligned to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def rate(value: float) -> str:
    """Pieces per second: 1,234 or 12.3 or 0.123."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def span(seconds: float) -> str:
    """A time: 12.3 ms, 1.23 s, 2 min 03 s."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.3g} µs"
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def size(count: float) -> str:
    """Bytes: 1.23 GiB or 123 MiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def quotient(value: Mapping[str, float]) -> str:
    """A ratio with its interval: 1.23 [1.10, 1.30]."""
    return f"{value['ratio']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def contest(result: Mapping[str, Any], unit: str) -> str:
    """The table of `common.compare`: median, spread, rate, and ours as a multiple of the rival."""
    rows = []
    best = result.get("best_rival")
    for name, one in result["contestants"].items():
        against = ""
        if best is not None:
            against = "1" if name == best else f"{_median(result, best) / one['median_s']:.2f}"
        rows.append(
            [
                contestant_name(name),
                span(one["median_s"]),
                f"{span(one['min_s'])} … {span(one['max_s'])}",
                rate(one["rate"]),
                against,
            ]
        )
    header = ["", "median", "fastest … slowest", unit, "speed relative to the best PyTorch"]
    if best is None:
        header, rows = header[:-1], [row[:-1] for row in rows]
    text = table(header, rows)
    if best is not None:
        text += (
            f"\nOur speed relative to {contestant_name(best)}: "
            f"{quotient(result['ours_over_best_rival'])}.\n"
        )
    return text


def verdict(result: Mapping[str, Any], ours: str, unit: str) -> str:
    """The result of `contest` in a few words."""
    text = f"{rate(result['contestants'][ours]['rate'])} {unit}"
    if "best_rival" not in result:
        return text
    rival = contestant_name(result["best_rival"])
    return text + f", {quotient(result['ours_over_best_rival'])} × {rival}"


def left_out(skipped: Mapping[str, str]) -> str:
    """What is missing from a page, and why; "" if nothing is."""
    return "".join(f"\nLeft out: {name} ({reason}).\n" for name, reason in skipped.items())


def _median(result: Mapping[str, Any], name: str) -> float:
    return result["contestants"][name]["median_s"]
