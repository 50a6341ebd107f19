"""One image file to uint8 pixels: upright, cropped to a shape, resized without aliasing."""

from __future__ import annotations

import enum
import functools
import io
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.files import check_regular

COMMON = ("PNG", "JPEG", "WEBP", "BMP")
COMMON_SUFFIXES = frozenset(".png .apng .jpg .jpeg .jpe .jfif .webp .bmp".split())
"""Such a file may be any of the four, but nothing else: a GIF called .jpg is most often what a
server sent in place of the photo."""
FORMATS = (*COMMON, "GIF", "TIFF", "PPM", "QOI", "AVIF")
"""Pillow knows more. EPS starts Ghostscript, TGA has no mark to know it by, and JPEG 2000 of 16
bits is cut to 8 without a way to tell."""
SUFFIXES = COMMON_SUFFIXES.union(
    ".mpo .gif .tif .tiff .ppm .pgm .pbm .pnm .qoi .avif .avifs".split()
)
FILTER = "lanczos"
MAX_NAMED = 20
SMALLER = "Make it smaller, or remove it."
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the header's type of colour
# First column and row of each pass of an interlaced PNG, and the steps between them.
_PNG_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)


class Notes(enum.IntFlag):
    """What a user should know about an image that was decoded."""

    ENLARGED = 1
    FIRST_FRAME = 2


class _Unsuited(ValueError):
    """An image that is sound but cannot be used, for the first argument; the second is a remedy."""


@functools.cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # Pillow 11.1 has no AVIF


def size_of(resolution: int | str | tuple[int, int]) -> tuple[int, int]:
    """Height and width, from 64 (a square), "48x64" (height × width) or (48, 64)."""
    if isinstance(resolution, str):
        sides = [int(s) if re.fullmatch("[0-9]{1,5}", s) else 0 for s in resolution.split("x")]
    else:
        sides = resolution if isinstance(resolution, tuple) else [resolution]
    if len(sides) not in (1, 2) or not all(
        isinstance(side, int) and not isinstance(side, bool) and 0 < side < 1 << 16
        for side in sides
    ):
        raise ValueError(
            "a resolution is a side such as 64, or HEIGHTxWIDTH such as 48x64, each from 1 to "
            f"65,535 (--data.resolution); got {resolution!r}."
        )
    return sides[0], sides[-1]


@contextmanager
def open_image(file: Path | bytes, name: str | None = None) -> Iterator[Any]:
    """Opens an image file, or its content, as Pillow does, its pixels not decoded yet.

    Every error inside becomes a ValueError that names the file, or `name`, and the remedy.
    """
    from PIL import Image, UnidentifiedImageError

    common = isinstance(file, Path) and file.suffix.lower() in COMMON_SUFFIXES
    formats = COMMON if common else _formats()
    try:
        if isinstance(file, Path):
            check_regular(file)
        source = file if isinstance(file, Path) else io.BytesIO(file)
        with Image.open(source, formats=formats) as opened:
            yield opened
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and others
        reason, remedy = str(error).rstrip("."), "Remove it, or convert it to PNG."
        if isinstance(error, _Unsuited):
            reason, remedy = error.args
        elif isinstance(error, Image.DecompressionBombError):
            remedy = SMALLER
        elif isinstance(error, UnidentifiedImageError):
            reason = f"it is none of {', '.join(formats)}"
            if not (len(file) if isinstance(file, bytes) else file.stat().st_size):
                reason, remedy = "it is empty", "Remove it."
        what = name or file
        raise ValueError(f"{what} could not be read as an image: {reason}. {remedy}") from error


def is_image(file: Path) -> bool:
    """Whether the content of a regular file begins as an image of one of `FORMATS`."""
    try:
        with open_image(file):
            return True
    except ValueError:
        return False


def is_grey(file: Path | bytes) -> bool:
    """Whether an image is stored without colour; so counts a file that is none, or is damaged."""
    try:
        with open_image(file, "") as opened:
            return opened.mode in ("1", "L", "LA", "La") or is_deep(opened)
    except ValueError:
        return True


