"""What every loader returns: uint8 images, int32 labels, and a fingerprint of both."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class ImageDataset(NamedTuple):
    """Images as they are stored, decoded once and indexed ever after.

    images       uint8 [N, H, W, C], read-only; often a memory map of a cached `.npy`
    labels       int32 [N], 0 ≤ label < num_classes; zeros where the source has none
    num_classes  number of classes, or None where the source has no labels
    name         the data and its split, as in "cifar10/train"
    fingerprint  `fingerprint_of(images, labels)`, by which a resumed run knows its data unchanged
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int | None
    name: str
    fingerprint: str


def make_dataset(
    images: np.ndarray,
    labels: np.ndarray | None,
    num_classes: int | None,
    name: str,
    *,
    fingerprint: str | None = None,
) -> ImageDataset:
    """Builds an `ImageDataset` of arrays the caller has, checking what every consumer relies on.

    images [N, H, W, C] must be uint8; labels [N] integers below `num_classes`, or None with
    `num_classes=None`. The fingerprint is computed unless it is given. The arrays are not copied;
    what is returned are read-only views of them.

    Raises TypeError or ValueError for anything else, an empty data set included.
    """
    if images.dtype != np.uint8:
        raise TypeError(
            f"make_dataset({name!r}) needs uint8 images, got {images.dtype}. "
            "Store pixels as 0..255; prepare_images maps them to [-1, 1]."
        )
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"make_dataset({name!r}) needs images [N, H, W, C] with every axis ≥ 1, "
            f"got shape {images.shape}. Grey images need a last axis of 1."
        )
    if (labels is None) != (num_classes is None):
        raise ValueError(
            f"make_dataset({name!r}) needs labels and num_classes together or neither, got "
            f"labels {'absent' if labels is None else 'given'} and {num_classes=}."
        )
    if labels is None:
        labels = np.zeros(len(images), np.int32)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"make_dataset({name!r}) needs integer labels [N] for {len(images)} images, "
            f"got {labels.dtype} {labels.shape}."
        )
    if num_classes is not None and not (0 <= labels.min() and labels.max() < num_classes):
        raise ValueError(
            f"make_dataset({name!r}) needs 0 ≤ label < {num_classes}, "
            f"got labels from {labels.min()} to {labels.max()}."
        )
    labels = labels.astype(np.int32, copy=False)
    if fingerprint is None:
        fingerprint = fingerprint_of(images, labels)
    return ImageDataset(_read_only(images), _read_only(labels), num_classes, name, fingerprint)


class Fingerprint:
    """The fingerprint of a data set whose images come in blocks, so that none need fit in memory.

    `Fingerprint(shape)`, then `update(block)` for uint8 blocks in order, then `hexdigest(labels)`.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._hash = hashlib.sha256(f"images uint8 {list(shape)}\n".encode())

    def update(self, block: np.ndarray) -> None:
        """Adds the next images, uint8 [n, H, W, C]."""
        self._hash.update(np.ascontiguousarray(block).data.cast("B"))

    def hexdigest(self, labels: np.ndarray) -> str:
        """Closes with the labels [N] (hashed as little-endian int32) and returns 64 hex digits."""
        self._hash.update(f"labels int32 [{len(labels)}]\n".encode())
        self._hash.update(np.ascontiguousarray(labels, "<i4").tobytes())
        return self._hash.hexdigest()


def fingerprint_of(images: np.ndarray, labels: np.ndarray) -> str:
    """Returns the sha256 (hex) of the shape and bytes of images [N, H, W, C] and labels [N].

    The order of the examples counts: a run that resumes draws them by index.
    """
    fingerprint = Fingerprint(images.shape)
    for block in _blocks(images):
        fingerprint.update(block)
    return fingerprint.hexdigest(labels)


def _blocks(images: np.ndarray, num_bytes: int = 1 << 24) -> Iterable[np.ndarray]:
    """Slices images [N, ...] into blocks of about `num_bytes`."""
    size = max(1, num_bytes // max(1, images[0].nbytes))
    return (images[start : start + size] for start in range(0, len(images), size))


def _read_only(x: np.ndarray) -> np.ndarray:
    view = x.view()
    view.flags.writeable = False
    return view
