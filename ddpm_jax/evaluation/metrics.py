"""Distances between sets of images: the Fréchet distance of two Gaussians, and baselines.

    d²(a, b) = ‖μ_a - μ_b‖² + tr(Σ_a + Σ_b - 2 (Σ_a^½ Σ_b Σ_a^½)^½)

is the squared 2-Wasserstein distance of N(μ_a, Σ_a) and N(μ_b, Σ_b) (Dowson & Landau 1982). Over
features of the Inception network it is the FID of Heusel et al. (2017); over the pixels it needs no
network, and suits small images. Its unit is the square of that of the features: pixels in [-1, 1]
give four times the value of pixels in [0, 1].

Both moments are estimates, so the distance is larger for fewer images: compare only values with
equal counts, and also report the distance of as many held-out images.

Everything runs on the host in float64; features come in batches of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddpm_jax.evaluation.checks import checked_images

Float64 = npt.NDArray[np.float64]


class Moments(NamedTuple):
    """Mean [D] and unbiased covariance [D, D] (divided by count - 1) of `count` feature vectors.

    The covariance of a single vector, where 1/(count - 1) is undefined, is set to 0, so that
    batches can be merged from the first example on.
    """

    mean: Float64
    covariance: Float64
    count: int


def moments(features: npt.ArrayLike) -> Moments:
    """Computes mean and covariance of features [N, D] in float64.

    Raises ValueError for another shape, for no features, and for values that are not finite.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(
            f"moments needs features [N, D] with N ≥ 1, got shape {x.shape}. "
            "Flatten images with pixel_features(images)."
        )
    if not np.isfinite(x).all():
        rows = np.flatnonzero(~np.isfinite(x).all(axis=1))
        raise ValueError(
            f"moments needs finite features, got NaN or infinity in {rows.size} of {x.shape[0]} "
            f"rows, first in row {rows[0]}. Find their cause: dropping them would make the score "
            "look better than it is."
        )
    mean = x.mean(axis=0)
    centred = x - mean
    return Moments(mean, centred.T @ centred / max(x.shape[0] - 1, 1), x.shape[0])


def update_moments(running: Moments | None, features: npt.ArrayLike) -> Moments:
    """Merges features [N, D] into running moments, or starts them if `running` is None.

    With n = n_a + n_b and δ = μ_b - μ_a (Chan, Golub & LeVeque 1979):

        μ = μ_a + δ n_b/n,    (n-1) Σ = (n_a-1) Σ_a + (n_b-1) Σ_b + δ δᵀ n_a n_b/n

    Raises ValueError as `moments` does, and if the batch has another number of features.
    """
    batch = moments(features)
    if running is None:
        return batch
    if batch.mean.shape != running.mean.shape:
        raise ValueError(
            f"update_moments has moments of {running.mean.size} features and got a batch of "
            f"{batch.mean.size}. One Moments belongs to one feature space; start another with None."
        )
    count = running.count + batch.count
    delta = batch.mean - running.mean
    scatter = (
        (running.count - 1) * running.covariance
        + (batch.count - 1) * batch.covariance
        + np.outer(delta, delta) * (running.count * batch.count / count)
    )
    return Moments(running.mean + delta * (batch.count / count), scatter / (count - 1), count)


def _principal_axes(covariance: Float64) -> tuple[Float64, Float64]:
    """Splits Σ [D, D] of rank r into axes V [D, r] and spreads √λ [r]: Σ = V diag(λ) Vᵀ."""
    eigenvalues, axes = np.linalg.eigh((covariance + covariance.T) / 2)
    # Rounding leaves about ±1e-16 λ_max where an eigenvalue should be 0; its square root would be
    # 1e-8. So eigenvalues indistinguishable from 0 are dropped. Singular covariances are the rule
    # if images are few or have corners that are always black.
    kept = eigenvalues > eigenvalues[-1] * eigenvalues.size * np.finfo(np.float64).eps
    return axes[:, kept], np.sqrt(eigenvalues[kept])


