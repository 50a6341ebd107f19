"""Images side by side on one sheet, as an array, a PNG file, or a GIF over time."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ddpm_jax.files import write_atomically
from ddpm_jax.forward.checks import check_number, check_whole, host_pixels
from ddpm_jax.visualize.files import PathLike, checked_path

Pixels = npt.NDArray[np.uint8]

GAP = 190
"""Grey between images: strokes that are white up to the edge stay separate, and so do photographs
from the white page."""


def image_grid(
    images: npt.ArrayLike,
    *,
    columns: int | None = None,
    padding: int | None = None,
    scale: int | None = None,
) -> Pixels:
    """Lays images [N, H, W, C] row by row on a light-grey sheet: uint8 [H', W', C].

    Args:
        images: uint8, C 1 or 3.
        columns: images per row; by default the sheet is nearly square.
        padding: pixels of the sheet between images and around them; by default one pixel of the
            magnified images, and at least two.
        scale: integer magnification; by default the largest that keeps images within 96 pixels
            and the sheet within about 768, but at least one.
    """
    return _grid("image_grid", images, columns, padding, scale)


def save_grid(
    path: PathLike,
    images: npt.ArrayLike,
    *,
    columns: int | None = None,
    padding: int | None = None,
    scale: int | None = None,
) -> None:
    """Writes `image_grid` of images [N, H, W, C] to a PNG file."""
    from PIL import Image

    target = checked_path("save_grid", path, ".png")
    sheet = _grid("save_grid", images, columns, padding, scale)
    picture = Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet)
    write_atomically(target, lambda file: picture.save(file, "PNG", optimize=True))


def save_gif(
    path: PathLike,
    frames: npt.ArrayLike,
    *,
    seconds: float = 4.0,
    hold_last: float = 1.5,
    max_rate: float = 12.5,
    columns: int | None = None,
    padding: int | None = None,
    scale: int | None = None,
) -> None:
    """Writes frames [F, N, H, W, C], in the order shown, to a GIF of grids that loops forever.

    Greyscale keeps 64 levels, with an error of at most 2 of 255; colour gets 255 colours chosen
    separately for every frame. Neither is dithered, since magnification would show the dither as
    dirt.

    Args:
        path: ends in .gif.
        frames: uint8, C 1 or 3.
        seconds: duration of all frames, without the hold.
        hold_last: additional seconds for which the last frame is shown.
        max_rate: largest number of frames per second. Of more frames, evenly spaced ones are
            shown, including the first and last: noise compresses badly, and files grow with every
            frame.
        columns: as for `image_grid`.
        padding: as for `image_grid`.
        scale: as for `image_grid`, but by default images within 48 and the sheet within 400 pixels.
    """
    from PIL import Image

    target = checked_path("save_gif", path, ".gif")
    film = checked_images("save_gif", frames, "FNHWC")
    columns, padding, scale = checked_sheet("save_gif", columns, padding, scale)
    check_number("save_gif", "seconds", seconds, within="[0.1, inf)")
    check_number("save_gif", "hold_last", hold_last, within="[0, inf)")
    remedy = "Browsers slow down what is faster."
    check_number("save_gif", "max_rate", max_rate, remedy, within="(0, 50]")
    count = min(len(film), max(2, int(seconds * max_rate)))
    film = film[np.rint(np.linspace(0, len(film) - 1, count)).astype(int)]
    columns = fitting_columns(film[0]) if columns is None else columns
    if scale is None:
        scale = fitting_scale(film[0], columns, tile_limit=48, sheet_limit=400)
    pictures = []
    for frame in film:
        indices, palette = _indexed(frame)
        picture = Image.fromarray(
            sheet_of("save_gif", indices, columns, padding, scale, gap=255)[..., 0]
        )
        picture.putpalette(palette.tobytes())
        pictures.append(picture)
    # Delays are whole hundredths of a second: rounding the moments keeps errors from adding up.
    delays = 10 * np.diff(np.rint(np.linspace(0, 100 * seconds, count + 1)).astype(int))
    delays[-1] += 10 * round(100 * hold_last)
    movie = {"save_all": True, "append_images": pictures[1:], "loop": 0}
    movie["duration"] = delays.tolist()
    write_atomically(target, lambda file: pictures[0].save(file, "GIF", **movie))


def _grid(
    caller: str, images: npt.ArrayLike, columns: int | None, padding: int | None, scale: int | None
) -> Pixels:
    tiles = checked_images(caller, images, "NHWC")
    columns, padding, scale = checked_sheet(caller, columns, padding, scale)
    columns = fitting_columns(tiles) if columns is None else columns
    if scale is None:
        scale = fitting_scale(tiles, columns, tile_limit=96, sheet_limit=768)
    return sheet_of(caller, tiles, columns, padding, scale)


def checked_images(caller: str, images: npt.ArrayLike, axes: str) -> Pixels:
    """Returns images as a uint8 NumPy array with the named axes, such as "NHWC", or raises."""
    pixels = host_pixels(caller, images, axes)
    if pixels.shape[-1] not in (1, 3):
        raise ValueError(
            f"{caller} needs images [{', '.join(axes)}] with C 1 or 3, got shape {pixels.shape}. "
            "Greyscale has a last axis of one: images[..., None]."
        )
    return pixels


def checked_sheet(
    caller: str, columns: int | None, padding: int | None, scale: int | None
) -> tuple[int | None, int | None, int | None]:
    """The layout as integers, or ValueError for one that no sheet can have; None stays."""

    def checked(name: str, value: int | None, least: int) -> int | None:
        return None if value is None else check_whole(caller, name, value, least=least)

    return (
        checked("columns", columns, 1),
        checked("padding", padding, 0),
        checked("scale", scale, 1),
    )


def fitting_columns(images: Pixels) -> int:
    """Chooses the number of columns for the sheet nearest to square; on a tie, the wider one."""
    count, height, width, _ = images.shape

    def misfit(columns: int) -> tuple[int, int]:
        return abs(columns * width - math.ceil(count / columns) * height), -columns

    return min(range(1, count + 1), key=misfit)


def fitting_scale(images: Pixels, columns: int, tile_limit: int, sheet_limit: int) -> int:
    """Chooses the largest integer magnification within both limits, in pixels, but at least one."""
    count, height, width, _ = images.shape
    side = max(columns * width, math.ceil(count / columns) * height)
    return max(1, min(tile_limit // max(height, width), sheet_limit // side))


def padding_for(scale: int) -> int:
    """Returns the default gap: one source pixel of images magnified by `scale`, at least two."""
    return max(2, scale)


def sheet_of(
    caller: str, images: Pixels, columns: int, padding: int | None, scale: int, gap: int = GAP
) -> Pixels:
    """Magnifies images [N, H, W, C] and lays them on grey `gap`, separated by `padding`."""
    padding = padding_for(scale) if padding is None else padding
    count, height, width, channels = images.shape
    rows = math.ceil(count / columns)
    step_y, step_x = height * scale + padding, width * scale + padding
    sheet = np.full((rows * step_y, columns * step_x, channels), gap, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * step_y, i % columns * step_x
        tile = image.repeat(scale, axis=0).repeat(scale, axis=1)
        sheet[y : y + height * scale, x : x + width * scale] = tile
    return np.pad(sheet, ((padding, 0), (padding, 0), (0, 0)), constant_values=gap)


def _indexed(images: Pixels) -> tuple[Pixels, Pixels]:
    """Splits images into indices [N, H, W, 1] and a palette [256, 3], whose last entry is GAP."""
    from PIL import Image

    if images.shape[-1] == 1:
        levels = np.rint(images / 255 * 63).astype(np.uint8)
        grey = np.rint(np.minimum(np.arange(256), 63) / 63 * 255).astype(np.uint8)
        palette = np.repeat(grey[:, None], 3, axis=1)
        palette[-1] = GAP
        return levels, palette
    flat = images.reshape(-1, *images.shape[2:])
    picture = Image.fromarray(flat).quantize(255, dither=Image.Dither.NONE)
    palette = np.full((256, 3), GAP, np.uint8)
    chosen = np.asarray(picture.getpalette(), np.uint8).reshape(-1, 3)[:255]
    palette[: len(chosen)] = chosen
    return np.asarray(picture, np.uint8).reshape(*images.shape[:3], 1), palette
