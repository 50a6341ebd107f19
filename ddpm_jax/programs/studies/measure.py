"""Differences between images in grey levels of 255, and how they are averaged in every study."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GREY = 127.5
"""Grey levels in one unit of model values, which go from -1 to 1."""


def rms_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, where: npt.NDArray[np.bool_] | None = None
) -> float:
    """√mean (a - b)² over everything that is True in `where`, all of it by default, in a's units.

    The arrays are broadcast, `where` too. Raises ValueError when it leaves nothing.
    """
    squares = np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    if where is None:
        return float(np.sqrt(squares.mean()))
    chosen = np.broadcast_to(where, squares.shape)
    if not chosen.any():
        raise ValueError("rms_difference was told to compare nothing: `where` is False throughout.")
    return float(np.sqrt(squares[chosen].mean()))


def rms_pairwise(images: npt.ArrayLike, where: npt.NDArray[np.bool_] | None = None) -> float:
    """The root mean square difference of two distinct rows of images [..., K, H, W, C], K ≥ 2.

    √(2 Σ_k (x_k - x̄)²/(K-1)), averaged inside the root: for draws from one distribution it
    estimates the difference of two fresh ones, whatever K. `where` [..., H, W, C] broadcasts to the
    images without their axis K.
    """
    variance = np.asarray(images, np.float64).var(axis=-4, ddof=1)
    return rms_difference(np.sqrt(2.0 * variance), 0.0, where)
