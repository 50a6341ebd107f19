"""Finds the training images nearest to a sample, to reveal memorisation.

A model that copies has samples at distance 0 of the training set, or much nearer to it than
held-out images are. Neighbours in pixel space reveal plain copies, not shifted or recoloured ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddpm_jax.forward.checks import check_whole, host_pixels

# One block of distances takes 32 MB, and the images of a block 100 MB at 32×32×3, in float64.
_SAMPLES_AT_ONCE = 1024
_TRAIN_AT_ONCE = 4096


class Neighbours(NamedTuple):
    """Nearest first: indices [N, k] int64 into the training set, distances [N, k] float32."""

    indices: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float32]


def nearest_neighbours(samples: npt.ArrayLike, train: npt.ArrayLike, k: int = 1) -> Neighbours:
    """Finds the k nearest of train [M, H, W, C] to each of samples [N, H, W, C], both uint8.

    The distance is Euclidean, in pixel levels: ‖a - b‖ = √(‖a‖² - 2 aᵀb + ‖b‖²). The search is
    exact, and equally distant images are ordered by index. A copy has distance exactly 0.

    Raises TypeError for anything but uint8, ValueError if shapes differ or k is not in 1..M.
    """
    a = host_pixels("nearest_neighbours", samples)
    b = host_pixels("nearest_neighbours", train)
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(
            f"nearest_neighbours needs images of one shape, got samples {a.shape[1:]} and train "
            f"{b.shape[1:]}. Bring both to one size first, and record how."
        )
    remedy = "There are no more images in train."
    k = check_whole("nearest_neighbours", "k", k, most=len(b), remedy=remedy)
    a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    found = [
        _nearest(a[i : i + _SAMPLES_AT_ONCE], b, k) for i in range(0, len(a), _SAMPLES_AT_ONCE)
    ]
    ranked = np.concatenate(found)
    distances = np.sqrt(ranked // len(b)).astype(np.float32)
    return Neighbours(ranked % len(b), distances)


def _nearest(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], k: int) -> npt.NDArray[np.int64]:
    """Returns the k smallest of ‖a - b‖² · M + index over the rows of b [M, D], sorted: [N, k]."""
    # Sums of squared levels are integers below 2⁵³, so float64 represents them exactly; float32
    # does not beyond 258 values per image. Distance and index share one number to break ties.
    x = a.astype(np.float64)
    best = np.empty((len(a), 0), dtype=np.int64)
    for start in range(0, len(b), _TRAIN_AT_ONCE):
        y = b[start : start + _TRAIN_AT_ONCE].astype(np.float64)
        squared = np.square(x).sum(axis=1)[:, None] - 2 * (x @ y.T) + np.square(y).sum(axis=1)
        ranks = squared.astype(np.int64) * len(b) + np.arange(start, start + len(y))
        best = np.concatenate([best, ranks], axis=1)
        if best.shape[1] > k:
            best = np.partition(best, k - 1, axis=1)[:, :k]
    return np.sort(best, axis=1)
