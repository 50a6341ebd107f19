"""The 8×8 handwritten digits that come with scikit-learn: a real data set without a download.

Source: Alpaydin and Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI repository.
Scikit-learn ships its test part: 1,797 digits of 13 writers, sorted by writer.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ddpm_jax.data.dataset import ImageDataset, make_dataset
from ddpm_jax.forward.checks import check_choice

NUM_DIGITS = 1797


def load_digits(split: Literal["train", "heldout"]) -> ImageDataset:
    """Loads the digits of `split`: uint8 [1437, 8, 8, 1] for "train", [360, 8, 8, 1] for "heldout".

    Grey levels v in 0..16 become round(255 v / 16). The split lists the digits class by class,
    within a class in their original order, and holds out every fifth, starting with the first. It
    draws no random numbers, so it is the same everywhere. Each class, and within it each writer,
    contributes a fifth, so both parts have the same distribution, as a held-out likelihood or a
    distance between samples and held-out digits requires. Both parts share their writers, so they
    do not measure generalisation to unseen handwriting.

    Raises ValueError for another split name, or if scikit-learn ships different data.
    """
    check_choice("load_digits", "split", split, ("train", "heldout"))
    levels, labels = _levels_and_labels()
    if levels.shape != (NUM_DIGITS, 64) or levels.min() != 0 or levels.max() != 16:
        raise ValueError(
            f"load_digits expects scikit-learn's {NUM_DIGITS} digits of 64 levels in 0..16, got "
            f"{levels.shape} in {levels.min()}..{levels.max()}: this version ships other data."
        )
    images = np.round(levels * (255.0 / 16.0)).astype(np.uint8).reshape(-1, 8, 8, 1)
    chosen = split_indices(labels)[0 if split == "train" else 1]
    return make_dataset(images[chosen], labels[chosen], 10, f"digits/{split}")


@functools.cache
def _levels_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """Grey levels [N, 64] and labels [N], as `sklearn.datasets.load_digits` returns them."""
    # Importing scikit-learn takes a second, mostly for scipy.stats; reading its file takes 10 ms.
    spec = importlib.util.find_spec("sklearn")
    file = Path(spec.origin if spec and spec.origin else "").parent / "datasets/data/digits.csv.gz"
    if file.is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1], table[:, -1].astype(int)
    from sklearn import datasets

    found: Any = datasets.load_digits(return_X_y=True)
    return found


def split_indices(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ascending indices (train, heldout) by the rule of `load_digits` for labels [N]."""
    by_class = np.argsort(labels, kind="stable")
    heldout = np.sort(by_class[::5])
    return np.setdiff1d(np.arange(len(labels)), heldout), heldout
