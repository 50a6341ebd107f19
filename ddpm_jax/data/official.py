"""Data sets whose published files are read as they are: found, verified, decoded once, cached."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm_jax.data.cache import cache_root, read_entry, signature, write_entry
from ddpm_jax.data.dataset import ImageDataset
from ddpm_jax.data.download import Progress, download_file
from ddpm_jax.files import user_path

Decode = Callable[[Path, str], tuple[np.ndarray, np.ndarray]]
"""`decode(file, split) -> (images uint8 [N, H, W, C], labels [N])`; ValueError names the file."""


class Published(NamedTuple):
    """A published file: its name, address, size in bytes and sha256."""

    name: str
    url: str
    size: int
    sha256: str


class OfficialData(NamedTuple):
    """A data set with a train and a test split.

    name          in the cache and in `ImageDataset.name`
    title         as its authors have it
    files         the file of each split
    class_counts  number of images of each class, by split
    decode        reads a file, or the folder that an archive was extracted to
    class_names   of each class, if they have names
    folder        the folder in the archive, which may be given in its place
    """

    name: str
    title: str
    files: dict[str, Published]
    class_counts: dict[str, tuple[int, ...]]
    decode: Decode
    class_names: tuple[str, ...] | None = None
    folder: str | None = None


def load_official(
    data: OfficialData,
    split: str,
    *,
    path: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> ImageDataset:
    """Loads the split "train" or "test".

    path       the file, a folder that holds it, or the folder extracted from it
    cache_dir  where decoded images and downloads are kept (`cache_root`)
    download   whether the file may be downloaded, if there is no path

    A download must match the published size and sha256. Local files are checked by what is in them:
    sizes, range of labels, and the number of images of each class.

    Raises FileNotFoundError, with the remedies, if nothing is found; ValueError naming the file
    for damaged or wrong files.
    """
    if split not in data.files:
        raise ValueError(f'load_{data.name} needs split "train" or "test", got {split!r}.')
    root, key = cache_root(cache_dir), f"{data.name}-{split}"
    if path is None and (cached := read_entry(root, key)) is not None:
        return cached._replace(class_names=data.class_names)
    place = _locate(data, split, path, root, download, progress)
    origin = signature("official", place, _files_in(place))
    dataset = read_entry(root, key, lambda about: about == origin)
    if dataset is None:
        images, labels = data.decode(place, split)
        expected = list(data.class_counts[split])
        found = np.bincount(labels, minlength=len(expected)).tolist()
        if found != expected:
            raise ValueError(
                f"{place}: the {split} split of {data.title} has {sum(expected):,} images, "
                f"{expected[:10]} of the first classes, but these files {sum(found):,}, "
                f"{found[:10]}. Get {data.files[split].url} again."
            )
        classes = len(expected)
        dataset = write_entry(root, key, images, labels, classes, f"{data.name}/{split}", origin)
    return dataset._replace(class_names=data.class_names)


def _locate(
    data: OfficialData,
    split: str,
    path: str | os.PathLike[str] | None,
    root: Path,
    download: bool,
    progress: Progress | None,
) -> Path:
    file = data.files[split]
    given = root if path is None else user_path(path)
    places = [given, given / file.name, *([given / data.folder] if data.folder else ())]
    for place in places:
        known = place.name in (file.name, data.folder)
        if place.is_file() or (place.is_dir() and known):
            return place
    why = "Downloading was not allowed."
    if download and path is None:
        try:
            return download_file(
                [file.url],
                root / file.name,
                size=file.size,
                sha256=file.sha256,
                progress=progress,
            )
        except ConnectionError as error:
            why = f"The download failed: {error}."
    raise FileNotFoundError(
        f"load_{data.name} found no {data.title} in {given}. {why} Either of these helps:\n"
        f"  1. path=...: {file.name}, or the folder that holds it ({file.url});\n"
        "  2. download=True without a path, on a machine with a network."
    )


def _files_in(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(p for p in place.iterdir() if p.is_file())
