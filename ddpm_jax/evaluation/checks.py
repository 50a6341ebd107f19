"""The one check every measure makes of its features: [N, D], finite, and alike on both sides."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def checked_features(caller: str, name: str, features: npt.ArrayLike) -> npt.NDArray[np.floating]:
    """Returns features [N, D] as a floating NumPy array, N ≥ 1, not copied where it is one.

    Single precision is kept as it is: what needs float64 casts it block by block, so that 50,000
    features of the Inception network take 0.4 GB and not twice that.

    Raises ValueError, naming the caller and the argument, for other shapes and for NaN or infinity.
    """
    x = np.asarray(features)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(
            f"{caller} needs {name} [N, D] with N ≥ 1, got shape {x.shape}. "
            "Features are one row an image; flatten maps first."
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
            "Find what made them: to leave them out would flatter."
        )
    return x


def checked_pair(
    caller: str, real: npt.ArrayLike, generated: npt.ArrayLike, at_least: int
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """Checks real [N, D] and generated [M, D] features, of one D, `at_least` rows on either side.

    Raises ValueError where `checked_features` does, for different D, and for too few rows.
    """
    a = checked_features(caller, "real", real)
    b = checked_features(caller, "generated", generated)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{caller} needs the same features on both sides, got {a.shape[1]} and {b.shape[1]} "
            "of them. Use one feature function, on images of one size."
        )
    if min(len(a), len(b)) < at_least:
        raise ValueError(
            f"{caller} needs {at_least} examples or more on each side, got {len(a)} real and "
            f"{len(b)} generated. Take more images."
        )
    return a, b
