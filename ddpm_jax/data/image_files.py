"""The image files of a folder and its subfolders, in the order of the examples."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path
from typing import NamedTuple

from ddpm_jax.data.images import FORMATS, SUFFIXES, is_image, list_errors, shown
from ddpm_jax.files import check_regular

COMPANIONS = frozenset(
    ".txt .json .jsonl .csv .tsv .xml .html .md .yaml .yml .ini .log .py .sh .db".split()
)
"""Endings of captions, labels and lists beside images, which are skipped without a warning."""


class ImageFile(NamedTuple):
    """An image file of a folder: its path within it, with "/", its size in bytes and its mtime."""

    name: str
    size: int
    mtime_ns: int


def list_images(folder: Path) -> list[ImageFile]:
    """Lists the image files under `folder` by the rules of `load_folder`, sorted.

    Raises FileNotFoundError for a missing folder, ValueError for a folder without images, OSError
    for entries named like images that are not readable files, and for unreadable subfolders.
    """
    if not folder.is_dir():
        there = "is not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(
            f"load_folder got {shown(folder)}, which {there}. Pass the folder of the images "
            "(--data.path). Unpack an archive first, and read an .npy or .npz file as the data set "
            "arrays (--data.name arrays)."
        )
    found, left_out, errors = [], [], []
    pending, seen = [("", folder)], set()
    while pending:
        prefix, place = pending.pop()
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen:  # reached before, through a link
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                inside = [entry for entry in entries if not entry.name.startswith(".")]
            # Of several links to a folder the first by name counts, in whatever order a disk has
            # them; `pending` is a stack.
            inside.sort(key=lambda entry: os.fsencode(entry.name), reverse=True)
        except OSError as error:
            errors.append(str(error))
            continue
        for entry in inside:
            ending = os.path.splitext(entry.name)[1].lower()
            try:
                if entry.is_dir():
                    pending.append((f"{prefix}{entry.name}/", Path(entry.path)))
                elif ending in SUFFIXES or (
                    ending not in COMPANIONS and entry.is_file() and is_image(Path(entry.path))
                ):
                    status = check_regular(Path(entry.path))
                    found.append(ImageFile(prefix + entry.name, status.st_size, status.st_mtime_ns))
                elif ending not in COMPANIONS:
                    left_out.append(prefix + entry.name)
            except OSError as error:
                nowhere = error.errno in (errno.ENOENT, errno.ELOOP)
                text = f"{entry.path} is a link to nowhere. Remove it, or repair it."
                errors.append(text if nowhere else str(error))
    if errors:
        raise OSError(list_errors(sorted(errors), len(found) + len(errors), folder))
    if left_out:
        names = ", ".join(map(shown, sorted(left_out)[:5])) + ", …" * (len(left_out) > 5)
        warnings.warn(
            f"{len(left_out)} files in {shown(folder)} are not images in a format that is read "
            f"({', '.join(FORMATS)}) and are left out: {names}. Convert images among them to PNG.",
            stacklevel=3,
        )
    if not found:
        raise ValueError(
            f"load_folder found no image in {shown(folder)} and its subfolders. Images are "
            f"{', '.join(FORMATS)} files."
        )
    return sorted(found, key=lambda file: os.fsencode(file.name))
