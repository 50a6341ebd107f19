"""The labels of a folder of images: its class folders, a dataset.json, or a CSV file."""

from __future__ import annotations

import csv
import functools
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm_jax.data.images import MAX_NAMED, shown
from ddpm_jax.files import parse_json_object, read_regular, user_path

_INTEGER = re.compile(r"-?[0-9]{1,18}(\.0*)?")
MAX_FILE_BYTES = 1 << 28
"""Of a file of labels; that of the 1.3 million images of ImageNet takes a fifth of it."""


class Labels(NamedTuple):
    """The class of each image, numbers int32 [N], and the name of each class."""

    numbers: np.ndarray
    names: tuple[str, ...]


def read_labels(
    folder: Path, images: Sequence[str], source: str | os.PathLike[str] = "auto"
) -> Labels | None:
    """Reads the labels of images, given by their paths within `folder`; None if there are none.

    source  "none";
            a .csv file with the columns file and label;
            a .json file {"labels": [["path", label], ...]}, as StyleGAN and EDM write it;
            "auto": `dataset.json` in the folder, or else the first-level folders, if there are at
            least two, as classes

    Paths in a file are relative to `folder`. Class folders are numbered in the order of their
    names' bytes, and so are labels in a file, unless all are integers, which keep their order
    (written as 3, or as 3.0, as pandas does in a column with missing values).

    Raises ValueError, naming up to 20 each, for images without a label, labels without an image and
    classes of a single image, which no split can both train on and hold out; and for a file that
    cannot be understood. OSError if it cannot be opened.
    """
    if source == "none":
        return None
    if source == "auto":
        file = folder / "dataset.json"
        if not file.is_file():
            classes = {name: name.split("/", 1)[0] for name in images if "/" in name}
            if len(set(classes.values())) < 2:
                return None
            return _numbered(folder, images, classes, "its class folders", numeric=False)
    else:
        file = user_path(source, "the labels of load_folder")
        if file.suffix.lower() not in (".csv", ".json"):
            raise ValueError(
                'the labels of a folder are "auto", "none", or a .csv or .json file '
                f"(--data.labels), got {shown(file)}."
            )
    try:
        content = read_regular(file, MAX_FILE_BYTES)
        pairs = _csv_pairs(content) if file.suffix.lower() == ".csv" else _json_pairs(content)
        if pairs is None:
            return None
        labels = _unique(pairs)
    except ValueError as error:
        raise ValueError(
            f"the labels in {shown(file)} cannot be understood: {error}. A .csv file has the "
            'columns file,label; a .json file is {"labels": [["path", label], ...]}.'
        ) from error
    return _numbered(folder, images, labels, shown(file), numeric=True)


def _csv_pairs(content: bytes) -> list[tuple[str, str]]:
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig", "surrogateescape"), newline=""))
    try:
        columns = list(rows.fieldnames or ())
        if not {"file", "label"} <= set(columns):
            raise ValueError(f"its columns are {columns[:MAX_NAMED]}")
        if twice := [name for name in ("file", "label") if columns.count(name) > 1]:
            raise ValueError(f"the column {twice[0]} occurs twice")
        return [(row["file"] or "", (row["label"] or "").strip()) for row in rows]
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _json_pairs(content: bytes) -> list[tuple[str, str]] | None:
    values = parse_json_object(content)
    if "labels" not in values:
        raise ValueError("it has no labels")
    if values["labels"] is None:
        return None
    pairs = []
    for entry in values["labels"] if isinstance(values["labels"], list) else [None]:
        if not (
            isinstance(entry, list)
            and list(map(type, entry)) in ([str, int], [str, str], [str, type(None)])
        ):
            raise ValueError(f"an entry is {str(entry)[:80]}, not a path and a class")
        pairs.append((entry[0], "" if entry[1] is None else str(entry[1])))
    return pairs


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Labels by path; an empty label is none."""
    labels: dict[str, str] = {}
    for name, label in pairs:
        if label and labels.setdefault(name, label) != label:
            raise ValueError(f"{shown(name)} has the labels {labels[name]!r} and {label!r}")
    return labels


def _numbered(
    folder: Path, images: Sequence[str], labels: dict[str, str], source: str, *, numeric: bool
) -> Labels:
    # An é is one character or two, depending on the system that wrote the name.
    composed = functools.partial(unicodedata.normalize, "NFC")
    spelt = {composed(name): name for name in images}
    renamed = {spelt.get(composed(name), name): label for name, label in labels.items()}
    if len(spelt) == len(images) and len(renamed) == len(labels):
        labels = renamed
    counts = Counter(labels[name] for name in images if name in labels)
    known = set(images)
    values: dict[str, int] = {}
    if numeric and all(_INTEGER.fullmatch(name) for name in counts):
        values = {name: int(name.partition(".")[0]) for name in counts}
    spellings = Counter(values.values())
    problems = {
        "images have no label": [name for name in images if name not in labels],
        "labels are of no image": [name for name in labels if name not in known],
        "labels are a number in two spellings": [n for n, v in values.items() if spellings[v] > 1],
        "classes have a single image": sorted(k for k, count in counts.items() if count == 1),
    }
    found = [f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names]
    if found:
        raise ValueError(
            f"the labels of {shown(folder)}, from {source}, do not fit its images:\n  "
            + "\n  ".join(found)
            + '\nGive every image a label, or train without: labels="none" (--data.labels none).'
        )
    names = sorted(counts, key=values.__getitem__ if values else os.fsencode)
    numbers = {name: number for number, name in enumerate(names)}
    return Labels(
        np.array([numbers[labels[name]] for name in images], np.int32), tuple(map(shown, names))
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:MAX_NAMED])) + ", …" * (len(names) > MAX_NAMED)
