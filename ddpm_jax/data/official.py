"""Data sets whose published files are read as they are: found, verified, decoded once, cached."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm_jax.data import tfds_reader
from ddpm_jax.data.cache import cache_root, read_entry, signature, write_entry
from ddpm_jax.data.dataset import ImageDataset
from ddpm_jax.data.download import Progress, download_file
from ddpm_jax.files import user_path
from ddpm_jax.forward.checks import check_choice

Decode = Callable[[Path, str, int], tuple[np.ndarray, np.ndarray]]


class OfficialData(NamedTuple):
    """A data set with a train and a test split, and how its files are found and decoded.

    name          in TFDS, in the cache and in `ImageDataset.name`
    title         as its authors have it
    class_counts  number of images of each class, by split
    find          `find(place, split)`: the file or folder that is read, at or in a place, or None
    files         `files(found, split)`: the files in it, whose sizes and times are compared
    decode        `decode(found, split, N) -> (images uint8 [N, H, W, C], labels [N])`; ValueError
                  names the file
    fetch         `fetch(cache, split, progress)` downloads the files, and returns what `find` would
    where         the files in words, and their address
    mistaken      the usual reason for other numbers of images, and the remedy
    kind          the name of such files as a source
    tfds_shape    of an image, where TFDS's copy is read too
    tfds_remedy   how else TFDS's copy can be prepared
    home          the folder of the files in the cache
    class_names   of each class, if they have names
    refuse        raises ValueError for a place with files that must not be read
    """

    name: str
    title: str
    class_counts: dict[str, tuple[int, ...]]
    find: Callable[[Path, str], Path | None]
    files: Callable[[Path, str], list[Path]]
    decode: Decode
    fetch: Callable[[Path, str, Progress | None], Path]
    where: str
    mistaken: str
    kind: str = "official"
    tfds_shape: tuple[int, int, int] | None = None
    tfds_remedy: str = ""
    home: str = ""
    class_names: tuple[str, ...] | None = None
    refuse: Callable[[Path], None] = lambda place: None


class PublishedFile(NamedTuple):
    """A published file: its address, size in bytes and sha256."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]


def single_files(
    name: str,
    title: str,
    published: dict[str, PublishedFile],
    class_counts: dict[str, tuple[int, ...]],
    decode: Decode,
    folder: str | None = None,
) -> OfficialData:
    """A data set with one file per split, or one archive of both, whose `folder` may replace it."""

    def find(place: Path, split: str) -> Path | None:
        file = published[split]
        for found in (place, place / file.name, *([place / folder] if folder else ())):
            if found.is_file() or (found.is_dir() and found.name in (file.name, folder)):
                return found
        return None

    def files(place: Path, split: str) -> list[Path]:
        return [place] if place.is_file() else sorted(p for p in place.iterdir() if p.is_file())

    def fetch(cache: Path, split: str, progress: Progress | None) -> Path:
        url, size, sha256 = file = published[split]
        place = cache / file.name
        return download_file([url], place, size=size, sha256=sha256, progress=progress)

    urls = " and ".join(dict.fromkeys(file.url for file in published.values()))
    where = f"the published file, or the folder that holds it ({urls})"
    mistaken = f"Get {urls} again."
    return OfficialData(name, title, class_counts, find, files, decode, fetch, where, mistaken)


