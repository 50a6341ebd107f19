"""CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images, 32×32 RGB, 100 classes.

It is read from the "binary version" of https://www.cs.toronto.edu/~kriz/cifar.html, whose records
are a coarse label (of 20), a fine label (of 100), and 3,072 bytes of pixels as in CIFAR-10.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np

from ddpm_jax.data.archives import DAMAGE, open_plain_or_gzip, read_members
from ddpm_jax.data.dataset import ImageDataset
from ddpm_jax.data.download import Progress
from ddpm_jax.data.official import PublishedFile, load_official, single_files
from ddpm_jax.files import read_regular

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
ARCHIVE = PublishedFile(
    URL, 168_513_733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
)
FOLDER = "cifar-100-binary"
RECORD_BYTES = 2 + 3 * 32 * 32
CLASS_COUNTS = {"train": (500,) * 100, "test": (100,) * 100}


def load_cifar100(
    split: Literal["train", "test"],
    *,
    path: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> ImageDataset:
    """Loads CIFAR-100: uint8 [50000, 32, 32, 3] or [10000, 32, 32, 3], with the 100 fine labels.

    See `official.load_official` for the options and errors.
    """
    files = {"train": ARCHIVE, "test": ARCHIVE}
    data = single_files("cifar100", "CIFAR-100", files, CLASS_COUNTS, read_records, FOLDER)
    return load_official(
        data, split, path=path, cache_dir=cache_dir, download=download, progress=progress
    )


def read_records(place: Path, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the archive or its folder: images uint8 [N, 32, 32, 3] and fine labels uint8 [N]."""
    name = f"{split}.bin"
    needed = count * RECORD_BYTES
    try:
        if place.is_dir():
            data = read_regular(place / name, needed)
        else:
            # The archive holds the training split, whichever is wanted.
            largest = sum(CLASS_COUNTS["train"]) * RECORD_BYTES
            with open_plain_or_gzip(place) as stream:
                found = dict(read_members(stream, [f"{FOLDER}/{name}"], max_bytes=largest))
            if not found:
                raise ValueError(f"it has no {FOLDER}/{name}")
            [data] = found.values()
        if len(data) != needed:
            raise ValueError(f"{name} has {len(data):,} bytes and needs {needed:,}")
        records = np.frombuffer(data, np.uint8).reshape(-1, RECORD_BYTES)
        labels = records[:, 1]
        if labels.max() > 99:
            raise ValueError(f"record {int(np.argmax(labels > 99))} of {name} has a label over 99")
    except (ValueError, *DAMAGE) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{place} is damaged or not CIFAR-100's binary version ({error}). Get {ARCHIVE.name} "
            f"again from {URL}."
        ) from error
    return records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels
