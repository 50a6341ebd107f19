"""The one check every measure makes of its images: uint8, [N, H, W, C], not empty."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def checked_images(caller: str, images: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Returns images as a uint8 NumPy array [N, H, W, C], N ≥ 1.

    Raises TypeError, naming the caller, for any other dtype: a measure of floats would depend on
    their range and on whether they were rounded, so two runs of it could not be compared. Raises
    ValueError for any other shape.
    """
    pixels = np.asarray(images)
    if pixels.dtype != np.uint8:
        raise TypeError(
            f"{caller} needs uint8 images, got dtype {pixels.dtype}. "
            "Map model values in [-1, 1] to pixels first: ddpm_jax.forward.pixels.to_pixels(x)."
        )
    if pixels.ndim != 4 or pixels.size == 0:
        raise ValueError(
            f"{caller} needs images [N, H, W, C] with N ≥ 1, got shape {pixels.shape}. "
            "One image is images[None], and greyscale has a last axis of one: images[..., None]."
        )
    return pixels
