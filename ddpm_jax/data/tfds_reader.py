"""Reads data sets prepared by TensorFlow Datasets (TFDS) without TensorFlow or a network.

TFDS keeps a data set in `<data_dir>/<name>/<version>/`. One prepared as `array_record` can be read
by index without TensorFlow; one prepared as `tfrecord`, the older default, cannot.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import operator
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ddpm_jax.data.images import check_png_rows, is_deep
from ddpm_jax.files import user_path

INSTALL = "pip install tensorflow-datasets array_record importlib_resources"


def default_data_dir() -> Path:
    """Returns where TFDS keeps its data: TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    given = os.environ.get("TFDS_DATA_DIR")
    return user_path(given) if given else Path.home() / "tensorflow_datasets"


def is_installed() -> bool:
    """Whether TFDS and array_record can be imported; imports neither."""
    return all(importlib.util.find_spec(m) for m in ("tensorflow_datasets", "array_record"))


def import_tfds() -> ModuleType:
    """Imports tensorflow_datasets; raises ImportError with the command that installs it."""
    try:
        importlib.import_module("array_record.python.array_record_data_source")
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ImportError(
            f"Data sets prepared by TFDS need packages that are not installed ({error}). "
            f"Run: {INSTALL}"
        ) from error


def find_prepared(name: str, place: Path) -> Path | None:
    """Returns the folder of the newest version of `name` prepared as array_record, or None.

    name   the data set, with its configuration if it has several: "imagenet_resized/32x32"
    place  a TFDS data_dir, the folder `<name>` in it, or that of one version
    """
    folders = [place, *place.glob(f"{name}/*"), *(place.glob("*") if place.name == name else ())]
    name = name.partition("/")[0]
    versions = [
        folder
        for folder in folders
        if (folder / "dataset_info.json").is_file() and any(folder.glob(f"{name}-*.array_record-*"))
    ]
    numbers = lambda folder: tuple(map(int, re.findall(r"\d+", folder.name)))  # noqa: E731
    return max(versions, key=numbers, default=None)


def explain_unreadable(name: str, place: Path) -> str:
    """Returns a clause that says why the `name` in `place` is not read; "" if there is none."""
    if find_prepared(name, place) is not None:
        return "" if is_installed() else f" (a prepared {name} lies there; to read it: {INSTALL})"
    if any(place.glob(f"**/{name.partition('/')[0]}-*.tfrecord-*")):
        return (
            f" (a {name} lies there as tfrecord, which only TensorFlow reads; prepare it with "
            'file_format="array_record" in another data_dir)'
        )
    return ""


def record_files(folder: Path, split: str) -> list[Path]:
    """Returns the array_record files of a split in the version folder, in order."""
    files = folder.glob("*.array_record-*-of-*")
    return sorted(file for file in files if f"-{split}.array_record-" in file.name)


def read_prepared(
    folder: Path, split: str, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a split from a version folder: images uint8 [N, *shape] and labels int64 [N].

    Raises ImportError if TFDS is not installed; ValueError naming the folder for a damaged data
    set, a missing split, or images of another shape.
    """
    import_tfds()
    try:
        source = _open(folder, split, "image")
        images = np.empty((len(source), *shape), np.uint8)
        labels = np.empty(len(source), np.int64)
        for start in range(0, len(source), 1000):  # three times faster than one by one
            block = source.__getitems__(list(range(start, min(start + 1000, len(source)))))
            for i, example in enumerate(block, start):
                images[i] = _decode_png(example["image"], shape)
                labels[i] = operator.index(example["label"])
    except Exception as error:  # TFDS, array_record, protobuf and Pillow each raise their own
        raise _unreadable(folder, split, error) from error
    return images, labels


def fetcher(
    folder: Path, split: str, image: str, label: str | None
) -> Callable[[Sequence[int]], list[tuple[bytes, int | None]]]:
    """Returns a function that reads the examples of a split by index: stored images, and labels.

    Raises the errors of `read_prepared` at once if the data set cannot be opened.
    """
    import_tfds()

    try:
        source = _open(folder, split, image)
    except Exception as error:
        raise _unreadable(folder, split, error) from error

    def fetch(indices: Sequence[int]) -> list[tuple[bytes, int | None]]:
        try:
            found = source.__getitems__(list(indices))
        except Exception as error:
            raise _unreadable(folder, split, error) from error
        return [(x[image], None if label is None else int(x[label])) for x in found]

    return fetch


def _unreadable(folder: Path, split: str, error: Exception) -> ValueError:
    return ValueError(
        f"The {split} split of the TFDS data in {folder} could not be read: {error!r}. "
        "Delete the folder and prepare it again."
    )


def _open(folder: Path, split: str, image: str) -> Any:
    tfds = import_tfds()
    source = tfds.builder_from_directory(folder).as_data_source(
        split, decoders={image: tfds.decode.SkipDecoding()}
    )
    # A record has at least one byte, whatever the description of the data set claims.
    held = sum(file.stat().st_size for file in record_files(folder, split))
    if not 0 < len(source) <= held:
        raise ValueError(f"{len(source):,} records in {held:,} bytes of files")
    return source


def _decode_png(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        # Checked before decoding any pixel: the header reveals a decompression bomb.
        if (image.height, image.width) != shape[:2]:
            raise ValueError(f"an image is {image.height}×{image.width}, not {shape[0]}×{shape[1]}")
        if is_deep(image):
            raise ValueError("an image has more than 8 bits per channel")
        image.load()
        check_png_rows(image, data)
        return np.asarray(image.convert("L" if shape[2] == 1 else "RGB")).reshape(shape)