def load_official(
    data: OfficialData,
    split: str,
    *,
    source: str = "auto",
    path: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> ImageDataset:
    """Loads the split "train" or "test".

    source     "tfds", or `data.kind` for the published files, allows only these; "auto" both
    path       the files, or what holds them (`data.where`), or the `data_dir` of TFDS's copy
    cache_dir  where decoded images and downloads are kept (`cache_root`)
    download   whether the files may be downloaded, if there is no path
    progress   called with (bytes, total) during a download; by default a tqdm bar

    Without a path, the first available of these is used: images cached by an earlier call, from any
    source; the files in cache_dir; a copy that TFDS prepared as array_record in TFDS_DATA_DIR or
    ~/tensorflow_datasets, if TFDS is installed; a download. A path is read again if the sizes or
    times of its files have changed since they were cached.

    A download must match the published size and sha256. Local files are checked by what is in them:
    sizes, range of labels, and the number of images of each class.

    Raises FileNotFoundError, with the remedies, if nothing is found; ValueError naming the file
    for damaged or wrong files; ImportError if TFDS is needed and not installed.
    """
    call = f"load_{data.name}"
    check_choice(call, "split", split, tuple(data.class_counts))
    check_choice(call, "source", source, ("auto", data.kind, "tfds"))
    root, key = cache_root(cache_dir), f"{data.name}-{split}"
    dataset = None
    if path is None:
        dataset = read_entry(root, key, lambda about: source in ("auto", about["kind"]))
    if dataset is None:
        kind, place = locate(data, split, source, path, root, download, progress)
        files = tfds_reader.record_files if kind == "tfds" else data.files
        origin = signature(kind, place, files(place, split))
        dataset = read_entry(root, key, lambda about: about == origin)
        if dataset is None:
            images, labels = _decode(data, split, kind, place)
            name, classes = f"{data.name}/{split}", len(data.class_counts[split])
            dataset = write_entry(root, key, images, labels, classes, name, origin)
    return dataset._replace(class_names=data.class_names)


def _decode(
    data: OfficialData, split: str, kind: str, place: Path
) -> tuple[np.ndarray, np.ndarray]:
    expected = list(data.class_counts[split])
    if kind == "tfds" and data.tfds_shape is not None:
        images, labels = tfds_reader.read_prepared(place, split, data.tfds_shape)
    else:
        images, labels = data.decode(place, split, sum(expected))
    found = np.bincount(labels, minlength=len(expected)).tolist()
    if found != expected:
        raise ValueError(
            f"{place}: the {split} split of {data.title} has {sum(expected):,} images, and these "
            f"files {sum(found):,}. It has {expected[:10]} images of every class (of ten at most), "
            f"and these files {found[:10]}. {data.mistaken}"
        )
    return images, labels


def locate(
    data: OfficialData,
    split: str,
    source: str,
    path: str | os.PathLike[str] | None,
    root: Path,
    download: bool,
    progress: Progress | None,
) -> tuple[str, Path]:
    """Returns (`data.kind`, what `data.find` found) or ("tfds", folder of the prepared version)."""
    call, given = f"load_{data.name}", root / data.home if path is None else user_path(path)
    if path is not None and not given.exists():
        raise FileNotFoundError(
            f"{call} got path {path}, which does not exist: it is not a folder and not a file."
        )
    if source != "tfds" and (place := data.find(given, split)) is not None:
        return data.kind, place
    if path is not None:
        data.refuse(given)
    places, hint = [str(given)], ""
    if data.tfds_shape is not None:
        data_dir = tfds_reader.default_data_dir() if path is None else given
        prepared = tfds_reader.find_prepared(data.name, data_dir)
        if prepared is not None and source in ("auto", "tfds"):
            if path is not None or source == "tfds" or tfds_reader.is_installed():
                return "tfds", prepared
        places.append(str(data_dir))
        hint = (
            f";\n  3. TFDS: path=..., the data_dir of {data.name} prepared as array_record"
            f"{data.tfds_remedy}{tfds_reader.explain_unreadable(data.name, data_dir)}"
        )
    why = "Downloading was not allowed."
    if download and path is None and source != "tfds":
        try:
            return data.kind, data.fetch(root, split, progress)
        except ConnectionError as error:
            why = f"The download failed: {error}."
    raise FileNotFoundError(
        f"{call} found no {data.title} {split} split for source={source!r} in "
        f"{' or '.join(dict.fromkeys(places))}. {why} Any of these helps:\n"
        f"  1. path=...: {data.where};\n"
        f"  2. download=True without a path, on a machine with a network{hint}."
    )
