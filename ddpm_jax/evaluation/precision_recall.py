"""Fidelity and variety measured separately, by the supports of the data and of the samples.

The support of a set is estimated by balls around its points; each reaches to the point's k-th
nearest neighbour in the set. With X the real and Y the generated features:

    precision = share of Y inside some ball of X
    recall    = share of X inside some ball of Y
    density   = mean over Y of (number of balls of X that contain it) / k
    coverage  = share of X with some Y in its ball

Precision and recall are those of Kynkäänniemi et al. (2019), Eqs. 1-2, with closed balls. Density
and coverage are those of Naeem et al. (2020), whose code uses open balls; they are robust to
outliers, whose balls are large. Density may exceed one.

All four change with the numbers of images: use equal counts on both sides, and report them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddpm_jax.evaluation.checks import checked_pair
from ddpm_jax.forward.checks import check_whole

# In float64 a block of distances takes 32 MB; its rows and columns of 2048 features take 16 and 64
# MB.
_ROWS, _COLUMNS = 1024, 4096
# ‖x‖² - 2xᵀy + ‖y‖² has an error of about 1e-14 (‖x‖² + ‖y‖²), and rounding must not decide whether
# a point on a ball's surface is inside. Float32 features have larger errors themselves.
_SLACK = 1e-13


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1], and the k of the balls."""

    precision: float
    recall: float
    k: int


class DensityCoverage(NamedTuple):
    """Density ≥ 0, coverage in [0, 1], and the k of the balls."""

    density: float
    coverage: float
    k: int


def precision_recall(
    real: npt.ArrayLike, generated: npt.ArrayLike, *, k: int = 3
) -> PrecisionRecall:
    """Computes improved precision and recall of features real [N, D] and generated [M, D].

    Time grows as (N² + M² + NM) D, memory stays bounded; 10,000 images per side are usual. Raises
    ValueError for other shapes, for values that are not finite, and for k < 1 or sides of k
    examples or fewer.
    """
    k = check_whole("precision_recall", "k", k)
    a, b = _centred("precision_recall", real, generated, k)
    inside_a = np.zeros(len(b), bool)
    inside_b = np.zeros(len(a), bool)
    radius_a, radius_b = _squared_radii(a, k), _squared_radii(b, k)
    for rows, columns, squared, slack in _blocks(a, b):
        inside_a[columns] |= (squared <= radius_a[rows, None] + slack).any(axis=0)
        inside_b[rows] |= (squared <= radius_b[None, columns] + slack).any(axis=1)
    return PrecisionRecall(float(inside_a.mean()), float(inside_b.mean()), k)


def density_coverage(
    real: npt.ArrayLike, generated: npt.ArrayLike, *, k: int = 5
) -> DensityCoverage:
    """Computes density and coverage of features real [N, D] and generated [M, D].

    For two sets from one distribution, density is near 1 and coverage near 1 - 2^-k, slightly more
    for few examples (Naeem et al. 2020). Time grows as (N² + NM) D, memory stays bounded. Raises
    ValueError for other shapes, for values that are not finite, and for k < 1 or sides of k
    examples or fewer.
    """
    k = check_whole("density_coverage", "k", k)
    a, b = _centred("density_coverage", real, generated, k)
    radius = _squared_radii(a, k)
    balls, covered = 0, np.zeros(len(a), bool)
    for rows, _, squared, slack in _blocks(a, b):
        inside = squared < radius[rows, None] - slack
        balls += int(inside.sum())
        covered[rows] |= inside.any(axis=1)
    return DensityCoverage(balls / (k * len(b)), float(covered.mean()), k)


def _centred(
    caller: str, real: npt.ArrayLike, generated: npt.ArrayLike, k: int
) -> tuple[npt.NDArray, npt.NDArray]:
    a, b = checked_pair(caller, real, generated, k + 1)
    # Centring leaves distances unchanged; far from the origin ‖x‖² - 2xᵀy + ‖y‖² would lose digits.
    centre = a.mean(axis=0, dtype=np.float64)
    return a - centre, b - centre


def _blocks(
    a: npt.NDArray, b: npt.NDArray
) -> Iterator[tuple[slice, slice, npt.NDArray, npt.NDArray]]:
    """Yields, row blocks outermost, (rows of a, rows of b, squared distances, rounding errors)."""
    for i in range(0, len(a), _ROWS):
        x = a[i : i + _ROWS].astype(np.float64)
        norm_x = np.square(x).sum(axis=1)[:, None]
        for j in range(0, len(b), _COLUMNS):
            y = b[j : j + _COLUMNS].astype(np.float64)
            norms = norm_x + np.square(y).sum(axis=1)[None]
            squared = np.maximum(norms - 2 * (x @ y.T), 0)
            yield slice(i, i + len(x)), slice(j, j + len(y)), squared, _SLACK * norms


def _squared_radii(x: npt.NDArray, k: int) -> npt.NDArray[np.float64]:
    """Squared distance of each row of x [N, D] to the k-th nearest of the others: [N]."""
    radii = np.empty(len(x))
    for i in range(0, len(x), _ROWS):
        nearest = np.empty((min(_ROWS, len(x) - i), 0))
        for rows, columns, squared, slack in _blocks(x[i : i + _ROWS], x):
            squared[squared <= slack] = 0.0
            # The point itself is not its neighbour; a duplicate of it is.
            own = np.arange(rows.stop)
            here = (own + i >= columns.start) & (own + i < columns.stop)
            squared[own[here], own[here] + i - columns.start] = np.inf
            nearest = np.concatenate([nearest, squared], axis=1)
            nearest = (
                np.partition(nearest, k - 1, axis=1)[:, :k] if nearest.shape[1] > k else nearest
            )
        radii[i : i + len(nearest)] = nearest.max(axis=1)
    return radii
