"""Checks the paths of pictures and writes figures atomically."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_jax.files import user_path, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PathLike = str | os.PathLike[str]

DPI = 150
INK = "#30343b"


def checked_path(caller: str, path: PathLike, suffix: str) -> Path:
    """Returns the path, or raises ValueError if it does not end in `suffix`."""
    target = user_path(path)
    if target.suffix.lower() != suffix:
        raise ValueError(
            f"{caller} writes {suffix} files, got path {os.fspath(path)!r}. "
            f"Name it {target.stem + suffix!r}."
        )
    return target


def write_figure(target: Path, figure: Figure) -> None:
    """Draws a figure without pyplot and writes it as PNG, at exactly its size in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    # `print_png`, since a user's matplotlibrc may set another format, or trim the figure.
    write_atomically(target, FigureCanvasAgg(figure).print_png)
