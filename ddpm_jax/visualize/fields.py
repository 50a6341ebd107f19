"""Panels side by side in one PNG file: arrows, points, heat maps and lines in any combination.

    Panel("Data and their score", [Heatmap(p, (-3, 3, -3, 3)), Arrows(x, score)], equal=True)

A panel is a title and layers, drawn in order. Arrows start at their points and are drawn in the
units of the axes, so that two panels with equal limits can be compared; scale vectors to a suitable
length first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddpm_jax.forward.checks import check_number, check_text, check_whole, host_numbers
from ddpm_jax.types import describe
from ddpm_jax.visualize import files
from ddpm_jax.visualize.files import COLOURS, DPI, INK, PathLike
from ddpm_jax.visualize.plots import label_logarithms

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Heatmap(NamedTuple):
    """Values [H, W] as colours over extent (left, right, bottom, top), row 0 at the bottom.

    `limits` (low, high) of the colours default to those of the values; `bar` labels a colour bar.
    """

    values: npt.ArrayLike
    extent: tuple[float, float, float, float]
    limits: tuple[float, float] | None = None
    bar: str | None = None
    colours: str = "Blues"


class Arrows(NamedTuple):
    """Arrows of vectors [N, 2] from points [N, 2], both in the units of the axes."""

    points: npt.ArrayLike
    vectors: npt.ArrayLike
    colour: str = INK


class Points(NamedTuple):
    """A mark at each of points [N, 2]; `colour` is a colour or the number of a series."""

    points: npt.ArrayLike
    colour: int | str = 0
    size: float = 3.0
    label: str | None = None
    alpha: float = 0.5


class Line(NamedTuple):
    """y [N] over x [N]; `band` (low [N], high [N]) is shaded; `marker` is a matplotlib marker."""

    x: npt.ArrayLike
    y: npt.ArrayLike
    label: str | None = None
    colour: int | str = 0
    style: str = "-"
    marker: str = ""
    width: float = 1.5
    band: tuple[npt.ArrayLike, npt.ArrayLike] | None = None


Layer = Heatmap | Arrows | Points | Line


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: what the panel shows, preferably its finding.
        layers: drawn in this order; labels of lines and points make a legend.
        xlabel, ylabel: labels of the axes.
        logx, logy: logarithmic axes, for values above 0.
        linear_within: y is linear up to this distance from 0 and logarithmic beyond, for values of
            both signs and many magnitudes.
        xlim, ylim: limits of the axes; by default those of the layers.
        xticks: the labelled ticks on x, such as the values at which something was measured.
        equal: the same unit length in x and y, without ticks, as for a map of the plane.
        legend: matplotlib location of the legend, or "outside", to the right of the axes.
    """

    title: str
    layers: Sequence[Layer]
    xlabel: str = ""
    ylabel: str = ""
    logx: bool = False
    logy: bool = False
    linear_within: float | None = None
    xlim: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None
    xticks: Sequence[float] | None = None
    equal: bool = False
    legend: Any = "best"


