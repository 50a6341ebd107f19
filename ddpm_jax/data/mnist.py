"""MNIST (LeCun et al. 1998): 60,000 training and 10,000 test images, 28×28 grey, ten digits.

It is read from the IDX files: a magic number (type and number of axes), the length of each axis as
big-endian int32, then the bytes.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ddpm_jax.data import tfds_reader
from ddpm_jax.data.archives import DAMAGE, open_plain_or_gzip
from ddpm_jax.data.cache import cache_root, read_entry, signature, write_entry
from ddpm_jax.data.dataset import ImageDataset, make_dataset
from ddpm_jax.data.download import Progress, download_file
from ddpm_jax.files import user_path

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


class IdxData(NamedTuple):
    """A data set of 28×28 grey images in ten classes, in IDX files named as MNIST's.

    name          its name in TFDS, and its folder in the cache
    title         its name as its authors write it
    mirrors       addresses of the folder of the compressed files
    published     size and sha256 of each compressed file
    class_counts  number of images of each class, by split
    raw           the folder in which torchvision puts the files
    """

    name: str
    title: str
    mirrors: tuple[str, ...]
    published: dict[str, tuple[int, str]]
    class_counts: dict[str, tuple[int, ...]]
    raw: str


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
    cache_dir  where decoded images and downloads are kept (`cache_root`)
    download   whether the files may be downloaded
    pad_to     28, or more for a black frame; networks that halve the size need 32
    progress   called with (bytes, total) during a download; by default a tqdm bar

    Without a path, the first available of these is used: images cached by an earlier call; IDX
    files in cache_dir or its folder `mnist`; a data set that TFDS prepared as array_record in
    TFDS_DATA_DIR or ~/tensorflow_datasets, if TFDS is installed; a download, whose sizes and sha256
    are checked. The number of images of each digit must be MNIST's, which excludes data sets with
    the same file names (Fashion-MNIST, KMNIST).

    Raises FileNotFoundError, with the remedies, if nothing is found; ValueError naming the file
    for damaged or wrong files; ImportError if TFDS is needed and not installed.
    """
    data = IdxData("mnist", "MNIST", MIRRORS, PUBLISHED, CLASS_COUNTS, "MNIST/raw")
    root = cache_root(cache_dir)
    return load_idx_data(data, split, source, path, root, download, pad_to, progress)


def load_idx_data(
    data: IdxData,
    split: Split,
    source: Source,
    path: str | os.PathLike[str] | None,
    root: Path,
    download: bool,
    pad_to: int,
    progress: Progress | None,
) -> ImageDataset:
    """Loads MNIST or a data set of its form, as `load_mnist` describes; `root` is the cache."""
    call = f"load_{data.name}"
    if split not in FILES:
        raise ValueError(f'{call} needs split "train" or "test", got {split!r}.')
    if source not in ("auto", "idx", "tfds"):
        raise ValueError(f'{call} needs source "auto", "idx" or "tfds", got {source!r}.')
    if pad_to < 28:
        raise ValueError(f"{call} needs pad_to ≥ 28, got {pad_to}: the images are 28×28.")
    dataset = _load(data, split, source, path, root, download, progress)
    if pad_to == 28:
        return dataset
    before = (pad_to - 28) // 2
    frame = (before, pad_to - 28 - before)
    images = np.pad(dataset.images, ((0, 0), frame, frame, (0, 0)))
    return make_dataset(images, dataset.labels, 10, dataset.name)


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


def _load(
    data: IdxData,
    split: Split,
    source: Source,
    path: str | os.PathLike[str] | None,
    root: Path,
    download: bool,
    progress: Progress | None,
) -> ImageDataset:
    key, counts = f"{data.name}-{split}", data.class_counts[split]
    if path is None:
        cached = read_entry(root, key, lambda about: source in ("auto", about["kind"]))
        if cached is not None:
            return cached
    kind, place = _locate(data, split, path, source, root, download, progress)
    files = _idx_files(place, split) if kind == "idx" else tfds_reader.record_files(place, split)
    origin = signature(kind, place, files or [])
    cached = read_entry(root, key, lambda about: about == origin)
    if cached is not None:
        return cached
    if kind == "tfds":
        images, labels = tfds_reader.read_prepared(place, split, (28, 28, 1))
    else:
        assert files is not None
        images = read_idx(files[0], (sum(counts), 28, 28))[..., None]
        labels = read_idx(files[1], (sum(counts),))
    found = np.bincount(labels, minlength=10).tolist()
    if found != list(counts):
        raise ValueError(
            f"{place}: the {split} split of {data.title} has {list(counts)} images of the classes "
            f"0 to 9, but these files have {found}. They may be another data set with the same "
            "file names; load such data with read_idx and make_dataset."
        )
    return write_entry(root, key, images, labels, 10, f"{data.name}/{split}", origin)


def _locate(
    data: IdxData,
    split: Split,
    path: str | os.PathLike[str] | None,
    source: Source,
    root: Path,
    download: bool,
    progress: Progress | None,
) -> tuple[str, Path]:
    """Returns ("idx", folder of the files) or ("tfds", folder of the prepared version)."""
    # MNIST's files may lie directly in the cache; other data sets with these file names only in
    # their own folder.
    own = root if data.name == "mnist" else root / data.name
    places = [own] if path is None else [user_path(path)]
    if path is not None and not places[0].is_dir():
        raise FileNotFoundError(
            f"load_{data.name} got path {path}, which is not a folder. Pass the one with the IDX "
            "files."
        )
    for place in (q for p in places for q in (p, p / data.name, p / data.raw, p / "raw")):
        if source != "tfds" and _idx_files(place, split) is not None:
            return "idx", place
    data_dir = tfds_reader.default_data_dir() if path is None else places[0]
    prepared = tfds_reader.find_prepared(data.name, data_dir)
    if prepared is not None and source != "idx":
        if path is not None or source == "tfds" or tfds_reader.is_installed():
            return "tfds", prepared
    why = "Downloading was not allowed."
    if download and path is None and source != "tfds":
        try:
            return "idx", _download(data, split, root / data.name, progress)
        except ConnectionError as error:
            why = f"The download failed: {error}."
    raise FileNotFoundError(
        f"load_{data.name} found no {data.title} {split} split for source={source!r} in "
        f"{' or '.join(dict.fromkeys(map(str, [*places, data_dir])))}"
        f"{tfds_reader.explain_unreadable(data.name, data_dir)}. {why} Any one of these helps:\n"
        f"  1. path=...: the folder of {' and '.join(FILES[split])}, plain or .gz "
        f"({', '.join(data.mirrors)});\n"
        "  2. download=True without a path, on a machine with a network;\n"
        f"  3. TFDS: path=..., the data_dir of {data.name} prepared as array_record."
    )


def _idx_files(folder: Path, split: Split) -> list[Path] | None:
    """Returns the images' and the labels' file in `folder`, or None unless both are there."""
    found = []
    for name in FILES[split]:
        # Some tools unpack train-images-idx3-ubyte.gz to train-images.idx3-ubyte.
        variants = [name, f"{name}.gz", name.replace("-idx", ".idx")]
        found += [file for variant in variants if (file := folder / variant).is_file()][:1]
    return found if len(found) == 2 else None


def _download(data: IdxData, split: Split, folder: Path, progress: Progress | None) -> Path:
    for name in FILES[split]:
        size, sha256 = data.published[name]
        urls = [f"{mirror}{name}.gz" for mirror in data.mirrors]
        destination = folder / f"{name}.gz"
        download_file(urls, destination, size=size, sha256=sha256, progress=progress)
    return folder