def frechet_distance(a: Moments, b: Moments) -> float:
    """Computes ‖μ_a - μ_b‖² + tr(Σ_a + Σ_b - 2 (Σ_a^½ Σ_b Σ_a^½)^½) in float64.

    With Σ_a = F_a F_aᵀ and Σ_b = F_b F_bᵀ the last trace is the sum of the singular values of
    F_aᵀ F_b. Unlike a square root of the product Σ_a Σ_b it stays real, exact and symmetric in a
    and b for singular covariances (fewer images than features), and adds nothing to their
    diagonals.

    Returns a value ≥ 0. Raises ValueError if the numbers of features differ, and for fewer than two
    examples, which have no covariance. Sources: Dowson & Landau (1982); Heusel et al. (2017).
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"frechet_distance needs moments of the same features, got {a.mean.size} and "
            f"{b.mean.size} of them. Use one feature function, on images of one size."
        )
    if min(a.count, b.count) < 2:
        raise ValueError(
            f"frechet_distance needs at least two examples on each side, got {a.count} and "
            f"{b.count}; a stable value needs far more of them than features."
        )
    (axes_a, spread_a), (axes_b, spread_b) = map(_principal_axes, (a.covariance, b.covariance))
    overlap = spread_a[:, None] * (axes_a.T @ axes_b) * spread_b
    cross = np.linalg.svd(overlap, compute_uv=False).sum() if overlap.size else 0.0
    means = np.square(a.mean - b.mean).sum()
    distance = means + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return max(float(distance), 0.0)


def pixel_features(images: npt.ArrayLike) -> Float64:
    """Flattens uint8 images [N, H, W, C] to float64 features [N, H·W·C] in [-1, 1].

    Raises TypeError for anything but uint8, ValueError for another shape.
    """
    pixels = checked_images("pixel_features", images)
    return pixels.reshape(pixels.shape[0], -1) / 127.5 - 1.0


def fitted_gaussian_images(images: npt.ArrayLike, count: int, seed: int) -> npt.NDArray[np.uint8]:
    """Draws `count` uint8 images from the Gaussian with the moments of images [N, H, W, C].

    The naive baseline: a model that knows all pairwise correlations of pixels and nothing else.
    Samples μ + Σ^½ z, in pixel levels, are rounded and clipped to 0..255. A useful generative model
    is clearly closer to the data.

    Raises TypeError for anything but uint8, ValueError for another shape, for fewer than two
    images, and for a count below one.
    """
    pixels = checked_images("fitted_gaussian_images", images)
    if pixels.shape[0] < 2 or count < 1:
        raise ValueError(
            f"fitted_gaussian_images needs at least two images and count ≥ 1, got "
            f"{pixels.shape[0]} images and {count=}."
        )
    fitted = moments(pixels.reshape(pixels.shape[0], -1))
    axes, spread = _principal_axes(fitted.covariance)
    # The symmetric root is unique. The axes alone would do as well, but their signs depend on the
    # linear algebra library, so the same seed would draw other images on another machine.
    root = (axes * spread) @ axes.T
    normal = np.random.default_rng(seed).standard_normal((count, fitted.mean.size))
    levels = np.clip(np.rint(fitted.mean + normal @ root), 0, 255)
    return levels.astype(np.uint8).reshape(count, *pixels.shape[1:])


def rms_difference(
    a: npt.ArrayLike, b: npt.ArrayLike, where: npt.NDArray[np.bool_] | None = None
) -> float:
    """Computes √(mean (a - b)²) in float64 over all entries, or those where `where` is True.

    The arrays and `where` are broadcast. Raises ValueError if `where` is False everywhere.
    """
    squares = np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    if where is None:
        return float(np.sqrt(squares.mean()))
    chosen = np.broadcast_to(where, squares.shape)
    if not chosen.any():
        raise ValueError(
            "rms_difference has nothing to compare: `where` is False everywhere. Select at least "
            "one entry."
        )
    return float(np.sqrt(squares[chosen].mean()))


def rms_pairwise(images: npt.ArrayLike, where: npt.NDArray[np.bool_] | None = None) -> float:
    """Computes the RMS difference of two distinct images in groups of K ≥ 2, [..., K, H, W, C].

    √(2 Σ_k (x_k - x̄)²/(K-1)), with the mean over groups and entries taken inside the root. For
    draws from one distribution it estimates the RMS difference of two new draws, for any K. `where`
    [..., H, W, C] broadcasts to the images without their axis K.
    """
    variance = np.asarray(images, np.float64).var(axis=-4, ddof=1)
    return rms_difference(np.sqrt(2.0 * variance), 0.0, where)


class Interval(NamedTuple):
    """A statistic's value on all examples, with the bounds of its sampling error."""

    estimate: float
    low: float
    high: float


def bootstrap_interval(
    statistic: Callable[..., float],
    arrays: Sequence[npt.ArrayLike],
    *,
    seed: int,
    repeats: int = 200,
    level: float = 0.95,
) -> Interval:
    """Resamples each array along its first axis and returns statistic(*arrays) with an interval.

    The interval contains the fraction `level` of the resampled values, shifted so that their mean
    equals the estimate: resampling repeats examples, which adds a bias to a Fréchet distance that
    is not part of its scatter. The estimate's own bias remains. For unbiased statistics, such as a
    share, this is the percentile interval (Efron 1979).

    Raises ValueError for an empty array, fewer than two repeats, or a level outside (0, 1).
    """
    samples = [np.asarray(array) for array in arrays]
    if not samples or any(s.ndim == 0 or s.shape[0] == 0 for s in samples):
        shapes = [s.shape for s in samples]
        raise ValueError(f"bootstrap_interval needs arrays of at least one example, got {shapes=}.")
    if repeats < 2 or not 0 < level < 1:
        raise ValueError(
            f"bootstrap_interval needs repeats ≥ 2 and 0 < level < 1, got {repeats=}, {level=}."
        )
    generator = np.random.default_rng(seed)
    estimate = float(statistic(*samples))
    values = np.empty(repeats)
    for i in range(repeats):
        drawn = (s[generator.integers(s.shape[0], size=s.shape[0])] for s in samples)
        values[i] = statistic(*drawn)
    tail = (1 - level) / 2
    low, high = np.quantile(values, (tail, 1 - tail)) - values.mean() + estimate
    return Interval(estimate, float(low), float(high))