def save_panels(
    path: PathLike,
    panels: Sequence[Panel],
    *,
    title: str | None = None,
    columns: int | None = None,
    size: tuple[float, float] = (3.1, 3.1),
) -> None:
    """Writes panels to a PNG file, row by row.

    Args:
        path: ends in .png.
        panels: at least one.
        title: above all panels.
        columns: panels per row; by default all in one row.
        size: (width, height) of a panel in inches, including its labels.

    Raises ValueError for another file type, no panels or columns, shapes that do not fit, and
    values ≤ 0 on a logarithmic axis, which would silently be left out.
    """
    from matplotlib.figure import Figure

    target = files.checked_path("save_panels", path, ".png")
    if not isinstance(panels, Sequence) or not all(isinstance(p, Panel) for p in panels):
        raise TypeError(f"save_panels needs panels, a list of Panel, got {describe(panels)}.")
    if not panels:
        raise ValueError("save_panels needs at least one panel, got none.")
    if columns is not None:
        columns = check_whole("save_panels", "columns", columns)
    if title is not None:
        check_text("save_panels", "title", title)
    files.checked_numbers("save_panels", "size", size, 2)
    if min(size) <= 0:
        raise ValueError(f"save_panels needs a size above 0, got {size}.")
    for panel in panels:
        layers = panel.layers
        if not isinstance(layers, Sequence) or not all(type(one) in _DRAWERS for one in layers):
            raise TypeError(
                f"save_panels needs layers of Heatmap, Arrows, Points or Line in {panel.title!r}, "
                f"got {describe(layers)}."
            )
        files.check_ticks("save_panels", panel.xticks)
        for name, limits in (("xlim", panel.xlim), ("ylim", panel.ylim)):
            if limits is not None:
                files.checked_numbers("save_panels", name, limits, 2)
        _check_logarithms(panel, panel.xlim or (), panel.ylim or ())
    across = min(columns or len(panels), len(panels))
    down = math.ceil(len(panels) / across)
    height = size[1] * down + (0.4 if title else 0.0)
    figure = Figure(figsize=(size[0] * across, height), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(wspace=0.04, hspace=0.04)  # type: ignore[union-attr]
    if title:
        figure.suptitle(title, color=INK, fontsize=12, fontweight="bold", x=0.01, ha="left")
    for i, panel in enumerate(panels):
        _draw(figure.add_subplot(down, across, i + 1), panel)
    files.write_figure(target, figure)


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, color=INK, fontsize=9.5, loc="left")
    for layer in panel.layers:
        _DRAWERS[type(layer)](axes, panel, layer)
    # After the layers: a heat map would reset the limits and the aspect.
    if panel.equal:
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("#d5d8dc")
    else:
        files.style_axes(axes, labelsize=8)
    if panel.logx:
        axes.set_xscale("log")
    if panel.logy:
        axes.set_yscale("log")
    if panel.linear_within is not None:
        axes.set_yscale("symlog", linthresh=panel.linear_within)
    if panel.xlim:
        axes.set_xlim(*panel.xlim)
    if panel.ylim:
        axes.set_ylim(*panel.ylim)
    for name, log in (("x", panel.logx), ("y", panel.logy)):
        if log:
            axis = getattr(axes, f"{name}axis")
            limits = getattr(panel, f"{name}lim") or getattr(axes.dataLim, f"interval{name}")
            label_logarithms(axis, *limits)
    files.set_xticks(axes, panel.xticks)
    axes.set_xlabel(panel.xlabel, color=INK, fontsize=9)
    axes.set_ylabel(panel.ylabel, color=INK, fontsize=9)
    if any(getattr(layer, "label", None) for layer in panel.layers):
        outside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        place = outside if panel.legend == "outside" else {"loc": panel.legend}
        legend = axes.legend(**place, fontsize=8, labelcolor=INK, edgecolor="none", framealpha=0.85)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)


def _heatmap(axes: Axes, panel: Panel, layer: Heatmap) -> None:
    values = _values(panel, "values of a heat map", layer.values)
    files.checked_numbers("save_panels", "extent", layer.extent, 4)
    if layer.limits is not None:
        files.checked_numbers("save_panels", "limits", layer.limits, 2)
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"save_panels needs a heat map [H, W], got shape {values.shape} in {panel.title!r}."
        )
    _check_logarithms(panel, layer.extent[:2], layer.extent[2:])
    low, high = layer.limits or (None, None)
    image = axes.imshow(
        values,
        extent=layer.extent,
        origin="lower",
        cmap=layer.colours,
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="nearest",
    )
    if layer.bar is not None:
        bar = axes.get_figure().colorbar(image, ax=axes, shrink=0.8, pad=0.02)  # type: ignore
        bar.set_label(layer.bar, color=INK, fontsize=8)
        bar.ax.tick_params(labelsize=7, labelcolor=INK, color=files.FAINT)
        bar.outline.set_visible(False)  # type: ignore[operator]


