"""Checks that every measure makes of its features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ddpm_jax.forward.checks import host_numbers


def checked_features(
    caller: str, name: str, features: npt.ArrayLike, columns: str = "D"
) -> npt.NDArray[np.floating]:
    """Returns features [N, D] as a floating NumPy array, N ≥ 1, without a copy if it is one.

    Single precision is kept; callers cast it to float64 block by block, so that 50,000 Inception
    features take 0.4 GB instead of 0.8.

    Raises, naming the caller and the argument, ValueError for other shapes and for NaN or infinity,
    and TypeError for what is not real numbers of the host.
    """
    x = host_numbers(caller, name, features)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(
            f"{caller} needs {name} [N, {columns}] with N ≥ 1, one row per image, got shape "
            f"{x.shape}. Flatten what has more axes."
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


def checked_probabilities(caller: str, probabilities: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Returns probabilities [N, K] in float64, N ≥ 1.

    Raises as `checked_features` does, and ValueError for rows that are not probabilities.
    """
    p = checked_features(caller, "probabilities", probabilities, "K").astype(np.float64)
    sums = p.sum(axis=1)
    if (p < 0).any() or np.abs(sums - 1).max() > 1e-3:
        raise ValueError(
            f"{caller} needs rows that are ≥ 0 and sum to one, got values down to {p.min()} and "
            f"sums in [{sums.min()}, {sums.max()}]. Scores become probabilities by a "
            "softmax; inception_score takes them as logits=."
        )
    return p


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
