"""One image file to uint8 pixels: upright, cropped to a square, resized without aliasing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data.png_rows import check_rows
from ddpm_jax.files import check_regular

# Pillow knows many more, some of which start other programs (EPS runs Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
FILTER = "lanczos"


def decode_image(
    file: Path, resolution: int, *, grey: bool = False, max_pixels: int = 89_478_485
) -> tuple[np.ndarray, bool]:
    """Decodes `file` to uint8 [R, R, C], R = `resolution`, and tells whether it had to be enlarged.

    The EXIF orientation is applied, transparency is laid over white, colour becomes RGB (C = 3) or,
    with `grey`, luminance (C = 1); of an animation the first frame is taken. The central square on
    the shorter side, at whole pixels, is resized with Lanczos-3, whose support widens with the
    reduction. So every source pixel counts and nothing aliases, as it would with a filter of fixed
    support (Parmar et al. 2022, "On Aliased Resizing"), and more detail is kept than by averaging
    boxes. An image that already has the size keeps its pixels.

    Raises ValueError naming the file when it is none of `FORMATS`, truncated, damaged, of more than
    8 bits a channel, or a decompression bomb: larger than `max_pixels`, by default the size Pillow
    warns from, or twice Pillow's `Image.MAX_IMAGE_PIXELS`, which it refuses itself.
    """
    from PIL import Image, ImageOps

    try:
        check_regular(file)
        with Image.open(file, formats=FORMATS) as opened:
            # Asked of the header, before a pixel is decoded.
            if opened.width * opened.height > max_pixels:
                raise ValueError(f"{opened.width}×{opened.height} pixels are over {max_pixels:,}")
            if is_deep(opened):
                raise ValueError(f"mode {opened.mode} has more than 8 bits a channel; convert it")
            opened.load()
            check_rows(opened, file)
            image = ImageOps.exif_transpose(opened)
            image = _without_transparency(image).convert("L" if grey else "RGB")
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.resize(
                (resolution, resolution),
                Image.Resampling.LANCZOS,
                box=(left, top, left + side, top + side),
            )
            pixels = np.asarray(image).reshape(resolution, resolution, 1 if grey else 3)
            return pixels, side < resolution
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and others
        raise ValueError(
            f"{file} could not be read as an image: {error}. Remove it, or convert it to PNG."
        ) from error


def is_deep(opened: Any) -> bool:
    """Tells whether an image, opened but not decoded yet, has more than 8 bits a channel.

    Of a PNG in colour the mode does not tell, and Pillow would drop the lower 8 bits.
    """
    deep = opened.format == "PNG" and any(";16" in str(tile[3]) for tile in opened.tile)
    return deep or opened.mode[0] in "IF"


def _without_transparency(image: Any) -> Any:
    from PIL import Image

    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