def _arrows(axes: Axes, panel: Panel, layer: Arrows) -> None:
    points, vectors = _pairs(panel, layer.points), _pairs(panel, layer.vectors)
    if points.shape != vectors.shape:
        raise ValueError(
            f"save_panels needs one arrow per point, got points {points.shape} and vectors "
            f"{vectors.shape} in {panel.title!r}."
        )
    _check_logarithms(panel, *points.T)
    axes.quiver(
        *points.T,
        *vectors.T,
        color=layer.colour,
        angles="xy",
        scale_units="xy",
        scale=1.0,
        width=0.0045,
        headwidth=4.0,
        headlength=4.5,
    )


def _points(axes: Axes, panel: Panel, layer: Points) -> None:
    points = _pairs(panel, layer.points)
    _check_size(panel, "size", layer.size)
    _check_size(panel, "alpha", layer.alpha, "[0, 1]")
    _check_logarithms(panel, *points.T)
    axes.scatter(
        *points.T,
        s=layer.size,
        color=_colour(layer.colour),
        label=layer.label,
        alpha=layer.alpha,
        linewidths=0,
        rasterized=True,
    )


def _line(axes: Axes, panel: Panel, layer: Line) -> None:
    x, y = _values(panel, "x", layer.x), _values(panel, "y", layer.y)
    _check_size(panel, "width", layer.width)
    if x.ndim != 1 or x.shape != y.shape or not x.size:
        raise ValueError(
            f"save_panels needs x [N] and y [N] with N ≥ 1 for a line, got {x.shape} and {y.shape} "
            f"in {panel.title!r}."
        )
    _check_logarithms(panel, x, y)
    style: dict[str, Any] = {"color": _colour(layer.colour), "linewidth": layer.width}
    axes.plot(
        x, y, label=layer.label, linestyle=layer.style, marker=layer.marker, markersize=4, **style
    )
    if layer.band is not None:
        if not isinstance(layer.band, tuple | list) or len(layer.band) != 2:
            raise ValueError(
                f"save_panels needs band, (low [N], high [N]), got {describe(layer.band)}."
            )
        low, high = (_values(panel, "band", values) for values in layer.band)
        if not low.shape == high.shape == x.shape:
            raise ValueError(
                f"save_panels needs a band of shape {x.shape}, as the line, got {low.shape} and "
                f"{high.shape} in {panel.title!r}."
            )
        axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


_DRAWERS: dict[type, Any] = {Heatmap: _heatmap, Arrows: _arrows, Points: _points, Line: _line}


def _values(panel: Panel, name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return host_numbers("save_panels", f"{name} in {panel.title!r}", values).astype(np.float64)


def _check_size(panel: Panel, name: str, value: float, within: str = "[0, inf)") -> None:
    check_number("save_panels", name, value, f"It is in {panel.title!r}.", within=within)


def _pairs(panel: Panel, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    pairs = _values(panel, "points and vectors", values)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(
            f"save_panels needs points and vectors [N, 2], got shape {pairs.shape} in "
            f"{panel.title!r}. Project data of more dimensions onto two first."
        )
    return pairs


def _check_logarithms(panel: Panel, x: npt.ArrayLike, y: npt.ArrayLike) -> None:
    for name, log, values in (("x", panel.logx, x), ("y", panel.logy, y)):
        finite = np.asarray(values)[np.isfinite(values)]
        if log and (finite <= 0).any():
            raise ValueError(
                f"save_panels got {name} values down to {finite.min()} for a logarithmic axis in "
                f"{panel.title!r}. Leave out what is not positive, or set log{name}=False."
            )


def _colour(colour: int | str) -> str:
    return COLOURS[colour % len(COLOURS)] if isinstance(colour, int) else colour
