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
"""How kinds of log p begin that bound it from below."""
LIMIT = 2.3
"""Half the width of a panel."""


def interval(measure: Mapping[str, Any], digits: int) -> str:
    """The mean, and the lowest and highest value behind it."""
    mean, low, high = (f"{measure[name]:.{digits}f}" for name in ("mean", "lowest", "highest"))
    return f"{mean} [{low}, {high}]".replace("-", "−")


def log_density_cell(row: Mapping[str, Any]) -> str:
    """What the model says about log p, in nats: a number of each kind, or why there is none."""
    parts = []
    for name, measure in row.items():
        if name.startswith(DENSITY):
            kind = name.removeprefix(DENSITY)
            sign = "≥ " if kind.startswith(BOUNDS) else ""
            parts.append(f"{kind}: {sign}{interval(measure, 2)}")
    return "; ".join(parts) or "none"


def table(numbers: Numbers) -> str:
    """One Markdown table per density."""
    head = (
        "| model | parameters | evaluations per sample | log p(x) of true samples, nats "
        "| energy distance × 1000 | modes covered | on no mode | error of the weights |\n"
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
                interval(row["share_on_no_mode"], 3),
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
            evaluations = row.get("evaluations_per_sample")
            cost = "true samples" if evaluations is None else f"{evaluations:,} evaluation"
            cost += "s" if evaluations is not None and evaluations > 1 else ""
            off = row["share_on_no_mode"]["mean"]
            name = density.capitalize() if model == "data" else model
            found.append(
                Panel(
                    f"{name}, {cost}\n{off:.0%} on no mode",
                    [Points(x, "#000000" if model == "data" else i - 1, 1.5)],
                    xlim=(-LIMIT, LIMIT),
                    ylim=(-LIMIT, LIMIT),
                    equal=True,
                )
            )
    return found


def figure_title(numbers: Numbers) -> str:
    """The finding: who comes closest to the data, and who does with one evaluation per sample."""
    models = [name for name in next(iter(numbers.values())) if name != "data"]

    def distance(model: str) -> float:
        return float(np.mean([rows[model]["energy_distance"]["mean"] for rows in numbers.values()]))

    first = next(iter(numbers.values()))
    best = min(models, key=distance)
    quick = min((m for m in models if first[m]["evaluations_per_sample"] == 1), key=distance)
    text = f"{best} comes closest to the data, {1000 * distance(best):.1f}"
    cost = first[best]["evaluations_per_sample"]
    text += f" thousandths with {cost:,} evaluation{'s' if cost > 1 else ''} per sample"
    if quick != best:
        text += f"; of one evaluation {quick} does, {1000 * distance(quick):.1f}"
    return text.replace("-", "−")
