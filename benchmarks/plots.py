"""Bars and stacked bars as PNG files, in the manner of `ddpm_jax.visualize`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ddpm_jax.visualize import save_curves
from ddpm_jax.visualize.fields import COLOURS
from ddpm_jax.visualize.files import DPI, INK, PathLike, checked_path, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["save_bars", "save_curves", "save_stack"]

FAINT = "#9aa0a8"

Bar = tuple[float, float, float, str]
"""Height, low and high end of its interval, and what is written above it."""


def save_bars(
    path: PathLike, groups: Mapping[str, Mapping[str, Bar]], ylabel: str, *, title: str
) -> None:
    """Plots {group: {name: bar}} as groups of bars; the same name has the same colour everywhere.

    Raises ValueError without any bar.
    """
    target = checked_path("save_bars", path, ".png")
    names = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    if not names:
        raise ValueError("save_bars got no bars. Give {group: {name: (height, low, high, text)}}.")
    widest = max(len(bars) for bars in groups.values())
    figure, axes = _axes(max(6.4, 1.1 * len(groups) * widest), 4.0, title)
    width = 0.8 / widest
    for i, bars in enumerate(groups.values()):
        first = i - width * (len(bars) - 1) / 2
        for j, (name, (height, low, high, text)) in enumerate(bars.items()):
            x = first + j * width
            axes.bar(x, height, 0.92 * width, color=COLOURS[names.index(name) % len(COLOURS)])
            axes.plot([x, x], [low, high], color=INK, linewidth=1)
            axes.annotate(
                text,
                (x, max(height, high)),
                (0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=INK,
            )
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel(ylabel, color=INK)
    axes.margins(y=0.18)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    _legend(axes, [(n, COLOURS[i % len(COLOURS)]) for i, n in enumerate(names)], below=True)
    write_figure(target, figure)


def save_stack(
    path: PathLike, rows: Mapping[str, Sequence[tuple[str, float]]], xlabel: str, *, title: str
) -> None:
    """Plots {row: [(part, value)]} as horizontal bars of parts laid end to end."""
    target = checked_path("save_stack", path, ".png")
    parts = list(dict.fromkeys(part for row in rows.values() for part, _ in row))
    if not parts:
        raise ValueError("save_stack got no parts. Give {row: [(part, value)]}.")
    figure, axes = _axes(8.4, 1.9 + 0.75 * len(rows), title)
    longest = max(sum(value for _, value in row) for row in rows.values())
    for i, row in enumerate(rows.values()):
        left = 0.0
        for part, value in row:
            axes.barh(-i, value, 0.62, left=left, color=_shade(parts.index(part)))
            if value >= 0.025 * longest:
                axes.text(
                    left + value / 2, -i, f"{value:.0f}", ha="center", va="center", fontsize=8
                )
            left += value
    axes.set_yticks([-i for i in range(len(rows))], list(rows))
    axes.set_xlabel(xlabel, color=INK)
    axes.margins(x=0.02)
    _legend(axes, [(p, _shade(i)) for i, p in enumerate(parts)], below=True)
    write_figure(target, figure)


def _shade(i: int) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    # Lighter than the lines' colours, so that figures can be read on them; a paler round for more.
    rgb = to_rgb(COLOURS[i % len(COLOURS)])
    white = 0.45 if i < len(COLOURS) else 0.75
    red, green, blue = (white + (1 - white) * c for c in rgb)
    return red, green, blue


def _axes(width: float, height: float, title: str) -> tuple[Any, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, color=INK, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", color=FAINT, labelcolor=INK, labelsize=9)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: Axes, entries: Sequence[tuple[str, Any]], *, below: bool = False) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in entries]
    style: dict[str, Any] = {"fontsize": 8.5, "labelcolor": INK, "edgecolor": "none"}
    if below:
        figure: Any = axes.figure
        figure.legend(handles=handles, loc="outside lower center", ncols=3, **style)
        return
    axes.legend(handles=handles, **style)