def decode_image(
    file: Path | bytes,
    resolution: int | tuple[int, int],
    *,
    grey: bool = False,
    max_pixels: int = 89_478_485,
    name: str | None = None,
) -> tuple[np.ndarray, Notes]:
    """Decodes a file, or its content, to uint8 [H, W, C], with notes for the user.

    resolution  H and W, or one number for a square
    name        of the content, for errors

    Applies the EXIF orientation, composes transparency over white, and converts colour to RGB (C =
    3) or, with `grey`, luminance (C = 1). Takes the first frame of several. The largest central
    rectangle of the shape H×W, at whole pixels, is resized with Lanczos-3, whose support widens
    with the reduction: every source pixel counts and nothing aliases, as it would with a filter of
    fixed support (Parmar et al. 2022, "On Aliased Resizing"), and more detail is kept than by
    averaging boxes. An image that already has the size keeps its pixels.

    Raises ValueError, naming the file, if it is none of `FORMATS`, truncated, damaged, of more than
    8 bits per channel, or a decompression bomb: larger than `max_pixels`, by default the size from
    which Pillow warns, or twice Pillow's `Image.MAX_IMAGE_PIXELS`, which Pillow itself refuses.
    """
    from PIL import Image, ImageOps

    to_height, to_width = size_of(resolution)
    with open_image(file, name) as opened:
        # From the header, before a pixel is decoded.
        if opened.width * opened.height > max_pixels:
            reason = f"{opened.width}×{opened.height} pixels are over {max_pixels:,}"
            raise _Unsuited(reason, SMALLER)
        if is_deep(opened):
            reason = f"mode {opened.mode} has more than 8 bits per channel"
            raise _Unsuited(reason, "Convert it to 8 bits.")
        # The second picture of an MPO is a phone's preview.
        several = getattr(opened, "is_animated", False) and opened.format != "MPO"
        opened.load()
        check_png_rows(opened, file)
        image = ImageOps.exif_transpose(opened)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if grey else "RGB")
        width, height = image.size
        if width * to_height > height * to_width:
            width = max(1, round(height * to_width / to_height))
        else:
            height = max(1, round(width * to_height / to_width))
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.resize(
            (to_width, to_height),
            Image.Resampling.LANCZOS,
            box=(left, top, left + width, top + height),
        )
        pixels = np.asarray(image).reshape(to_height, to_width, 1 if grey else 3)
        enlarged = Notes.ENLARGED if height < to_height or width < to_width else Notes(0)
        return pixels, enlarged | (Notes.FIRST_FRAME if several else Notes(0))


def list_errors(errors: Sequence[str], total: int, place: Path | str) -> str:
    """One message for all images of a folder or data set that cannot be used, of so many."""
    if len(errors) == 1:
        return shown(errors[0])
    few = f", among them these {MAX_NAMED}" if len(errors) > MAX_NAMED else ""
    first = f"{len(errors)} of {total} images in {shown(place)} cannot be used{few}:"
    return "\n  ".join([first, *map(shown, errors[:MAX_NAMED])])


def shown(path: Path | str) -> str:
    """A path as text that can be printed and stored: bytes that are not UTF-8 become escapes."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_deep(opened: Any) -> bool:
    """Whether an image, opened but not decoded yet, has more than 8 bits per channel.

    Pillow would drop the lower bits of a PNG, TIFF or PPM in colour, and its mode does not tell.
    """
    details = [tile[3] for tile in opened.tile]
    if opened.format in ("PNG", "TIFF") and any(";16" in str(detail) for detail in details):
        return True
    if opened.format == "PPM" and any(d[1] > 255 for d in details if isinstance(d, tuple)):
        return True
    return opened.mode[0] in "IF"


def check_png_rows(opened: Any, source: Path | bytes) -> None:
    """Raises ValueError if an image, decoded from `source`, is a PNG with rows missing.

    Pillow raises for a truncated file, but where the compressed stream itself ends early it leaves
    the missing rows black. The stream is examined only if the last rows are black or transparent
    throughout; otherwise they, and those before them, were present.
    """
    width, height = opened.size
    last = (opened.crop((0, y, width, y + 1)) for y in range(max(0, height - 2), height))
    if opened.format != "PNG" or all(row.getbbox() is not None for row in last):
        return
    content = source if isinstance(source, bytes) else source.read_bytes()
    _, _, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    bits = depth * _PNG_CHANNELS[colour]
    needed = 0
    for x, y, step_x, step_y in _PNG_PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        needed += max(0, rows) * (1 + -(-columns * bits // 8)) if columns > 0 else 0
    if (held := _inflated_size(content, needed)) < needed:
        raise ValueError(f"it has {held:,} bytes of pixels, and its header says {needed:,}")


def _inflated_size(content: bytes, max_bytes: int) -> int:
    """The size of a PNG's decompressed stream, counted up to `max_bytes`."""
    stream, at, found = zlib.decompressobj(), 8, 0
    while at + 8 <= len(content) and found < max_bytes and not stream.eof:
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        piece = content[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        while piece and found < max_bytes and not stream.eof:
            found += len(stream.decompress(piece, 1 << 20))
            piece = stream.unconsumed_tail
        at += 12 + length
    # What the decompressor still holds back.
    while found < max_bytes and not stream.eof and (more := stream.decompress(b"", 1 << 20)):
        found += len(more)
    return found
