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
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from ddpm_jax.evaluation.checks import checked_features
from ddpm_jax.forward.checks import (
    check_function,
    check_kind,
    check_number,
    check_whole,
    host_numbers,
    host_pixels,
    is_number,
)
from ddpm_jax.types import describe, host_array

Float64 = npt.NDArray[np.float64]


class Moments(NamedTuple):
    """Mean [D] and unbiased covariance [D, D] (divided by count - 1) of `count` feature vectors.

    The covariance of a single vector, where 1/(count - 1) is undefined, is set to 0, so that
    batches can be merged from the first example on.
    """

    mean: Float64
    covariance: Float64
    count: int


_SOURCE = "from moments(features)"


def check_moments(call: str, name: str, value: Moments) -> None:
    """Raises TypeError for anything but Moments, ValueError for shapes or values of none."""
    check_kind(call, name, value, Moments, _SOURCE)
    size = np.size(value.mean)
    if np.shape(value.mean) != (size,) or np.shape(value.covariance) != (size, size):
        raise ValueError(
            f"{call} needs {name} with a mean [D] and a covariance [D, D], got "
            f"{np.shape(value.mean)} and {np.shape(value.covariance)}."
        )
    if not (np.isfinite(value.mean).all() and np.isfinite(value.covariance).all()):
        raise ValueError(f"{call} needs finite {name}, got NaN or infinity.")


def moments(features: npt.ArrayLike) -> Moments:
    """Computes mean and covariance of features [N, D] in float64.

    Raises ValueError for another shape, for no features, and for values that are not finite.
    """
    return _moments("moments", features)


def _moments(caller: str, features: npt.ArrayLike) -> Moments:
    x = checked_features(caller, "features", features).astype(np.float64)
    mean = x.mean(axis=0)
    centred = x - mean
    return Moments(mean, centred.T @ centred / max(x.shape[0] - 1, 1), x.shape[0])


def update_moments(running: Moments | None, features: npt.ArrayLike) -> Moments:
    """Merges features [N, D] into running moments, or starts them if `running` is None.

    With n = n_a + n_b and δ = μ_b - μ_a (Chan, Golub & LeVeque 1979):

        μ = μ_a + δ n_b/n,    (n-1) Σ = (n_a-1) Σ_a + (n_b-1) Σ_b + δ δᵀ n_a n_b/n

    Raises ValueError as `moments` does, and if the batch has another number of features.
    """
    batch = _moments("update_moments", features)
    if running is None:
        return batch
    check_kind("update_moments", "running", running, Moments, _SOURCE)
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
    for name, one in (("a", a), ("b", b)):
        check_moments("frechet_distance", name, one)
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
    pixels = host_pixels("pixel_features", images)
    return pixels.reshape(pixels.shape[0], -1) / 127.5 - 1.0


def fitted_gaussian_images(images: npt.ArrayLike, count: int, seed: int) -> npt.NDArray[np.uint8]:
    """Draws `count` uint8 images from the Gaussian with the moments of images [N, H, W, C].

    The naive baseline: a model that knows all pairwise correlations of pixels and nothing else.
    Samples μ + Σ^½ z, in pixel levels, are rounded and clipped to 0..255. A useful generative model
    is clearly closer to the data.

    Raises TypeError for anything but uint8, ValueError for another shape, for fewer than two
    images, and for a count below one.
    """
    pixels = host_pixels("fitted_gaussian_images", images)
    count = check_whole("fitted_gaussian_images", "count", count)
    seed = check_whole("fitted_gaussian_images", "seed", seed, least=0)
    if pixels.shape[0] < 2:
        raise ValueError("fitted_gaussian_images needs at least two images, got one.")
    fitted = None
    for first in range(0, len(pixels), 4096):  # large sets are not copied to float64 as a whole
        block = pixels[first : first + 4096]
        fitted = update_moments(fitted, block.reshape(len(block), -1))
    assert fitted is not None
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

    The arrays and `where` are broadcast. Raises TypeError for what is not real numbers, or a
    `where` that is not bools; ValueError for shapes that do not broadcast, and if there is nothing
    to compare.
    """
    call = "rms_difference"
    x, y = host_numbers(call, "a", a), host_numbers(call, "b", b)
    try:
        squares = np.square(x.astype(np.float64) - y.astype(np.float64))
    except ValueError:
        raise ValueError(
            f"{call} needs a and b of shapes that broadcast, got {x.shape} and {y.shape}."
        ) from None
    return _root_mean(call, squares, where)


def _root_mean(call: str, squares: Float64, where: npt.NDArray[np.bool_] | None) -> float:
    """√(mean of squares), over the entries where `where` is True."""
    if where is not None:
        mask = host_array(call, "where", where)
        if mask.dtype != bool:
            raise TypeError(f"{call} needs where, an array of bools, got {describe(where)}.")
        try:
            squares = squares[np.broadcast_to(mask, squares.shape)]
        except ValueError:
            raise ValueError(
                f"{call} needs where of a shape that broadcasts to {squares.shape}, got "
                f"{mask.shape}."
            ) from None
    if not squares.size:
        raise ValueError(
            f"{call} has nothing to compare: `where` is False everywhere, or there are no values. "
            "Select at least one entry."
        )
    return float(np.sqrt(squares.mean()))


def rms_pairwise(images: npt.ArrayLike, where: npt.NDArray[np.bool_] | None = None) -> float:
    """Computes the RMS difference of two distinct images in groups of K ≥ 2, [..., K, H, W, C].

    √(2 Σ_k (x_k - x̄)²/(K-1)), with the mean over groups and entries taken inside the root. For
    draws from one distribution it estimates the RMS difference of two new draws, for any K. `where`
    [..., H, W, C] broadcasts to the images without their axis K. Raises as `rms_difference` does,
    and ValueError for groups of fewer than two images.
    """
    groups = host_numbers("rms_pairwise", "images", images)
    if groups.ndim < 4 or groups.shape[-4] < 2:
        raise ValueError(
            f"rms_pairwise needs images [..., K, H, W, C] with K ≥ 2, got shape {groups.shape}."
        )
    variance = groups.astype(np.float64).var(axis=-4, ddof=1)
    return _root_mean("rms_pairwise", 2.0 * variance, where)


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
    call = "bootstrap_interval"
    check_function(call, "statistic", statistic, "of the arrays, to a number")
    if not isinstance(arrays, Sequence) or isinstance(arrays, str):
        raise TypeError(f"{call} needs arrays, a list of arrays, got {describe(arrays)}.")
    samples = [host_array(call, "arrays", cast(Any, array)) for array in arrays]
    if not samples or any(s.ndim == 0 or s.shape[0] == 0 for s in samples):
        shapes = [s.shape for s in samples]
        raise ValueError(f"{call} needs arrays of at least one example, got {shapes=}.")
    repeats = check_whole(call, "repeats", repeats, least=2)
    check_number(call, "level", level, within="(0, 1)")
    generator = np.random.default_rng(check_whole(call, "seed", seed, least=0))
    found = statistic(*samples)
    if not is_number(found) and (np.shape(found) or not hasattr(found, "dtype")):
        raise TypeError(f"{call} needs a statistic that is a number, got {describe(found)}.")
    estimate = float(found)
    values = np.empty(repeats)
    for i in range(repeats):
        drawn = (s[generator.integers(s.shape[0], size=s.shape[0])] for s in samples)
        values[i] = statistic(*drawn)
    tail = (1 - level) / 2
    low, high = np.quantile(values, (tail, 1 - tail)) - values.mean() + estimate
    return Interval(estimate, float(low), float(high))
