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

from ddpm_jax.data import tfds_reader
from ddpm_jax.data.archives import DAMAGE, open_plain_or_gzip, read_members
from ddpm_jax.data.cache import cache_root, read_entry, signature, write_entry
from ddpm_jax.data.dataset import ImageDataset
from ddpm_jax.data.download import Progress, download_file
from ddpm_jax.files import user_path

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
    cache_dir  where decoded images and downloads are kept (`cache_root`)
    download   whether the archive may be downloaded
    progress   called with (bytes, total) during a download; by default a tqdm bar

    Without a path, the first available of these is used: images cached by an earlier call, from any
    source; the archive or its folder in cache_dir; a data set that TFDS prepared as array_record in
    TFDS_DATA_DIR or ~/tensorflow_datasets, if TFDS is installed; a download. A path is read again
    if the sizes or times of its files have changed since they were cached. The images keep the
    order of the source (TFDS shuffles), so the fingerprint differs between sources.

    A download must match the published size and sha256. Of local files the structure is checked:
    sizes, range of labels, and 5,000 (test: 1,000) images of every class.

    Raises FileNotFoundError, with the remedies, if nothing is found; ValueError naming the file
    for damaged or wrong files; ImportError if TFDS is needed and not installed.
    """
    if split not in FILES:
        raise ValueError(f'load_cifar10 needs split "train" or "test", got {split!r}.')
    if source not in ("auto", "archive", "tfds"):
        raise ValueError(f'load_cifar10 needs source "auto", "archive" or "tfds", got {source!r}.')
    root, key = cache_root(cache_dir), f"cifar10-{split}"
    if path is None:
        cached = read_entry(root, key, lambda about: source in ("auto", about["kind"]))
        if cached is not None:
            return cached._replace(class_names=CLASSES)
    kind, place = _locate(path, source, root, download, progress)
    origin = signature(kind, place, _files_read(kind, place, split))
    cached = read_entry(root, key, lambda about: about == origin)
    if cached is not None:
        return cached._replace(class_names=CLASSES)
    if kind == "tfds":
        images, labels = tfds_reader.read_prepared(place, split, (32, 32, 3))
    else:
        images, labels = read_batches(place, split)
    _check_counts(labels, split, place)
    dataset = write_entry(root, key, images, labels, 10, f"cifar10/{split}", origin)
    return dataset._replace(class_names=CLASSES)


def find_archive(
    path: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Returns the archive or folder that `load_cifar10(source="archive", ...)` would decode."""
    return _locate(path, "archive", cache_root(cache_dir), download, progress)[1]


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


def _check_counts(labels: np.ndarray, split: Split, place: Path) -> None:
    each = len(FILES[split]) * RECORDS_PER_FILE // 10
    counts = np.bincount(labels, minlength=10)
    if counts.tolist() != [each] * 10:
        raise ValueError(
            f"{place}: the {split} split of CIFAR-10 has {each:,} images of every class, but these "
            f"files have {counts.tolist()}. A batch file may be there twice, under two names."
        )


def _locate(
    path: str | os.PathLike[str] | None,
    source: Source,
    root: Path,
    download: bool,
    progress: Progress | None,
) -> tuple[str, Path]:
    """Returns ("archive", file or folder) or ("tfds", folder of the prepared version)."""
    if path is not None:
        return _recognise(user_path(path), source)
    archive = _find_in(root)
    if archive is not None and source != "tfds":
        return "archive", archive
    data_dir = tfds_reader.default_data_dir()
    prepared = tfds_reader.find_prepared("cifar10", data_dir)
    if prepared is not None and source != "archive":
        if source == "tfds" or tfds_reader.is_installed():
            return "tfds", prepared
    why = "Downloading was not allowed."
    if download and source != "tfds":
        destination, known = root / ARCHIVE, {"size": ARCHIVE_BYTES, "sha256": ARCHIVE_SHA256}
        try:
            return "archive", download_file([URL], destination, progress=progress, **known)
        except ConnectionError as error:
            why = f"The download failed: {error}."
    raise FileNotFoundError(
        f"load_cifar10 found no CIFAR-10 in {root} or {data_dir}"
        f"{tfds_reader.explain_unreadable('cifar10', data_dir)}. {why} Any one of these helps:\n"
        f"  1. path=...: the archive {ARCHIVE}, its folder {FOLDER}, or a folder that holds either "
        f"({URL});\n"
        "  2. download=True, on a machine with a network;\n"
        "  3. TFDS: path=..., the data_dir of a cifar10 prepared as array_record "
        "(ddpm_jax.data.prepare_cifar10_tfds does so without TensorFlow)."
    )


def _recognise(path: Path, source: Source) -> tuple[str, Path]:
    if not path.exists():
        raise FileNotFoundError(f"load_cifar10 got path {path}, which does not exist.")
    if path.name == PICKLES[0]:
        _refuse_pickles(path)
    found = _find_in(path)
    if found is not None and source != "tfds":
        return "archive", found
    _refuse_pickles(path)
    prepared = tfds_reader.find_prepared("cifar10", path)
    if prepared is not None and source != "archive":
        return "tfds", prepared
    raise FileNotFoundError(
        f"load_cifar10 found no CIFAR-10 for source={source!r} in {path}. A path is {ARCHIVE}, the "
        f"folder {FOLDER}, a folder that holds either, or a TFDS data_dir with cifar10 prepared as "
        f"array_record{tfds_reader.explain_unreadable('cifar10', path)}."
    )


def _find_in(path: Path) -> Path | None:
    """Returns the archive or batch folder at or in `path`, if any."""
    if path.is_file():
        return path
    for place in (path, path / FOLDER, path / ARCHIVE):
        if place.name == ARCHIVE and place.is_file():
            return place
        if any((place / name).is_file() for names in FILES.values() for name in names):
            return place
    return None


def _refuse_pickles(path: Path) -> None:
    for place in (path, *(path / name for name in PICKLES)):
        if place.name in PICKLES and place.exists():
            raise ValueError(
                f"load_cifar10 found {place}, the python version of CIFAR-10. Its batches are "
                "pickles, and reading a pickle runs whatever code it holds. Get the binary "
                f"version, {URL}, or pass download=True without a path."
            )


def _files_read(kind: str, place: Path, split: Split) -> list[Path]:
    if kind == "tfds":
        return tfds_reader.record_files(place, split)
    if place.is_file():
        return [place]
    return [file for name in FILES[split] if (file := place / name).is_file()]
