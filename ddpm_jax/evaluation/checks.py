"""Checks that every measure makes of its images and features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def checked_images(caller: str, images: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Returns images as a uint8 NumPy array [N, H, W, C], N ≥ 1.

    Raises TypeError, naming the caller, for any other dtype, since a measure of floats would depend
    on their range and rounding; ValueError for any other shape.
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


def checked_features(caller: str, name: str, features: npt.ArrayLike) -> npt.NDArray[np.floating]:
    """Returns features [N, D] as a floating NumPy array, N ≥ 1, without a copy if it is one.

    Single precision is kept; callers cast it to float64 block by block, so that 50,000 Inception
    features take 0.4 GB instead of 0.8.

    Raises ValueError, naming the caller and the argument, for other shapes and for NaN or infinity.
    """
    x = np.asarray(features)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(
            f"{caller} needs {name} [N, D] with N ≥ 1, got shape {x.shape}. "
            "Features have one row per image; flatten maps first."
        )
    if not np.issubdtype(x.dtype, np.floating):
        x = x.astype(np.float64)
    bad = [
        start + int(np.flatnonzero(~rows)[0])
        for start in range(0, len(x), 4096)
        if not (rows := np.isfinite(x[start : start + 4096]).all(axis=1)).all()
    ]
    if bad:
        raise ValueError(
            f"{caller} needs finite {name}, got NaN or infinity, first in row {bad[0]}. "
            "Find their cause: dropping them would make the score look better than it is."
        )
    return x


def checked_pair(
    caller: str, real: npt.ArrayLike, generated: npt.ArrayLike, at_least: int
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """Checks real [N, D] and generated [M, D] features with at least `at_least` rows each.

    Raises ValueError as `checked_features` does, for different D, and for too few rows.
    """
    a = checked_features(caller, "real", real)
    b = checked_features(caller, "generated", generated)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{caller} needs equally many features on both sides, got {a.shape[1]} and "
            f"{b.shape[1]}. Use one feature function, on images of one size."
        )
    if min(len(a), len(b)) < at_least:
        raise ValueError(
            f"{caller} needs at least {at_least} examples on each side, got {len(a)} real and "
            f"{len(b)} generated. Take more images."
        )
    return a, b
