"""The Kernel Inception Distance of Bińkowski et al. (2018): a squared maximum mean discrepancy.

    k(x, y) = (xᵀy / D + 1)³

    MMD² = Σ_{i≠j} k(x_i, x_j) / (n(n-1)) + Σ_{i≠j} k(y_i, y_j) / (m(m-1))
           - 2 Σ_{i,j} k(x_i, y_j) / (nm)

Unlike a Fréchet distance, the estimate is unbiased at every sample size. So it may be negative if
both sets have the same distribution, and values from different counts can be compared.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddpm_jax.evaluation.checks import checked_pair
from ddpm_jax.forward.checks import check_whole

_ROWS = 2048  # one block of kernel values takes 32 MB


class KernelDistance(NamedTuple):
    """Mean and standard deviation (divisor: their number) of MMD² over random subsets.

    `std` is the scatter of a single subset's value; the error of the mean is about std /
    √num_subsets, and somewhat more if the subsets share many examples.
    """

    mean: float
    std: float
    num_subsets: int
    subset_size: int


def _kernel_sum(a: npt.NDArray, b: npt.NDArray, *, diagonal: bool = True) -> float:
    """Sums (xᵀy/D + 1)³ over the rows x of a [N, D] and y of b [M, D], in float64 and in blocks."""
    total = 0.0
    for i in range(0, len(a), _ROWS):
        x = a[i : i + _ROWS].astype(np.float64)
        for j in range(0, len(b), _ROWS):
            y = b[j : j + _ROWS].astype(np.float64)
            total += float(((x @ y.T / x.shape[1] + 1.0) ** 3).sum())
        if not diagonal:
            total -= float(((np.square(x).sum(axis=1) / x.shape[1] + 1.0) ** 3).sum())
    return total


def _mmd(a: npt.NDArray, b: npt.NDArray) -> float:
    n, m = len(a), len(b)
    within_a = _kernel_sum(a, a, diagonal=False) / (n * (n - 1))
    within_b = _kernel_sum(b, b, diagonal=False) / (m * (m - 1))
    return within_a + within_b - 2 * _kernel_sum(a, b) / (n * m)


def polynomial_mmd(real: npt.ArrayLike, generated: npt.ArrayLike) -> float:
    """Computes the unbiased MMD² of all features real [N, D] and generated [M, D].

    The kernel is (xᵀy/D + 1)³, summed in float64 and in blocks: memory stays bounded, time grows as
    (N + M)² D.

    Raises ValueError for other shapes, for values that are not finite, and for fewer than two
    examples on a side. Source: Bińkowski et al. (2018); Gretton et al. (2012), Eq. 3.
    """
    return _mmd(*checked_pair("polynomial_mmd", real, generated, 2))


def kernel_distance(
    real: npt.ArrayLike,
    generated: npt.ArrayLike,
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Computes the KID of features real [N, D] and generated [M, D]: `polynomial_mmd` over subsets.

    Each of `num_subsets` subsets takes `subset_size` examples of each side, drawn without
    replacement with `seed`. The defaults are those of the paper's code.

    Raises ValueError as `polynomial_mmd` does, for subsets larger than a side or smaller than two,
    and for no subsets. Source: Bińkowski et al. (2018).
    """
    a, b = checked_pair("kernel_distance", real, generated, 2)
    num_subsets = check_whole("kernel_distance", "num_subsets", num_subsets)
    seed = check_whole("kernel_distance", "seed", seed, least=0)
    most = min(len(a), len(b))
    remedy = "Lower it and say so: the mean stays comparable, the scatter does not."
    subset_size = check_whole(
        "kernel_distance", "subset_size", subset_size, least=2, most=most, remedy=remedy
    )
    generator = np.random.default_rng(seed)
    values = np.empty(num_subsets)
    for s in range(num_subsets):
        drawn = (x[generator.choice(len(x), subset_size, replace=False)] for x in (a, b))
        values[s] = _mmd(*drawn)
    return KernelDistance(float(values.mean()), float(values.std()), num_subsets, subset_size)
