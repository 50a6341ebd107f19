"""The labels of a folder of images: its class folders, a dataset.json, or a CSV file."""

from __future__ import annotations

import csv
import functools
import io
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.images import MAX_NAMED, shown
from ddpm_jax.files import parse_json_object, read_regular, user_path

_INTEGER = re.compile(r"-?[0-9]{1,18}(\.0*)?")
MAX_FILE_BYTES = 1 << 28
"""Of a file of labels; that of the 1.3 million images of ImageNet takes a fifth of it."""
SPLITS = frozenset(
    "train training test testing val valid validation dev eval holdout heldout held-out".split()
)
"""Names of folders that hold the splits of a data set, not its classes."""


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

    Paths in a file are relative to `folder`. A .csv file may separate its columns by semicolons or
    tabs, as spreadsheets of many countries do, and write their names with capitals. Class folders
    are numbered in the order of their names' bytes, and so are labels in a file, unless all are
    integers, which keep their order (written as 3, or as 3.0, as pandas does in a column with
    missing values). Warns of classes whose names differ only in case, spaces or Unicode form, and
    of folders that are not taken for classes because one folder holds them all.

    Raises ValueError, naming up to 20 each, for images without a label, labels without an image and
    classes of a single image, which no split can both train on and hold out; for folders named like
    splits, such as train and test; and for a file that cannot be understood. OSError if it cannot
    be opened.
    """
    if source == "none":
        return None
    if source == "auto":
        file = folder / "dataset.json"
        if not file.is_file():
            classes = {name: name.split("/", 1)[0] for name in images if "/" in name}
            if len(set(classes.values())) < 2:
                _warn_of_classes_below(folder, images)
                return None
            _check_not_splits(folder, sorted(set(classes.values())))
            return _numbered(folder, images, classes, "its class folders", numeric=False)
    else:
        file = user_path(source, "the labels of load_folder")
        if file.suffix.lower() not in (".csv", ".json"):
            raise ValueError(
                'the labels of a folder are "auto", "none", or a .csv or .json file '
                f"(--data.labels), got {shown(file)}."
            )
        if not file.exists():
            meant = f" Did you mean {shown(folder / file)}?" * (folder / file).is_file()
            raise FileNotFoundError(
                f"the file of labels {shown(file)} does not exist (--data.labels).{meant}"
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


def as_label(label: Any) -> Any:
    """A class as it was typed: "3" is the number 3, "03" a name."""
    number = isinstance(label, str) and re.fullmatch("0|[1-9][0-9]{0,8}", label)
    return int(label) if number else label


def class_number(label: Any, num_classes: int, names: Sequence[str] = ()) -> int | None:
    """The number of a class that is given by its number or its name; None if there is none.

    A name matches in any Unicode form, and takes precedence over a number. If all names are whole
    numbers, numbers are names alone: of the classes 1, 2 and 3, 0 is none.
    """
    text = shown(str(label))  # a terminal without UTF-8 gives bytes
    for form in (str, functools.partial(unicodedata.normalize, "NFC")):
        known = [form(name) for name in names]
        if form(text) in known:
            return known.index(form(text))
    number = as_label(label)
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not whole or not 0 <= number < num_classes:
        return None
    return None if _all_numbers(names) else int(number)


def known_classes(num_classes: int, names: Sequence[str] = ()) -> str:
    """What `class_number` takes, for a message: numbers, and up to 20 names."""
    numbers = [] if _all_numbers(names) else [f"0..{num_classes - 1}"]
    return ", ".join([*numbers, *names[:MAX_NAMED]]) + ", …" * (len(names) > MAX_NAMED)


def _all_numbers(names: Sequence[str]) -> bool:
    return bool(names) and all(map(_INTEGER.fullmatch, names))


def _csv_pairs(content: bytes) -> list[tuple[str, str]]:
    text, wanted = content.decode("utf-8-sig", "surrogateescape"), {"file", "label"}
    try:
        for delimiter in ",;\t":
            rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
            columns = list(rows.fieldnames or ())
            if not wanted <= set(columns):
                columns = rows.fieldnames = [name.strip().lower() for name in columns]
            if wanted <= set(columns):
                break
        else:
            columns = list(csv.DictReader(io.StringIO(text, newline="")).fieldnames or ())
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
            + "\nGive every image a label, by its path within the folder, and every class two "
            'images, or train without labels: labels="none" (--data.labels none).'
        )
    names = sorted(counts, key=values.__getitem__ if values else os.fsencode)
    numbers = {name: number for number, name in enumerate(names)}
    # 3, where pandas wrote 3.0: the name that a user gives.
    known_as = tuple(str(values[name]) if values else shown(name) for name in names)
    _warn_of_similar(known_as, source)
    return Labels(np.array([numbers[labels[name]] for name in images], np.int32), known_as)


def _check_not_splits(folder: Path, classes: Sequence[str]) -> None:
    """Raises ValueError if all folders of the first level are named like splits."""
    if not all(name.lower() in SPLITS for name in classes):
        return
    training = next((name for name in classes if name.lower().startswith("train")), classes[0])
    raise ValueError(
        f"the folders {', '.join(classes)} in {shown(folder)} are named like the splits of a data "
        f"set, and would be taken for classes. Pass one of them, such as {shown(folder / training)}"
        " (--data.path), of which a share is held out; or all of them without labels: "
        'labels="none" (--data.labels none). If they are classes, rename them.'
    )


def _warn_of_classes_below(folder: Path, images: Sequence[str]) -> None:
    """Warns if all images are in one folder, whose own folders would be classes."""
    shared = os.path.commonprefix([min(images, default=""), max(images, default="")])
    inner = shared.rpartition("/")[0]
    within = [name.removeprefix(f"{inner}/") for name in images]
    below = {name.split("/", 1)[0] for name in within if "/" in name}
    if inner and len(below) > 1:
        warnings.warn(
            f"all images of {shown(folder)} are in its folder {shown(inner)}, so the folders in "
            f"that ({_some(sorted(below))}) are not taken for classes, and there are no labels. If "
            f"they are classes, pass {shown(folder / inner)} (--data.path); if not, pass "
            'labels="none" (--data.labels none).',
            stacklevel=4,
        )


def _warn_of_similar(names: Sequence[str], source: str) -> None:
    """Warns of classes that a reader would take for one."""
    similar: dict[str, list[str]] = {}
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold()
        similar.setdefault(" ".join(plain.split()), []).append(name)
    found = [" and ".join(map(repr, some)) for some in similar.values() if len(some) > 1]
    if found:
        warnings.warn(
            f"some classes, from {source}, differ only in case, spaces or Unicode form: "
            f"{_some(found)}. If they are one class, give it one name.",
            stacklevel=4,
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:MAX_NAMED])) + ", …" * (len(names) > MAX_NAMED)
