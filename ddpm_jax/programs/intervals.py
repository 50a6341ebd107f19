"""Intervals of measured distances: how they are computed, and how pictures show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpm_jax import evaluation
from ddpm_jax.evaluation import Moments


def frechet_interval(
    truth: Moments,
    found: npt.NDArray,
    *,
    seed: int,
    repeats: int,
    beyond: npt.NDArray | None = None,
) -> list[float] | None:
    """95 % bootstrap interval of the Fréchet distance of features [N, D] to the training set's.

    With features `beyond` [N, D], the interval of the difference to their distance; row i of both
    comes from the same noise, and such pairs are resampled together. None for fewer than two
    repeats, and for D > 256, where each would take a tenth of a second and more.
    """
    if repeats < 2 or truth.mean.size > 256:
        return None
    sets = found[:, None] if beyond is None else np.stack([found, beyond], axis=1)

    def statistic(x: npt.NDArray) -> float:
        first, *other = (
            evaluation.frechet_distance(truth, evaluation.moments(x[:, i]))
            for i in range(x.shape[1])
        )
        return first - sum(other)

    interval = evaluation.bootstrap_interval(statistic, [sets], seed=seed, repeats=repeats)
    return [interval.low, interval.high]


def interval_band(
    field: str, rows: Iterable[Mapping[str, Any]]
) -> tuple[list[float], list[float]] | None:
    """The lows and highs of `field`_interval_95 in every row, or None if one of them lacks it.

    A bootstrap interval may reach below zero, where a distance cannot be and a logarithm ends: lows
    are at least a hundredth of the value.
    """
    pairs = [(row[field], row.get(f"{field}_interval_95")) for row in rows]
    found = [(max(pair[0], 0.01 * value), pair[1]) for value, pair in pairs if pair is not None]
    if len(found) < len(pairs):
        return None
    return [low for low, _ in found], [high for _, high in found]
