"""Rows of images with labels: progressive denoising, interpolations, samplers side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpm_jax.forward.checks import check_text
from ddpm_jax.types import describe
from ddpm_jax.visualize import grids
from ddpm_jax.visualize.files import DPI, INK, PathLike, check_texts, checked_path, write_figure

_PAGE = 1000
"""Pixels of sheets whose labels are not enlarged."""


def save_rows(
    path: PathLike,
    images: npt.ArrayLike,
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
    title: str | None = None,
    hidden: npt.ArrayLike | None = None,
    padding: int | None = None,
    scale: int | None = None,
) -> None:
    """Writes images [R, K, H, W, C] to a PNG file: R rows of K, labelled at the left and top.

    `captions`, R sequences of K, appear below the images, and `title` above all of them, in as many
    lines as it needs. Pixels that are `hidden`, bool [R, K, H, W], are hatched in grey. Without
    `scale`, images are magnified until column labels and captions fit their width. Sheets wider
    than a page get larger labels, as far as these fit, so that they can be read when the sheet is
    shown smaller.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    target = checked_path("save_rows", path, ".png")
    block = grids.checked_images("save_rows", images, "RKHWC")
    rows, columns = block.shape[:2]
    _, padding, scale = grids.checked_sheet("save_rows", None, padding, scale)
    covered = None if hidden is None else _flags(hidden, block.shape[:-1])
    if title is not None:
        check_text("save_rows", "title", title)
    for name, labels in (("row_labels", row_labels), ("column_labels", column_labels)):
        check_texts("save_rows", name, labels or ())
    left, top = list(row_labels or ()), list(column_labels or ())
    if len(left) not in (0, rows) or len(top) not in (0, columns):
        raise ValueError(
            f"save_rows got {rows} rows and {columns} columns of images with {len(left)} row "
            f"labels and {len(top)} column labels. Give one for every row or column, or none."
        )
    if captions is not None and not isinstance(captions, Sequence):
        raise TypeError(f"save_rows needs captions, R lists of K, got {describe(captions)}.")
    for row in captions or ():
        check_texts("save_rows", "a row of captions", row)
    below = [list(row) for row in captions or ()]
    if below and (len(below) != rows or any(len(row) != columns for row in below)):
        raise ValueError(
            f"save_rows got {rows} rows and {columns} columns of images with captions "
            f"{[len(row) for row in below]}. Give one for every image, or none."
        )
    figure = Figure(dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    margin, line, size = 12, 28, 8.0

    def width_of(labels: list[str], **style: Any) -> int:
        texts = [figure.text(0, 0, label, **{"fontsize": size, **style}) for label in labels]
        widths = [text.get_window_extent(renderer).width for text in texts]
        for text in texts:
            text.remove()
        return math.ceil(max(widths, default=0.0))

    tiles = block.reshape(-1, *block.shape[2:])
    texts = top + sum(below, [])
    if scale is None:
        fitting = grids.fitting_scale(tiles, columns, tile_limit=96, sheet_limit=960)
        scale = max(fitting, math.ceil((width_of(texts) + margin) / block.shape[3]) if texts else 1)
    tile = scale * block.shape[3]
    room = tile / (width_of(texts) + 2) if texts else math.inf
    growth = max(1.0, min(columns * tile / _PAGE, room))
    size, line = growth * size, round(growth * line)
    padding = grids.padding_for(scale) if padding is None else padding
    # Captions use pixels added below the images, so that the sheet remains one grid.
    band = math.ceil(line / scale) if below else 0
    below_tiles = ((0, 0), (0, band), (0, 0), (0, 0))
    tiles = np.pad(tiles, below_tiles, constant_values=grids.GAP)
    sheet = grids.sheet_of("save_rows", tiles, columns, padding, scale)
    if covered is not None:
        flat = np.pad(covered.reshape(-1, *block.shape[2:4], 1).astype(np.uint8), below_tiles)
        where = grids.sheet_of("save_rows", flat, columns, padding, scale, gap=0)[..., 0] == 1
        sheet[where] = _hatching(where.shape)[where]
    # Placed at integer pixels: axes would resample the sheet, and blur or drop rows of it.
    x = margin + (width_of(left) + margin if left else 0)
    bold = {"fontsize": 1.1 * size, "fontweight": "bold"}
    lines: list[str] = []
    if title:
        room = (x - margin + sheet.shape[1]) / width_of([title], **bold)
        lines = textwrap.wrap(title, max(1, math.floor(0.97 * room * len(title))))
    y = margin + line * (len(lines) + bool(top))
    width, height = x + sheet.shape[1] + margin, y + sheet.shape[0] + margin
    figure.set_size_inches(width / DPI, height / DPI)
    figure.figimage(np.broadcast_to(sheet, (*sheet.shape[:2], 3)), x, margin, origin="upper")
    step_y, step_x = (scale * n + padding for n in tiles.shape[1:3])
    style: dict[str, Any] = {"fontsize": size, "color": INK, "va": "center"}
    for i, label in enumerate(lines):
        middle = margin + (i + 0.3) * line
        figure.text(margin / width, 1 - middle / height, label, **{**style, **bold})
    for i, label in enumerate(left):
        middle = y + padding / 2 + i * step_y + (step_y - band * scale) / 2
        figure.text((x - margin) / width, 1 - middle / height, label, ha="right", **style)
    for i, label in enumerate(top):
        middle = x + padding / 2 + (i + 0.5) * step_x
        figure.text(middle / width, 1 - (y - line / 2) / height, label, ha="center", **style)
    for i, row in enumerate(below):
        middle = y + padding / 2 + (i + 1) * step_y - band * scale + line / 2
        for k, caption in enumerate(row):
            place = x + padding / 2 + (k + 0.5) * step_x
            figure.text(place / width, 1 - middle / height, caption, ha="center", **style)
    write_figure(target, figure)


def _flags(hidden: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray:
    try:
        flags = np.asarray(hidden)
    except (TypeError, ValueError):  # traced, or ragged
        flags = np.empty(0)
    if flags.dtype != np.bool_ or flags.shape != shape:
        error = ValueError if flags.dtype == np.bool_ else TypeError
        raise error(f"save_rows needs hidden, bool {list(shape)}, got {describe(hidden)}.")
    return flags


def _hatching(shape: tuple[int, ...]) -> grids.Pixels:
    """Diagonal grey lines [H, W, 1], finer than the pixels of magnified images."""
    y, x = np.indices(shape)
    return np.where((x + y) % 12 < 3, 120, 205).astype(np.uint8)[..., None]
