"""Data sets, as every loader returns them: uint8 images, int32 labels, and a fingerprint.

Signals [N, L, C] and volumes [N, D, H, W, C] also form data sets, and are called images here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.conditions import CONDITIONS, checked_conditions, condition_dtype, shapes_beside
from ddpm_jax.data.streamed import StreamedImages
from ddpm_jax.forward.checks import check_text, host_numbers, host_pixels, spatial_axes
from ddpm_jax.types import describe

BLOCK_BYTES = 1 << 24
MAX_CLASSES = 1_000_000
"""Each class has a row in the network's embedding table; more are identifiers by mistake."""


class ImageDataset(NamedTuple):
    """Decoded images with their labels, ready to be indexed.

    images       uint8 [N, H, W, C], read-only; often a memory map of a cached `.npy`, or
                 `StreamedImages`. Or signals [N, L, C], or volumes [N, D, H, W, C]
    labels       int32 [N], 0 ≤ label < num_classes; zeros if the source has none
    num_classes  number of classes, or None if the source has no labels
    name         the data set and its split, as in "cifar10/train"
    fingerprint  `fingerprint_of(images, labels, **conditions)`, which tells a resumed run that its
                 data are unchanged
    cond         float32 [N, D], a vector per image that networks are conditioned on; or None
    class_names  the name of each class, or None if they are unknown
    context      float32 [N, L, D], L tokens per image that networks are conditioned on; or None
    context_mask bool [N, L], False for tokens that are not there; None without a context
    concat       uint8 or float32 [N, H, W, C'], an array per image that is concatenated to x_t; or
                 None
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int | None
    name: str
    fingerprint: str
    cond: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    context: np.ndarray | None = None
    context_mask: np.ndarray | None = None
    concat: np.ndarray | None = None

    @property
    def spatial_rank(self) -> int:
        """The number of spatial axes: 1 for signals, 2 for images, 3 for volumes."""
        return np.ndim(self.images) - 2

    @property
    def conditions(self) -> dict[str, np.ndarray]:
        """Those of `cond`, `context`, `context_mask` and `concat` that the data set has."""
        found = {name: getattr(self, name) for name in CONDITIONS}
        return {name: x for name, x in found.items() if x is not None}


def make_dataset(
    images: np.ndarray | StreamedImages,
    labels: np.ndarray | None,
    num_classes: int | None,
    name: str,
    *,
    fingerprint: str | None = None,
    cond: np.ndarray | None = None,
    context: np.ndarray | None = None,
    context_mask: np.ndarray | None = None,
    concat: np.ndarray | None = None,
    class_names: tuple[str, ...] | None = None,
    spatial_rank: int = 2,
) -> ImageDataset:
    """Builds an `ImageDataset` from arrays and checks what every consumer relies on.

    images        uint8 [N, H, W, C]; [N, L, C] with spatial_rank=1, [N, D, H, W, C] with 3
    labels        integers [N] below `num_classes`, or None with `num_classes=None`
    cond, context, context_mask, concat  as in `data.conditions`, or None
    fingerprint   computed unless given

    The arrays are not copied; the data set holds read-only views of them.

    Raises TypeError or ValueError for anything else, including an empty data set.
    """
    check_text("make_dataset", "name", name)
    return build_dataset(
        f"make_dataset({name!r})",
        images,
        labels,
        num_classes,
        name,
        fingerprint,
        class_names,
        cond=cond,
        context=context,
        context_mask=context_mask,
        concat=concat,
        spatial_rank=spatial_rank,
    )


def build_dataset(
    call: str,
    images: np.ndarray | StreamedImages,
    labels: np.ndarray | None,
    num_classes: int | None,
    name: str,
    fingerprint: str | None = None,
    class_names: tuple[str, ...] | None = None,
    spatial_rank: int = 2,
    **given: np.ndarray | None,
) -> ImageDataset:
    """`make_dataset`, with errors that name the call."""
    if not isinstance(images, StreamedImages):
        pixels = host_pixels(call, images, f"N{spatial_axes(call, spatial_rank)}C")
        _, first, *rest = pixels.shape
        if len(rest) > 1 and first in (1, 3, 4) and rest[-1] == rest[-2] > 4:
            raise ValueError(
                f"{call} needs images with the channels last, got shape {pixels.shape}, with "
                f"{first} channels before {rest[-2]}×{rest[-1]} pixels. "
                "np.moveaxis(images, 1, -1) moves them."
            )
        images = images if isinstance(images, np.ndarray) else pixels  # a memory map stays one
    for what, value in (("num_classes", num_classes), ("fingerprint", fingerprint)):
        kind = int if what == "num_classes" else str
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise TypeError(f"{call} needs {what}, {kind.__name__} or None, got {describe(value)}.")
    if (labels is None) != (num_classes is None):
        raise ValueError(
            f"{call} needs labels and num_classes together or neither, got "
            f"labels {'absent' if labels is None else 'given'} and {num_classes=}."
        )
    if labels is None:
        labels = np.zeros(len(images), np.int32)
    labels = host_numbers(call, "labels", labels)
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{call} needs integer labels [N] for {len(images)} images, "
            f"got {labels.dtype} {labels.shape}."
        )
    if num_classes is not None and num_classes > MAX_CLASSES:
        raise ValueError(
            f"{call} needs at most {MAX_CLASSES:,} classes, got {num_classes:,}. If the labels are "
            "identifiers, number them from 0: np.unique(labels, return_inverse=True)[1]."
        )
    if num_classes is not None and not (0 <= labels.min() and labels.max() < num_classes):
        raise ValueError(
            f"{call} needs 0 ≤ label < {num_classes}, "
            f"got labels from {labels.min()} to {labels.max()}."
        )
    if isinstance(class_names, str) or not isinstance(class_names, Sequence | None):
        raise TypeError(f"{call} needs class_names, strings, got {describe(class_names)}.")
    for one in class_names or ():
        check_text(call, "class_names", one)
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(
            f"{call} needs one name per class, got {len(class_names)} names for {num_classes=}."
        )
    labels = labels.astype(np.int32, copy=False)
    conditions = checked_conditions(given, call, shapes_beside(images.shape[1:-1]), len(images))
    if fingerprint is None:
        fingerprint = _fingerprint(images, labels, conditions)
    every: Any = images
    dataset = ImageDataset(every, labels, num_classes, name, fingerprint, class_names=class_names)
    return _read_only(dataset._replace(**conditions))


def split_dataset(dataset: ImageDataset, chosen: np.ndarray | slice, name: str) -> ImageDataset:
    """The images of a data set chosen by a mask [N] or indices; possibly none.

    Streamed images are not decoded: the fingerprint of the data set and the choice identify them.
    """
    labels = dataset.labels[chosen]
    conditions = {name: x[chosen] for name, x in dataset.conditions.items()}
    if isinstance(dataset.images, StreamedImages):
        images: Any = dataset.images.subset(chosen)
        rows = np.arange(len(dataset.images), dtype="<i8")[chosen].tobytes()
        fingerprint = hashlib.sha256(dataset.fingerprint.encode() + rows).hexdigest()
    else:
        images = dataset.images[chosen]
        fingerprint = _fingerprint(images, labels, conditions)
    part = {"images": images, "labels": labels, "name": name, "fingerprint": fingerprint}
    return _read_only(dataset._replace(**part, **conditions))


def held_out_of(count: int, share: float) -> np.ndarray:
    """A mask [count] of the held-out images: ⌈count · share⌉ of them, evenly spaced."""
    exact = Fraction(share).limit_denominator(1_000_000)
    before = -(-np.arange(count + 1) * exact.numerator // exact.denominator)
    return np.diff(before) > 0


class Fingerprint:
    """The fingerprint of a data set whose images come in blocks, to limit memory.

    `Fingerprint(shape)`, then `update(block)` for uint8 blocks in order, then `hexdigest(labels)`.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._hash = hashlib.sha256(f"images uint8 {list(shape)}\n".encode())

    def update(self, block: np.ndarray) -> None:
        """Adds the next images, uint8 [n, H, W, C]."""
        self._hash.update(np.ascontiguousarray(block).data.cast("B"))

    def hexdigest(self, labels: np.ndarray, **conditions: np.ndarray) -> str:
        """Adds labels [N] as little-endian int32, and conditions, and returns 64 hex digits."""
        self._hash.update(f"labels int32 [{len(labels)}]\n".encode())
        self._hash.update(np.ascontiguousarray(labels, "<i4").tobytes())
        for name in sorted(conditions):
            x = conditions[name]
            dtype = condition_dtype(name, x)
            self._hash.update(f"{name} {dtype} {list(x.shape)}\n".encode())
            self._hash.update(np.ascontiguousarray(x, dtype.newbyteorder("<")).tobytes())
        return self._hash.hexdigest()


