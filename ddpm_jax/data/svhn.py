"""SVHN (Netzer et al. 2011), cropped digits: 73,257 training and 26,032 test images, 32×32 RGB.

It is read from the MATLAB files of http://ufldl.stanford.edu/housenumbers/: X uint8 [32, 32, 3, N]
and y [N, 1], in which the digit 0 has the label 10.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from ddpm_jax.data.dataset import ImageDataset
from ddpm_jax.data.download import Progress
from ddpm_jax.data.official import PublishedFile, load_official, single_files
from ddpm_jax.files import check_regular

URL = "http://ufldl.stanford.edu/housenumbers/"
FILES = {
    "train": PublishedFile(
        f"{URL}train_32x32.mat",
        182_040_794,
        "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    ),
    "test": PublishedFile(
        f"{URL}test_32x32.mat",
        64_275_384,
        "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
    ),
}
CLASS_COUNTS = {
    "train": (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
    "test": (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
}


def load_svhn(
    split: Literal["train", "test"],
    *,
    path: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> ImageDataset:
    """Loads SVHN's cropped digits: uint8 [73257, 32, 32, 3] or [26032, 32, 32, 3].

    See `official.load_official` for the options and errors.
    """
    data = single_files("svhn", "SVHN", FILES, CLASS_COUNTS, read_mat)
    return load_official(
        data, split, path=path, cache_dir=cache_dir, download=download, progress=progress
    )


def read_mat(file: Path, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a MATLAB file: images uint8 [N, 32, 32, 3] and the digits uint8 [N]."""
    from scipy.io import loadmat, whosmat

    try:
        check_regular(file)
        # From the headers, before anything is decompressed.
        held = {name: (shape, kind) for name, shape, kind in whosmat(file)}
        expected = {"X": ((32, 32, 3, count), "uint8"), "y": ((count, 1), "uint8")}
        # Some copies store y as double.
        if {k: v[0] for k, v in held.items()} != {k: v[0] for k, v in expected.items()}:
            raise ValueError(f"it holds {held}, not {expected}")
        arrays = loadmat(file, variable_names=("X", "y"))
        images, labels = arrays["X"], arrays["y"].reshape(-1)
        if images.dtype != np.uint8 or not np.isin(labels, np.arange(1, 11)).all():
            raise ValueError("it has pixels other than uint8, or labels other than 1 to 10")
    except Exception as error:  # scipy's reader raises many kinds for damaged files
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{file} is damaged or not SVHN's {split} split ({error}). Get it again from "
            f"{FILES[split].url}."
        ) from error
    return images.transpose(3, 0, 1, 2), (labels % 10).astype(np.uint8)
