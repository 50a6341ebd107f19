"""Plots curves to PNG files: losses over training steps, and any other y over x."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddpm_jax.forward.checks import check_flag, check_number, check_text, check_whole, host_numbers
from ddpm_jax.types import describe
from ddpm_jax.visualize.files import (
    COLOURS,
    DPI,
    INK,
    PathLike,
    check_ticks,
    checked_path,
    set_xticks,
    style_axes,
    write_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Curve = tuple[npt.ArrayLike, npt.ArrayLike]


def save_curves(
    path: PathLike,
    curves: Mapping[str, Curve],
    xlabel: str,
    ylabel: str,
    *,
    logx: bool = False,
    logy: bool = False,
    title: str | None = None,
    xticks: Sequence[float] | None = None,
    levels: Mapping[str, float] | None = None,
) -> None:
    """Plots curves {name: (x [N], y [N])} to a PNG file, with a legend if there are several.

    Values that are not finite leave gaps. Values ≤ 0 on a logarithmic axis raise ValueError: they
    would silently be left out. `xticks`: the labelled ticks on x, instead of matplotlib's.
    `levels` {name: y}: values to compare with, broken grey lines over the whole width.
    """
    call = "save_curves"
    for name, one in (("curves", curves), ("levels", levels or {})):
        if not isinstance(one, Mapping):
            raise TypeError(f"{call} needs {name} by name, in a dict, got {describe(one)}.")
    for name, flag in (("logx", logx), ("logy", logy)):
        check_flag(call, name, flag)
    for name, text in (("xlabel", xlabel), ("ylabel", ylabel)):
        check_text(call, name, text)
    lines = [
        _line(call, name, curve, linewidth=1.5, **_stroke(i))
        for i, (name, curve) in enumerate(curves.items())
    ]
    if levels and lines:
        ends = [find([find(line.x) for line in lines]) for find in (np.nanmin, np.nanmax)]
        for i, (name, y) in enumerate(levels.items()):
            grey = {"color": "#6b7078", "linestyle": ("--", ":", "-.")[i % 3], "linewidth": 1.2}
            lines.append(_line(call, name, (ends, [check_number(call, name, y)] * 2), **grey))
    _save_plot(call, path, lines, (xlabel, ylabel), (logx, logy), title, xticks)


def _stroke(i: int) -> dict[str, str]:
    """Colour and line style of the i-th curve; the style changes when the colours repeat."""
    style = ("-", "--", ":")[i // len(COLOURS) % 3]
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": style}


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
    """Plots a training loss to a PNG file: values faint, their running mean bold.

    Args:
        path: ends in .png.
        steps: training steps [N].
        losses: the loss at each of them [N].
        heldout: (steps [M], losses [M]) on held-out data, drawn with markers.
        title: the title above the plot.
        window: number of values in the running mean, which is centred and shorter at the ends. An
            even number is raised by one; the legend states it. By default 2 % of the values, at
            most 1001.
        logy: whether the loss axis is logarithmic; by default if all losses are positive and their
            mean spans a factor of four or more.
    """
    call = "save_loss_curve"
    if window is not None:
        window = check_whole(call, "window", window, remedy="1 does not smooth.")
    if logy is not None:
        check_flag(call, "logy", logy)
    raw = _line(call, "training", (steps, losses), color=COLOURS[0], linewidth=0.6, alpha=0.35)
    half = (min(raw.y.size // 50, 1000) if window is None else window) // 2
    mean = _running_mean(raw.y, half)
    name = f"training, mean of {2 * half + 1} values"
    lines = [raw, _line(call, name, (raw.x, mean), color=COLOURS[0], linewidth=1.6)]
    if heldout is not None:
        marks = {"color": COLOURS[1], "marker": "o", "markersize": 3.5, "linewidth": 0.9}
        lines.append(_line(call, "held-out", heldout, **marks))
    if logy is None:
        positive = all((line.y[np.isfinite(line.y)] > 0).all() for line in lines)
        means = mean[np.isfinite(mean)]
        logy = bool(positive and means.size and means.max() >= 4 * means.min())
    _save_plot(call, path, lines, ("training step", "loss"), (False, logy), title)


class _Line(NamedTuple):
    label: str
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    style: dict[str, Any]


def _line(caller: str, label: str, curve: Curve, **style: Any) -> _Line:
    if not isinstance(curve, tuple | list) or len(curve) != 2:
        raise TypeError(
            f"{caller} needs a curve (x [N], y [N]), got {describe(curve)} for {label!r}."
        )
    x, y = (
        host_numbers(caller, name, values).astype(np.float64)
        for name, values in zip("xy", curve, strict=True)
    )
    if x.ndim != 1 or x.shape != y.shape or x.size == 0:
        raise ValueError(
            f"{caller} needs x [N] and y [N] with N ≥ 1, got {x.shape} and {y.shape} for {label!r}."
        )
    return _Line(label, x, y, style)


def _running_mean(values: npt.NDArray[np.float64], half: int) -> npt.NDArray[np.float64]:
    """Averages each value [N] with its finite neighbours up to `half` places away."""
    known = np.isfinite(values)
    # Summed directly: differences of running totals would lose all precision after one huge loss.
    window = np.ones(2 * half + 1)
    part = slice(half, half + values.size)
    sums = np.convolve(np.where(known, values, 0.0), window)[part]
    counts = np.convolve(known, window)[part]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _save_plot(
    caller: str,
    path: PathLike,
    lines: Sequence[_Line],
    labels: tuple[str, str],
    logarithmic: tuple[bool, bool],
    title: str | None,
    xticks: Sequence[float] | None = None,
) -> None:
    from matplotlib.figure import Figure

    target = checked_path(caller, path, ".png")
    check_ticks(caller, xticks)
    if title is not None:
        check_text(caller, "title", title)
    if not lines:
        raise ValueError(f"{caller} got no curves. Give at least one: {{name: (x, y)}}.")
    figure = Figure(figsize=(6.4, 4.0), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    for line in lines:
        axes.plot(line.x, line.y, label=line.label, solid_capstyle="round", **line.style)
    axes.margins(x=0.02)
    for name, log, label in zip("xy", logarithmic, labels, strict=True):
        values = np.concatenate([getattr(line, name) for line in lines])
        _scale_axis(caller, axes, name, values[np.isfinite(values)], log)
        getattr(axes, f"set_{name}label")(label, color=INK)
    set_xticks(axes, xticks)
    style_axes(axes, labelsize=9)
    if title:
        axes.set_title(title, color=INK, fontsize=11, loc="left")
    if len(lines) > 1:
        # Matplotlib searches all points for the best place, which takes seconds if there are many.
        place = "best" if sum(line.x.size for line in lines) < 100_000 else "upper right"
        legend = axes.legend(
            loc=place, fontsize=9, labelcolor=INK, edgecolor="none", framealpha=0.85
        )
        for handle in legend.get_lines():
            handle.set_linewidth(max(handle.get_linewidth(), 1.2))
    write_figure(target, figure)


def _scale_axis(
    caller: str, axes: Axes, name: str, values: npt.NDArray[np.float64], log: bool
) -> None:
    """Makes one axis linear or logarithmic, with readable tick labels."""
    from matplotlib.ticker import EngFormatter

    if log and (values <= 0).any():
        raise ValueError(
            f"{caller} got {name} values down to {values.min()} for a logarithmic axis. Leave out "
            f"what is not positive, or plot with log{name}=False."
        )
    if log:
        getattr(axes, f"set_{name}scale")("log")
        if values.size:
            label_logarithms(getattr(axes, f"{name}axis"), values.min(), values.max())
    elif values.size and np.abs(values).max() >= 1e4:
        getattr(axes, f"{name}axis").set_major_formatter(EngFormatter(sep=""))


def label_logarithms(axis: Axis, low: float, high: float) -> None:
    """Labels a logarithmic axis from `low` to `high` so that values can be read from it.

    Powers of ten alone would leave at most a few labels on a short axis. Labels are plain numbers
    except on axes that reach beyond 1e-3 … 1e5.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    span = high / low
    if span <= 1e3:
        steps = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0) if span < 10 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_minor_locator(NullLocator())
    if span <= 1e3 or (low >= 1e-3 and high <= 1e5):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
