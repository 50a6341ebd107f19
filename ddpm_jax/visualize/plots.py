"""Curves as PNG files: losses over training steps, and anything else over anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddpm_jax.visualize.files import DPI, INK, PathLike, checked_path, write_figure

if TYPE_CHECKING:
    from matplotlib.axis import Axis

Curve = tuple[npt.ArrayLike, npt.ArrayLike]

# Okabe and Ito's colours, which colour-blind readers tell apart, without their pale yellow.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def save_curves(
    path: PathLike,
    curves: Mapping[str, Curve],
    xlabel: str,
    ylabel: str,
    *,
    logx: bool = False,
    logy: bool = False,
    title: str | None = None,
) -> None:
    """Plots curves {name: (x [N], y [N])} into a PNG file, with a legend where there are several.

    Values that are not finite leave gaps. Values ≤ 0 on a logarithmic axis raise ValueError: they
    would silently be left out.
    """
    lines = [
        _Line(name, x, y, {"color": _COLOURS[i % len(_COLOURS)], "linewidth": 1.5})
        for i, (name, (x, y)) in enumerate(curves.items())
    ]
    _save_plot("save_curves", path, lines, (xlabel, ylabel), (logx, logy), title)


def save_loss_curve(
    path: PathLike,
    steps: npt.ArrayLike,
    losses: npt.ArrayLike,
    *,
    heldout: Curve | None = None,
    title: str | None = None,
    window: int | None = None,
    logy: bool | None = None,
) -> None:
    """Plots a training loss into a PNG file: values faint, their running mean strong.

    Args:
        path: ends in .png.
        steps: training steps [N].
        losses: the loss at each of them [N].
        heldout: (steps [M], losses [M]) on held-out data, drawn with a mark at each.
        title: above the plot.
        window: values in the running mean, which is centred and shorter at the ends; rounded up to
            an odd number, which the legend states. By default 2 % of the values.
        logy: logarithmic losses; by default where all are positive and the mean spans a factor of 4.
    """
    x, y = np.asarray(steps), np.asarray(losses, dtype=np.float64)
    half = (y.size // 50 if window is None else window) // 2
    smooth = _running_mean(y, half)
    # A longer faint line is a solid band, and takes matplotlib seconds to draw.
    thin = slice(None, None, math.ceil(max(y.size, 1) / 20_000))
    blue = {"color": _COLOURS[0]}
    lines = [
        _Line("training", x[thin], y[thin], {"linewidth": 0.6, "alpha": 0.35} | blue),
        _Line(f"training, mean of {2 * half + 1}", x, smooth, {"linewidth": 1.6} | blue),
    ]
    if heldout is not None:
        marks = {"color": _COLOURS[1], "marker": "o", "markersize": 3.5, "linewidth": 0.9}
        lines.append(_Line("held-out", *heldout, marks))
    if logy is None:
        shown = [np.asarray(line.y, dtype=np.float64) for line in lines]
        positive = all((values[np.isfinite(values)] > 0).all() for values in shown)
        means = smooth[np.isfinite(smooth)]
        logy = bool(positive and means.size and means.max() >= 4 * means.min())
    _save_plot("save_loss_curve", path, lines, ("training step", "loss"), (False, logy), title)


class _Line(NamedTuple):
    label: str
    x: npt.ArrayLike
    y: npt.ArrayLike
    style: dict[str, Any]


def _save_plot(
    caller: str,
    path: PathLike,
    lines: Sequence[_Line],
    labels: tuple[str, str],
    logarithmic: tuple[bool, bool],
    title: str | None,
) -> None:
    from matplotlib.figure import Figure

    target = checked_path(caller, path, ".png")
    if not lines:
        raise ValueError(f"{caller} got no curves. Give at least one: {{name: (x, y)}}.")
    figure = Figure(figsize=(6.4, 4.0), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    values: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for line in lines:
        x, y = np.asarray(line.x, dtype=np.float64), np.asarray(line.y, dtype=np.float64)
        if x.ndim != 1 or x.shape != y.shape or x.size == 0:
            raise ValueError(
                f"{caller} needs x [N] and y [N] with N ≥ 1, got {x.shape} and {y.shape} for "
                f"{line.label!r}."
            )
        axes.plot(x, y, label=line.label, solid_capstyle="round", **line.style)
        values[0].append(x[np.isfinite(x)])
        values[1].append(y[np.isfinite(y)])
    for axis, data, log, name in zip(
        (axes.xaxis, axes.yaxis), values, logarithmic, "xy", strict=True
    ):
        _scale_axis(caller, axis, np.concatenate(data), log, name)
    axes.set_xlabel(labels[0], color=INK)
    axes.set_ylabel(labels[1], color=INK)
    if title:
        axes.set_title(title, color=INK, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa0a8")
    axes.tick_params(which="both", color="#9aa0a8", labelcolor=INK, labelsize=9)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    write_figure(target, figure)


def _scale_axis(caller: str, axis: Axis, values: np.ndarray, log: bool, name: str) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

    if log and (values <= 0).any():
        raise ValueError(
            f"{caller} has log{name}=True and {name} values down to {values.min()}. Leave out what is "
            f"not positive, or plot with log{name}=False."
        )
    span = values.max() / values.min() if log and values.size else 1.0
    if log:
        axis._set_axes_scale("log")
        if span < 1e3:
            # Powers of ten alone would leave one label or none on so short an axis.
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif values.size and np.abs(values).max() >= 1e4:
        axis.set_major_formatter(EngFormatter(sep=""))


def _running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Averages each value [N] with its finite neighbours up to `half` places away."""
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    places = np.arange(values.size)
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, values.size)
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)
