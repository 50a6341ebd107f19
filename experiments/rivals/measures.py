"""How near samples are to the data: a distance, and a count of modes."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial.distance import cdist, pdist

from rivals.data import Data

COVERED = 0.25
"""A mode counts as covered if it gets at least this part of its true share."""


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """An unbiased estimate of 2 E‖A - B‖ - E‖A - A'‖ - E‖B - B'‖ from rows of a, b [N, d].

    The last two means are over pairs of different rows. So the mean is 0 for two samples of one
    distribution, and single values may be below 0 (Székely, Rizzo 2013, as a U-statistic).
    """
    return float(2.0 * cdist(a, b).mean() - pdist(a).mean() - pdist(b).mean())


def modes_of(data: Data, x: np.ndarray) -> dict[str, Any]:
    """`mode_shares` of points x [N, d]."""
    return mode_shares(data.mode(x), data.weights)


def mode_shares(mode: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """The share of modes covered, of points off the modes, and the error of the modes' weights.

    `mode` [N] holds the mode of each point, or -1 for none, and `weights` [M] the true shares. The
    error is the total variation ½ Σ_m |share_m - weight_m| among the points on a mode; 1 if there
    are none.
    """
    counts = np.bincount(mode[mode >= 0], minlength=len(weights))
    on = counts.sum()
    shares = counts / max(on, 1)
    covered = counts / len(mode) >= COVERED * weights
    return {
        "share_of_modes_covered": float(covered.mean()),
        "share_off_modes": float(1.0 - on / len(mode)),
        "weight_error": float(0.5 * np.abs(shares - weights).sum()) if on else 1.0,
    }


def over_seeds(values: list[float]) -> dict[str, Any]:
    """The mean over training seeds, with the lowest and the highest of them."""
    return {
        "mean": float(np.mean(values)),
        "lowest": float(np.min(values)),
        "highest": float(np.max(values)),
        "seeds": [float(v) for v in values],
    }
