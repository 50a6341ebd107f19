"""The tables and the panels of the study, from its numbers.

Numbers are `{density: {model: {measure: {"mean", "lowest", "highest"}}}}`; the model "data" is what
true samples get.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.visualize import Panel, Points

Numbers = Mapping[str, Mapping[str, Any]]

DENSITY = "log p: "
"""How measures of log p begin."""
BOUNDS = ("ELBO", "bound")
"""How kinds of log p begin that are bounds."""
LIMIT = 2.3
"""Half the width of a panel."""


def interval(measure: Mapping[str, Any], digits: int) -> str:
    """The mean, and the lowest and highest value behind it."""
    mean, low, high = (f"{measure[name]:.{digits}f}" for name in ("mean", "lowest", "highest"))
    return f"{mean} [{low}, {high}]".replace("-", "−")


def log_density_cell(row: Mapping[str, Any], start: str = DENSITY, bound: str = "≥") -> str:
    """What the model says about log p: a number of each kind, or "none".

    The measures begin with `start`; `bound` is the sign of those that are bounds.
    """
    parts = []
    for name, measure in row.items():
        if name.startswith(start):
            kind = name.removeprefix(start)
            sign = f"{bound} " if kind.startswith(BOUNDS) else ""
            parts.append(f"{kind}: {sign}{interval(measure, 2)}")
    return "; ".join(parts) or "none"


def table(numbers: Numbers) -> str:
    """One Markdown table per density."""
    head = (
        "| model | parameters | evaluations per sample | log p(x) of true samples, nats "
        "| energy distance × 1000 | modes covered | off the modes | error of the weights |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    texts = []
    for density, rows in numbers.items():
        text = f"**{density}**\n\n{head}"
        for model, row in rows.items():
            cells = [
                model,
                str(row.get("parameters", "")),
                str(row.get("evaluations_per_sample", "")),
                log_density_cell(row),
                interval(scaled(row["energy_distance"], 1000.0), 1),
                interval(row["share_of_modes_covered"], 2),
                interval(row["share_off_modes"], 3),
                interval(row["weight_error"], 3),
            ]
            text += f"| {' | '.join(cells)} |\n"
        texts.append(text)
    return "\n".join(texts)


def scaled(measure: Mapping[str, Any], factor: float) -> dict[str, float]:
    """The measure in other units."""
    return {name: factor * measure[name] for name in ("mean", "lowest", "highest")}


def panels(numbers: Numbers, samples: Mapping[str, Mapping[str, np.ndarray]]) -> list[Panel]:
    """A row per density, a panel per model: the samples of the first training."""
    found = []
    for density, models in samples.items():
        for i, (model, x) in enumerate(models.items()):
            row = numbers[density][model]
            name, cost = density[0].upper() + density[1:], "true samples"
            if model != "data":
                name, cost = model, evaluations(row["evaluations_per_sample"])
            off = row["share_off_modes"]["mean"]
            found.append(
                Panel(
                    f"{name}, {cost}\n{off:.0%} off the modes",
                    [Points(x, "#000000" if model == "data" else i - 1, 1.5)],
                    xlim=(-LIMIT, LIMIT),
                    ylim=(-LIMIT, LIMIT),
                    equal=True,
                )
            )
    return found


def figure_title(numbers: Numbers) -> str:
    """The finding: on each density, who puts the fewest points off the modes, and at what cost."""
    found = []
    for density, rows in numbers.items():
        off = {
            model: row["share_off_modes"]["mean"] for model, row in rows.items() if model != "data"
        }
        best = min(off, key=off.__getitem__)
        cost = evaluations(rows[best]["evaluations_per_sample"])
        found.append(f"{best} on {density} ({off[best]:.0%}, {cost})")
    return f"Fewest samples off the modes: {', '.join(found)}"


def evaluations(count: int) -> str:
    """The cost of a sample in words."""
    return f"{count:,} evaluation{'s' if count > 1 else ''}"
