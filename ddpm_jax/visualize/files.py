"""Checks the paths of pictures and writes figures atomically."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddpm_jax.files import user_path, write_atomically
from ddpm_jax.forward.checks import check_text, host_numbers, is_finite_number
from ddpm_jax.types import describe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PathLike = str | os.PathLike[str]

DPI = 150
INK = "#30343b"
FAINT = "#9aa0a8"
# Okabe and Ito's colours, which colour-blind readers can distinguish, without their pale yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def checked_path(caller: str, path: PathLike, suffix: str) -> Path:
    """Returns the path, or raises ValueError if it does not end in `suffix`."""
    target = user_path(path, caller)
    if target.suffix.lower() != suffix:
        raise ValueError(
            f"{caller} writes {suffix} files, got path {os.fspath(path)!r}. "
            f"Name it {target.stem + suffix!r}."
        )
    return target


def check_texts(caller: str, name: str, texts: Sequence[str]) -> None:
    """Raises TypeError unless these are a list of strings."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(f"{caller} needs {name}, a list of strings, got {describe(texts)}.")
    for text in texts:
        check_text(caller, name, text)


def checked_numbers(caller: str, name: str, values: Sequence[float], count: int) -> None:
    """Raises ValueError unless these are so many finite numbers."""
    if (
        not isinstance(values, tuple | list)
        or len(values) != count
        or not all(map(is_finite_number, values))
    ):
        raise ValueError(f"{caller} needs {name}, {count} finite numbers, got {values!r}.")


def check_ticks(caller: str, xticks: Sequence[float] | None) -> None:
    """Raises ValueError unless the ticks are None or finite numbers."""
    if xticks is None:
        return
    ticks = host_numbers(caller, "xticks", xticks)
    if ticks.ndim != 1 or not np.isfinite(ticks).all():
        raise ValueError(f"{caller} needs xticks, a list of finite numbers, got {xticks!r}.")


def style_axes(axes: Axes, labelsize: int) -> None:
    """Two faint spines and a grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", color=FAINT, labelcolor=INK, labelsize=labelsize)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def set_xticks(axes: Axes, xticks: Sequence[float] | None) -> None:
    """Makes these, if any, the labelled ticks on x."""
    if xticks is not None:
        axes.set_xticks(xticks, [f"{place:g}" for place in xticks])
        axes.set_xticks([], minor=True)


def write_figure(target: Path, figure: Figure) -> None:
    """Draws a figure without pyplot and writes it as PNG, at exactly its size in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # `print_png`, since a user's matplotlibrc may set another format, or trim the figure.
    write_atomically(target, FigureCanvasAgg(figure).print_png)
