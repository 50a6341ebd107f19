"""Data sets of encoded images (PNG, JPEG, ...) that another library stores, decoded once."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ddpm_jax.data.cache import EntryWriter, read_entry, streamed_fingerprint
from ddpm_jax.data.dataset import ImageDataset, held_out_of, make_dataset, split_dataset
from ddpm_jax.data.download import progress_bar
from ddpm_jax.data.images import MAX_NAMED, decode_image, is_grey, list_errors, open_image, size_of
from ddpm_jax.data.streamed import Stream, StreamedImages, is_streamed
from ddpm_jax.forward.checks import check_choice

BLOCK = 256


class Encoded(NamedTuple):
    """A split of a stored data set.

    content      what the images are, for the cache: a text that changes when they do
    count        number of images
    fetch        maps indices to pairs (content of the image file, label or None)
    class_names  of each class, or None without labels
    """

    content: str
    count: int
    fetch: Callable[[Sequence[int]], list[tuple[bytes, int | None]]]
    class_names: tuple[str, ...] | None

    def blocks(self) -> Iterator[tuple[range, list[tuple[bytes, int | None]]]]:
        """Yields all pairs in order, in blocks, each with its indices."""
        for start in range(0, self.count, BLOCK):
            rows = range(start, min(start + BLOCK, self.count))
            yield rows, self.fetch(rows)


def decode_dataset(
    source: Encoded,
    name: str,
    root: Path,
    *,
    resolution: int | str | None,
    channels: Literal["auto", 1, 3],
    stream: Stream,
) -> ImageDataset:
    """Decodes a split into the cache, or streams it.

    Without a resolution, all images must have the same size.

    Raises ValueError, naming up to 20, for images that cannot be read, have another size, or have
    an invalid label; and OSError if the disk of the cache has no room, before any is decoded.
    """
    check_choice(name, "stream", stream, get_args(Stream), "--data.stream sets it.")
    if not source.count:
        raise ValueError(f"{name} has no images.")
    options = f"{source.content} {resolution} {channels}"
    key = f"{name.split(':')[0]}-{hashlib.sha256(options.encode()).hexdigest()[:24]}"
    cached = read_entry(root, key)
    if cached is not None:
        return cached._replace(name=name, class_names=source.class_names)
    contents = (content for _, block in source.blocks() for content, _ in block)
    grey = channels == 1 or (channels == "auto" and all(map(is_grey, contents)))
    size: tuple[int, int]
    if resolution is None:
        with open_image(source.fetch([0])[0][0], f"image 0 of {name}") as image:
            size = image.height, image.width
    else:
        size = size_of(resolution)
    shape = (source.count, *size, 1 if grey else 3)
    names = source.class_names
    labels = None if names is None else np.zeros(source.count, np.int32)

    def decode(i: int, content: bytes) -> np.ndarray:
        where = f"image {i} of {name}"
        if resolution is None:
            _check_size(content, size, where)
        return decode_image(content, size, grey=grey, name=where)[0]

    def checked(i: int, pair: tuple[bytes, int | None]) -> np.ndarray | str:
        """An image, whose label is noted, or what is wrong with it."""
        try:
            if labels is not None:
                labels[i] = _checked_label(pair[1], names or (), f"image {i} of {name}")
            return decode(i, pair[0])
        except ValueError as error:
            return str(error)

    def blocks() -> Iterator[np.ndarray]:
        errors: list[str] = []
        with (
            ThreadPoolExecutor(os.cpu_count() or 1, "decode-images") as pool,
            progress_bar(None, name, source.count, unit="image") as report,
        ):
            for rows, pairs in source.blocks():
                found = list(pool.map(checked, rows, pairs))
                errors += [one for one in found if isinstance(one, str)]
                if len(errors) > MAX_NAMED:
                    # Most likely all are like that, and there may be millions.
                    first = f"the first {rows.stop:,} of {name}"
                    raise ValueError(list_errors(errors, rows.stop, first))
                black = np.zeros(shape[1:], np.uint8)
                yield np.stack([black if isinstance(one, str) else one for one in found])
                report(rows.stop, source.count)
        if errors:
            raise ValueError(list_errors(errors, source.count, name))

    classes = None if names is None else len(names)
    if not is_streamed(stream, name, source.count, math.prod(shape), root):
        with EntryWriter(root, key, shape) as writer:
            for block in blocks():
                writer.append(block)
            dataset = writer.finish(labels, classes, name, {"kind": "encoded", "content": key})
        return dataset._replace(class_names=names)
    pool = ThreadPoolExecutor(os.cpu_count() or 1, "decode-images")

    def read(indices: np.ndarray) -> np.ndarray:
        rows = indices.tolist()
        return np.stack(list(pool.map(decode, rows, (x for x, _ in source.fetch(rows)))))

    stored = np.zeros(source.count, np.int32) if labels is None else labels
    fingerprint = streamed_fingerprint(root, key, shape, stored, blocks)
    images = StreamedImages(read, shape)
    return make_dataset(images, labels, classes, name, fingerprint=fingerprint, class_names=names)


def choose_split(
    available: Sequence[str], split: Literal["train", "heldout"], name: str
) -> tuple[str, bool]:
    """The stored split for "train" or "heldout", and whether a share of it must be held out.

    Held out are `test`, `validation` or `valid`, the first there is; else a share of `train`.
    """
    if "train" not in available:
        raise ValueError(f"{name} has the splits {sorted(available)}, and none of them is train.")
    others = [other for other in ("test", "validation", "valid") if other in available]
    return ("train" if split == "train" or not others else others[0]), not others


def hold_out(
    dataset: ImageDataset, split: str, holdout: float, name: str, root: Path
) -> ImageDataset:
    """The part of a data set that has no other split: the share held out, or what is left.

    The first call for a part of streamed images decodes it, since a run that is resumed may have
    them decoded: the cache folder `root` keeps the fingerprint that they have then.
    """
    if split == "train" and not holdout:
        return dataset._replace(name=name)
    held_out = held_out_of(len(dataset.images), holdout)
    if held_out.all():
        raise ValueError(f"{name}: {holdout=} leaves no image to train on (--data.holdout).")
    part = split_dataset(dataset, held_out == (split == "heldout"), name)
    images = part.images
    if not isinstance(images, StreamedImages) or not len(images):
        return part

    def blocks() -> Iterator[np.ndarray]:
        with progress_bar(None, name, len(images), unit="image") as report:
            for start in range(0, len(images), BLOCK):
                yield (block := images[start : start + BLOCK])
                report(start + len(block), len(images))

    key, labels = part.fingerprint[:24], np.array(part.labels)
    fingerprint = streamed_fingerprint(root, key, images.shape, labels, blocks)
    return part._replace(fingerprint=fingerprint)


def choose_column(
    columns: Mapping[str, Any], kind: type, usual: str, name: str, remedy: str
) -> str | None:
    """The only one of a data set's columns of this kind, or the usual one of several; or None.

    Raises ValueError, with the remedy, for several of which none is the usual one.
    """
    found = [key for key, column in columns.items() if type(column) is kind]
    if usual in found or len(found) < 2:
        return usual if usual in found else next(iter(found), None)
    raise ValueError(
        f"{name} has several columns of the kind {kind.__name__}, {found}, and none is called "
        f"{usual}. {remedy}"
    )


def _check_size(content: bytes, size: tuple[int, int], where: str) -> None:
    with open_image(content, where) as image:
        found = image.height, image.width
    if found != size:
        sizes = ("×".join(map(str, pair)) for pair in (found, size))
        raise ValueError(
            "{} has {} pixels, and the first {}. Give one size for all: --data.resolution.".format(
                where, *sizes
            )
        )


def _checked_label(label: int | None, names: Sequence[str], where: str) -> int:
    if label is None or not 0 <= label < len(names):
        raise ValueError(
            f"{where} has the label {label}, not one of 0 to {len(names) - 1}. Train without "
            "labels: --data.labels none."
        )
    return label
