"""MNIST (LeCun et al. 1998): 60,000 training and 10,000 test images, 28×28 grey, ten digits.

It is read from the IDX files: a magic number (type and number of axes), the length of each axis as
big-endian int32, then the bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ddpm_jax.data.archives import DAMAGE, open_plain_or_gzip
from ddpm_jax.data.dataset import ImageDataset, make_dataset
from ddpm_jax.data.download import Progress, download_file
from ddpm_jax.data.official import OfficialData, load_official

MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
PUBLISHED = {  # size and sha256 of the compressed files
    "train-images-idx3-ubyte": (
        9_912_422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    "train-labels-idx1-ubyte": (
        28_881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    "t10k-images-idx3-ubyte": (
        1_648_877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    "t10k-labels-idx1-ubyte": (
        4_542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
}
CLASS_COUNTS = {
    "train": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "test": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
}

Split = Literal["train", "test"]
Source = Literal["auto", "idx", "tfds"]


def load_mnist(
    split: Split,
    *,
    source: Source = "auto",
    path: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    pad_to: int = 28,
    progress: Progress | None = None,
) -> ImageDataset:
    """Loads MNIST: uint8 [60000, R, R, 1] for "train", [10000, R, R, 1] for "test", R = `pad_to`.

    path       a folder that holds the four IDX files, plain or .gz, itself or in `MNIST/raw`, or
               the `data_dir` of a prepared TFDS data set
    source     "idx" or "tfds" allows only that kind; "auto" both
    pad_to     28, or more for a black frame; networks that halve the size need 32

    The other options, what is used without a path, and the errors are those of
    `official.load_official`. The number of images of each digit must be MNIST's, which excludes
    data sets with the same file names (Fashion-MNIST, KMNIST).
    """
    data = idx_data("mnist", "MNIST", MIRRORS, PUBLISHED, CLASS_COUNTS, "MNIST/raw")
    options = {"source": source, "path": path, "cache_dir": cache_dir}
    return load_idx_data(data, split, pad_to, **options, download=download, progress=progress)


def load_idx_data(data: OfficialData, split: Split, pad_to: int, **options: Any) -> ImageDataset:
    """Loads MNIST or a data set of its form; the options are those of `load_official`."""
    if pad_to < 28:
        raise ValueError(f"load_{data.name} needs pad_to ≥ 28, got {pad_to}: images are 28×28.")
    dataset = load_official(data, split, **options)
    if pad_to == 28:
        return dataset
    before = (pad_to - 28) // 2
    frame = (before, pad_to - 28 - before)
    images = np.pad(dataset.images, ((0, 0), frame, frame, (0, 0)))
    names = dataset.class_names
    return make_dataset(images, dataset.labels, 10, dataset.name, class_names=names)


def read_idx(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, plain or gzipped, of a given shape: uint8.

    Raises ValueError naming the file if it is damaged, truncated, too long, or of another shape.
    """
    header = struct.pack(f">BBBB{len(shape)}i", 0, 0, 8, len(shape), *shape)
    length = len(header) + int(np.prod(shape))
    try:
        with open_plain_or_gzip(file) as stream:
            data = stream.read(length + 1)  # one more, to notice a longer file
    except DAMAGE as error:
        raise ValueError(f"{file} is damaged or truncated ({error}). Get it again.") from error
    if data[: len(header)] != header or len(data) != length:
        raise ValueError(
            f"{file} must be the IDX header {header.hex()} (bytes of shape {list(shape)}) and "
            f"{length:,} bytes in all, but begins with {data[: len(header)].hex()} and has "
            f"{'more' if len(data) > length else f'{len(data):,}'}. It is damaged or not MNIST's."
        )
    return np.frombuffer(data, np.uint8, offset=len(header)).reshape(shape)


def idx_data(
    name: str,
    title: str,
    mirrors: Sequence[str],
    published: Mapping[str, tuple[int, str]],
    class_counts: dict[str, tuple[int, ...]],
    raw: str,
) -> OfficialData:
    """A data set of 28×28 grey images in ten classes, in IDX files named as MNIST's.

    name, title   as in `OfficialData`
    mirrors       addresses of the folder of the compressed files
    published     size and sha256 of each compressed file
    class_counts  number of images of each class, by split
    raw           the folder in which torchvision puts the files
    """

    def find(place: Path, split: str) -> Path | None:
        folders = (place, place / name, place / raw, place / "raw")
        return next((folder for folder in folders if _idx_files(folder, split)), None)

    def decode(folder: Path, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels = _idx_files(folder, split)
        return read_idx(images, (count, 28, 28))[..., None], read_idx(labels, (count,))

    def fetch(cache: Path, split: str, progress: Progress | None) -> Path:
        for file in FILES[split]:
            size, sha256 = published[file]
            urls = [f"{mirror}{file}.gz" for mirror in mirrors]
            destination = cache / name / f"{file}.gz"
            download_file(urls, destination, size=size, sha256=sha256, progress=progress)
        return cache / name

    return OfficialData(
        name,
        title,
        class_counts,
        find,
        _idx_files,
        decode,
        fetch,
        where="the folder of "
        + ", ".join(" and ".join(pair) for pair in FILES.values())
        + f", plain or .gz ({', '.join(mirrors)})",
        mistaken="They may be another data set with the same file names; load such data with "
        "read_idx and make_dataset.",
        kind="idx",
        tfds_shape=(28, 28, 1),
        # MNIST's files may lie directly in the cache; other data sets with these file names only
        # in their own folder.
        home="" if name == "mnist" else name,
    )


def _idx_files(folder: Path, split: str) -> list[Path]:
    """Returns the images' and the labels' file in `folder`, or [] unless both are there."""
    found = []
    for name in FILES[split]:
        # Some tools unpack train-images-idx3-ubyte.gz to train-images.idx3-ubyte.
        variants = [name, f"{name}.gz", name.replace("-idx", ".idx")]
        found += [file for variant in variants if (file := folder / variant).is_file()][:1]
    return found if len(found) == 2 else []
