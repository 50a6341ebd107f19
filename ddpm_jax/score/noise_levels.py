"""Noise levels σ_1 > … > σ_L for score networks, and the step size that suits them.

Song, Ermon 2019 (NCSN, arXiv 1907.05600) take a geometric sequence; Song, Ermon 2020 (NCSNv2, arXiv
2006.09011) say which:

    Technique 1   σ_1 as large as the largest distance between two examples
    Technique 2   the ratio γ = σ_{i-1}/σ_i, so that neighbouring levels overlap:
                  Φ(√(2d) (γ-1) + 3γ) - Φ(√(2d) (γ-1) - 3γ) = C ≈ 0.5
    Technique 4   the step size with which T Langevin steps per level end closest to its variance

Everything here is computed on the host in float64, from numbers and NumPy arrays.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.checks import check_number, check_whole, host_table
from ddpm_jax.types import Array, ArrayLike, describe, host_array

# Technique 2: the share of a level within three standard deviations of its neighbour's shell.
_REACH = 3.0


def geometric_noise_levels(sigma_max: float, sigma_min: float, num_levels: int) -> Array:
    """σ_1 = sigma_max > … > σ_L = sigma_min in geometric progression, float32 [L].

    In units of the data. NCSN: 1 to 0.01 in 10 levels, NCSNv2 on CIFAR-10: 50 to 0.01 in 232, both
    for pixels in [0, 1]; pixels in [-1, 1] are twice as far apart. Raises ValueError unless
    sigma_max > sigma_min > 0 and num_levels >= 2, and when float32 cannot tell levels apart.

    >>> score.geometric_noise_levels(1.0, 0.01, 3)
    Array([1.  , 0.1 , 0.01], dtype=float32)
    """
    _check_range("geometric_noise_levels", sigma_max, sigma_min)
    remedy = "For one level use jnp.array([sigma]) itself."
    num_levels = check_whole(
        "geometric_noise_levels", "num_levels", num_levels, least=2, remedy=remedy
    )
    sigmas = np.geomspace(sigma_max, sigma_min, num_levels).astype(np.float32)
    if not (np.diff(sigmas) < 0).all():
        raise ValueError(
            f"geometric_noise_levels: {num_levels} levels from {sigma_max} to {sigma_min} are "
            "closer than float32 can tell. Take fewer levels."
        )
    return jnp.asarray(sigmas)


def largest_pairwise_distance(data: ArrayLike, *, block_size: int = 1024) -> float:
    """The largest Euclidean distance between two examples of data [N, ...]: a σ_1 (Technique 1).

    σ_1 has to be comparable with it for chains to cross between any two examples. Exact, in
    N²d/2 multiplications, as matrix products of `block_size` examples without a second copy of the
    data; a subset gives a lower bound, usually a close one. In units of the data as given: rescale
    uint8 pixels to the network's range first.

    Raises ValueError for fewer than two examples, and for values that are not finite.

    >>> score.largest_pairwise_distance(np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]))
    5.0
    """
    call = "largest_pairwise_distance"
    block_size = check_whole(call, "block_size", block_size)
    data = host_array(call, "data", data)
    if data.dtype.kind not in "iuf" and data.dtype != jnp.bfloat16:
        raise TypeError(f"{call} needs data of real numbers, got {describe(data)}.")
    if data.ndim == 0 or len(data) < 2 or data[0].size == 0:
        raise ValueError(f"{call} needs data [N, ...] of N >= 2 examples, got shape {data.shape}.")
    data = data.reshape(len(data), -1)
    # Distances from the centre, so that ‖a‖² + ‖b‖² - 2aᵀb does not cancel where the data sits far
    # from the origin.
    center = data.mean(axis=0, dtype=np.float64)
    if not np.isfinite(center).all():
        raise ValueError("largest_pairwise_distance needs finite data, got NaN or infinity.")

    def block(start: int) -> np.ndarray:
        return (data[start : start + block_size] - center).astype(np.float32)

    best, pair = -np.inf, (0, 1)
    for i in range(0, len(data), block_size):
        a = block(i)
        a_squared = np.square(a).sum(axis=1)
        for j in range(i, len(data), block_size):
            b = a if j == i else block(j)
            squared = a_squared[:, None] + np.square(b).sum(axis=1) - 2.0 * (a @ b.T)
            row, column = np.unravel_index(np.argmax(squared), squared.shape)
            if squared[row, column] > best:
                best, pair = squared[row, column], (i + int(row), j + int(column))
    # float32 found the pair; its distance is computed again in float64.
    first, second = (data[index].astype(np.float64) for index in pair)
    return float(np.linalg.norm(first - second))


def geometric_ratio(dim: int, *, overlap: float = 0.5) -> float:
    """γ > 1 with Φ(√(2d) (γ-1) + 3γ) - Φ(√(2d) (γ-1) - 3γ) = overlap  (NCSNv2, Technique 2).

    In many dimensions N(0, σ² I) is a thin shell of radius σ√d, and a chain at one level starts
    from the shell of the level above: `overlap` is the share of that shell it already covers. Found
    by bisection; about 1 + 3/√(2d).

    The paper asks for ≈ 0.5. Its published ladders all have 0.567 (232 levels for CIFAR-10, where
    0.5 gives 219; 500, 788, 1086, 2311 for its other sets), so pass that to reproduce them.

    Args:
        dim: d, dimensions of an event, H·W·C for images.
        overlap: C, in (0, 0.99].

    Raises ValueError for dim < 5, where levels of any ratio overlap by almost 1: choose a ratio by
    hand there, 2 for instance.

    >>> round(score.geometric_ratio(32 * 32 * 3), 2)
    1.04
    """
    return _ratio("geometric_ratio", dim, overlap)


def _ratio(call: str, dim: int, overlap: float) -> float:
    remedy = (
        "In fewer dimensions noise of any two levels overlaps: use geometric_noise_levels with a "
        "ratio of about 2."
    )
    dim = check_whole(call, "dim", dim, least=5, remedy=remedy)
    check_number(call, "overlap", overlap, "The paper asks for 0.5.", within="(0, 0.99]")
    root = math.sqrt(2.0 * dim)

    def covered(ratio: float) -> float:
        shift = root * (ratio - 1.0)
        return _normal_cdf(shift + _REACH * ratio) - _normal_cdf(shift - _REACH * ratio)

    # Covered is 0.997 at γ = 1, rises a little, then falls to 0 for √(2d) > 3: one crossing.
    low, high = 1.0, 2.0
    while covered(high) > overlap:
        low, high = high, 2.0 * high
    while True:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            return middle
        low, high = (middle, high) if covered(middle) > overlap else (low, middle)


def ncsnv2_noise_levels(
    sigma_max: float, sigma_min: float, dim: int, *, overlap: float = 0.5
) -> Array:
    """Levels from sigma_max to sigma_min whose ratio is nearest to `geometric_ratio`'s, [L].

    Techniques 1 and 2: sigma_max from `largest_pairwise_distance`, sigma_min small enough to be
    invisible (0.01 in the paper, for pixels in [0, 1]). `overlap` and errors are those of
    `geometric_ratio`.

    >>> score.ncsnv2_noise_levels(50.0, 0.01, 32 * 32 * 3).shape
    (219,)
    """
    _check_range("ncsnv2_noise_levels", sigma_max, sigma_min)
    ratio = _ratio("ncsnv2_noise_levels", dim, overlap)
    steps = max(1, round(math.log(sigma_max / sigma_min) / math.log(ratio)))
    return geometric_noise_levels(sigma_max, sigma_min, steps + 1)


def langevin_step_size(sigmas: ArrayLike, num_steps_per_level: int) -> float:
    """The `step_size` of `annealed_langevin_chains` for geometric levels (NCSNv2, Technique 4).

    For data at one point, a chain that enters level i with variance σ_{i-1}² = γ² σ_i² leaves it
    after T steps with variance s_T²,

        s_T²/σ_i² = (1-a)^{2T} (γ² - 2/(2-a)) + 2/(2-a),      a = step_size/(2σ_L²),

    the same at every level. The step size returned brings the ratio closest to 1. It is *twice* the
    ε of NCSNv2, whose steps are x + ε s + √(2ε) z; this package, as NCSN, takes x + ½ε s + √ε z.
    The ε published for CIFAR-10, 6.2e-6 with T = 5, is 1.24e-5 here.

    Args:
        sigmas: [L], geometric and falling.
        num_steps_per_level: T.

    Raises ValueError for levels of another kind, or T < 1.

    >>> sigmas = score.geometric_noise_levels(50.0, 0.01, 232)
    >>> round(score.langevin_step_size(sigmas, 5), 7)
    1.24e-05
    """
    call = "langevin_step_size"
    levels = host_table(call, "sigmas", sigmas)
    num_steps_per_level = check_whole(call, "num_steps_per_level", num_steps_per_level)
    if len(levels) < 2 or not (levels > 0).all():
        raise ValueError(
            "langevin_step_size needs sigmas [L] of L >= 2 positive levels, got shape "
            f"{levels.shape}. geometric_noise_levels makes them."
        )
    logs = np.log(levels)
    mean_step = (logs[0] - logs[-1]) / (len(levels) - 1)
    if not (mean_step > 0 and np.allclose(-np.diff(logs), mean_step, rtol=0.02, atol=1e-6)):
        raise ValueError(
            "langevin_step_size needs geometric levels, falling by one ratio; the ratios here "
            f"lie between {np.exp(-np.diff(logs).max()):.6g} and {np.exp(-np.diff(logs).min()):.6g}"
            ". geometric_noise_levels makes one."
        )
    gain = math.expm1(2.0 * mean_step)

    def excess(a: np.ndarray) -> np.ndarray:
        """The ratio less 1: kept (γ² - 1) + (1 - kept) a/(2-a), which does not cancel."""
        log_kept = 2.0 * num_steps_per_level * np.log1p(-a)
        return np.exp(log_kept) * gain - np.expm1(log_kept) * a / (2.0 - a)

    # On 0 < a < 1 the ratio is above 1, falls and rises; beyond, 2-a keeps as much of the start as
    # a and adds more noise. So the minimum is inside, found by zooming in.
    low, high = 1e-12, 1.0 - 1e-12
    for _ in range(12):
        grid = np.geomspace(low, high, 65)
        best = int(np.clip(np.argmin(excess(grid)), 1, 63))
        low, high = grid[best - 1], grid[best + 1]
    return float(2.0 * math.sqrt(low * high) * levels[-1] ** 2)


def _check_range(call: str, sigma_max: float, sigma_min: float) -> None:
    remedy = "NCSNv2 uses 50 and 0.01 for CIFAR-10 in [0, 1]."
    low = check_number(call, "sigma_min", sigma_min, remedy, within="(0, inf)")
    check_number(call, "sigma_max", sigma_max, remedy, within=f"(sigma_min={low}, inf)")


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))