def fingerprint_of(images: np.ndarray, labels: np.ndarray, **conditions: np.ndarray) -> str:
    """Returns the sha256 (hex) of shape and bytes of images [N, H, W, C], labels and conditions.

    The order of the examples counts: a run that resumes draws them by index. Raises TypeError for
    images that are not uint8 and for labels or conditions that are not numbers, ValueError for
    other shapes.
    """
    call = "fingerprint_of"
    if host_numbers(call, "images", images).dtype != np.uint8 or np.ndim(images) != 4:
        raise TypeError(f"{call} needs uint8 images [N, H, W, C], got {describe(images)}.")
    labels = host_numbers(call, "labels", labels)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{call} needs one integer label per image, [{len(images)}], got {describe(labels)}."
        )
    shapes = shapes_beside(images.shape[1:-1])
    return _fingerprint(images, labels, checked_conditions(conditions, call, shapes, len(images)))


def _fingerprint(images: Any, labels: np.ndarray, conditions: dict[str, np.ndarray]) -> str:
    fingerprint = Fingerprint(images.shape)
    size = max(1, BLOCK_BYTES // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), size):
        fingerprint.update(images[start : start + size])
    return fingerprint.hexdigest(labels, **conditions)


def _read_only(dataset: ImageDataset) -> ImageDataset:
    """The same data set, with read-only views of its arrays."""

    def view(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = value.view()
            value.flags.writeable = False
        return value

    return ImageDataset(*map(view, dataset))
