"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images, 32×32 RGB, ten classes.

It is read from the "binary version" of https://www.cs.toronto.edu/~kriz/cifar.html, whose files
hold 10,000 records each: one label byte, then 1,024 red, 1,024 green and 1,024 blue bytes, row by
row. The "python version" is a pickle, which runs code when it is read, and is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from ddpm_jax.data.archives import DAMAGE, open_plain_or_gzip, read_members
from ddpm_jax.data.dataset import ImageDataset
from ddpm_jax.data.download import Progress, download_file
from ddpm_jax.data.official import OfficialData, load_official

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE, FOLDER = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
PICKLES = ("cifar-10-python.tar.gz", "cifar-10-batches-py")
ARCHIVE_BYTES = 170_052_171
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
FILES = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}
CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
RECORDS_PER_FILE = 10_000
RECORD_BYTES = 1 + 3 * 32 * 32

Split = Literal["train", "test"]
Source = Literal["auto", "archive", "tfds"]


def load_cifar10(
    split: Split,
    *,
    source: Source = "auto",
    path: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> ImageDataset:
    """Loads CIFAR-10: uint8 [50000, 32, 32, 3] for "train", [10000, 32, 32, 3] for "test".

    path       what to read: the archive `cifar-10-binary.tar.gz`, its folder
               `cifar-10-batches-bin`, a folder that holds either, or the `data_dir` of a prepared
               TFDS data set
    source     "archive" (or its folder) or "tfds" allows only that kind; "auto" both

    The other options, what is used without a path, and the errors are those of
    `official.load_official`. The images keep the order of the source (TFDS shuffles), so the
    fingerprint differs between sources.
    """
    options = {"source": source, "path": path, "cache_dir": cache_dir}
    return load_official(official_data(), split, **options, download=download, progress=progress)


def official_data() -> OfficialData:
    """How the files are found and decoded."""
    each = RECORDS_PER_FILE // 10
    return OfficialData(
        "cifar10",
        "CIFAR-10",
        {split: (len(names) * each,) * 10 for split, names in FILES.items()},
        _find,
        _files_read,
        lambda place, split, count: read_batches(place, split),
        _fetch,
        where=f"the archive {ARCHIVE}, its folder {FOLDER}, or a folder that holds either ({URL})",
        mistaken="A batch file may be there twice, under two names.",
        kind="archive",
        tfds_shape=(32, 32, 3),
        tfds_remedy=" (ddpm_jax.data.prepare_cifar10_tfds does so without TensorFlow)",
        class_names=CLASSES,
        refuse=_refuse_pickles,
    )


def read_batches(place: Path, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Decodes the archive or folder `place`: images uint8 [N, 32, 32, 3] and labels uint8 [N].

    Raises ValueError naming the file for a damaged archive, a file of the wrong size, or a label
    above 9; FileNotFoundError for a missing file.
    """
    names = FILES[split]
    images = np.empty((len(names), RECORDS_PER_FILE, 32, 32, 3), np.uint8)
    labels = np.empty((len(names), RECORDS_PER_FILE), np.uint8)
    missing = set(names)
    for name, data in (_folder_files if place.is_dir() else _archive_files)(place, names):
        records = np.frombuffer(data, np.uint8).reshape(RECORDS_PER_FILE, RECORD_BYTES)
        if records[:, 0].max() > 9:
            bad = int(np.argmax(records[:, 0] > 9))
            raise ValueError(
                f"{place}: record {bad} of {name} has label {records[bad, 0]}, above 9. The file "
                f"is damaged or not CIFAR-10's; get {ARCHIVE} again from {URL}."
            )
        i = names.index(name)
        labels[i] = records[:, 0]
        images[i] = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        missing.discard(name)
    if missing:
        raise FileNotFoundError(
            f"{place} has no {', '.join(sorted(missing))}, which the {split} split needs. "
            f"Extract or download {ARCHIVE} again."
        )
    return images.reshape(-1, 32, 32, 3), labels.reshape(-1)


def _folder_files(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        file = folder / name
        if file.is_file():
            _check_size(file.stat().st_size, name, folder)
            yield name, file.read_bytes()


def _archive_files(archive: Path, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    wanted = {f"{FOLDER}/{name}": name for name in names}
    try:
        with open_plain_or_gzip(archive) as stream:
            for member, content in read_members(stream, wanted):
                _check_size(len(content), wanted[member], archive)
                yield wanted[member], content
    except (ValueError, *DAMAGE) as error:
        if str(archive) in str(error):
            raise
        raise ValueError(
            f"{archive} is damaged or truncated ({error}): it has {archive.stat().st_size:,} "
            f"bytes, the published file {ARCHIVE_BYTES:,}. Get it again from {URL}."
        ) from error


def _check_size(size: int, name: str, place: Path) -> None:
    if size != RECORDS_PER_FILE * RECORD_BYTES:
        whole, rest = divmod(size, RECORD_BYTES)
        raise ValueError(
            f"{place}: {name} has {size:,} bytes, {whole:,} records of {RECORD_BYTES} and {rest} "
            f"bytes more; it needs exactly {RECORDS_PER_FILE:,} records. It is truncated or not "
            f"the binary version; get {ARCHIVE} again from {URL}."
        )


def _find(path: Path, split: str) -> Path | None:
    """Returns the archive or batch folder at or in `path`, if any."""
    if path.is_file():
        return None if path.name in PICKLES else path
    for place in (path, path / FOLDER, path / ARCHIVE):
        if place.name == ARCHIVE and place.is_file():
            return place
        if any((place / name).is_file() for names in FILES.values() for name in names):
            return place
    return None


def _files_read(place: Path, split: str) -> list[Path]:
    if place.is_file():
        return [place]
    return [file for name in FILES[split] if (file := place / name).is_file()]


def _fetch(cache: Path, split: str, progress: Progress | None) -> Path:
    known = {"size": ARCHIVE_BYTES, "sha256": ARCHIVE_SHA256}
    return download_file([URL], cache / ARCHIVE, progress=progress, **known)


def _refuse_pickles(path: Path) -> None:
    for place in (path, *(path / name for name in PICKLES)):
        if place.name in PICKLES and place.exists():
            raise ValueError(
                f"load_cifar10 found {place}, the python version of CIFAR-10. Its batches are "
                "pickles, and reading a pickle runs whatever code it holds. Get the binary "
                f"version, {URL}, or pass download=True without a path."
            )
