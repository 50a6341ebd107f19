"""What every loader returns: uint8 images, int32 labels, and a fingerprint of their content."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ddpm_jax.forward.checks import check_number, check_text, host_numbers, host_pixels
from ddpm_jax.types import describe


class ImageDataset(NamedTuple):
    """Decoded images with their labels, ready to be indexed.

    images       uint8 [N, H, W, C], read-only; often a memory map of a cached `.npy`
    labels       int32 [N], 0 ≤ label < num_classes; zeros if the source has none
    num_classes  number of classes, or None if the source has no labels
    name         the data set and its split, as in "cifar10/train"
    fingerprint  `fingerprint_of(images, labels, cond)`, which tells a resumed run that its data are
                 unchanged
    cond         float32 [N, D], a vector per image that networks are conditioned on; or None
    class_names  the name of each class, or None if they are unknown
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int | None
    name: str
    fingerprint: str
    cond: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None


def make_dataset(
    images: np.ndarray,
    labels: np.ndarray | None,
    num_classes: int | None,
    name: str,
    *,
    fingerprint: str | None = None,
    cond: np.ndarray | None = None,
    class_names: tuple[str, ...] | None = None,
) -> ImageDataset:
    """Builds an `ImageDataset` from arrays and checks what every consumer relies on.

    images [N, H, W, C] must be uint8; labels [N] integers below `num_classes`, or None with
    `num_classes=None`; cond [N, D] finite numbers, or None. The fingerprint is computed unless
    given. The arrays are not copied; the data set holds read-only views of them.

    Raises TypeError or ValueError for anything else, including an empty data set.
    """
    check_text("make_dataset", "name", name)
    return build_dataset(
        f"make_dataset({name!r})", images, labels, num_classes, name, fingerprint, cond, class_names
    )


def build_dataset(
    call: str,
    images: np.ndarray,
    labels: np.ndarray | None,
    num_classes: int | None,
    name: str,
    fingerprint: str | None = None,
    cond: np.ndarray | None = None,
    class_names: tuple[str, ...] | None = None,
) -> ImageDataset:
    """`make_dataset`, in the name of the call."""
    pixels = host_pixels(call, images)
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
    if cond is not None:
        cond = _read_only(_checked_cond(call, cond, len(images)))
    if fingerprint is None:
        fingerprint = fingerprint_of(images, labels, cond)
    images, labels = _read_only(images), _read_only(labels)
    return ImageDataset(images, labels, num_classes, name, fingerprint, cond, class_names)


def split_dataset(dataset: ImageDataset, chosen: np.ndarray | slice, name: str) -> ImageDataset:
    """The images of a data set chosen by a mask [N] or indices; possibly none."""
    images, labels = dataset.images[chosen], dataset.labels[chosen]
    cond = None if dataset.cond is None else dataset.cond[chosen]
    return ImageDataset(
        _read_only(images),
        _read_only(labels),
        dataset.num_classes,
        name,
        fingerprint_of(images, labels, cond),
        None if cond is None else _read_only(cond),
        dataset.class_names,
    )


def check_holdout(call: str, holdout: float) -> None:
    """Raises ValueError unless 0 <= holdout < 1, TypeError for what is not a number."""
    if not 0 <= check_number(call, "holdout", holdout) < 1:
        raise ValueError(f"{call} needs 0 ≤ holdout < 1, got {holdout=}.")


def held_out_of(count: int, share: float) -> np.ndarray:
    """A mask [count] of the held-out images: ⌈count · share⌉ of them, evenly spaced."""
    exact = Fraction(share).limit_denominator(1_000_000)
    before = -(-np.arange(count + 1) * exact.numerator // exact.denominator)
    return np.diff(before) > 0


def _checked_cond(call: str, cond: np.ndarray, count: int) -> np.ndarray:
    cond = host_numbers(call, "cond", cond)
    if cond.ndim != 2 or len(cond) != count or not cond.shape[1]:
        raise ValueError(
            f"{call} needs cond [N, D] of numbers for {count} images, got "
            f"{cond.dtype} {cond.shape}."
        )
    cond = cond.astype(np.float32, copy=False)
    if not np.isfinite(cond).all():
        row = int(np.argwhere(~np.isfinite(cond))[0, 0])
        raise ValueError(f"{call} needs finite cond in float32; that of image {row} is not.")
    return cond


class Fingerprint:
    """The fingerprint of a data set whose images come in blocks, to limit memory.

    `Fingerprint(shape)`, then `update(block)` for uint8 blocks in order, then `hexdigest(labels)`.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._hash = hashlib.sha256(f"images uint8 {list(shape)}\n".encode())

    def update(self, block: np.ndarray) -> None:
        """Adds the next images, uint8 [n, H, W, C]."""
        self._hash.update(np.ascontiguousarray(block).data.cast("B"))

    def hexdigest(self, labels: np.ndarray, cond: np.ndarray | None = None) -> str:
        """Adds labels [N], hashed as little-endian int32, and cond, and returns 64 hex digits."""
        self._hash.update(f"labels int32 [{len(labels)}]\n".encode())
        self._hash.update(np.ascontiguousarray(labels, "<i4").tobytes())
        if cond is not None:
            self._hash.update(f"cond float32 {list(cond.shape)}\n".encode())
            self._hash.update(np.ascontiguousarray(cond, "<f4").tobytes())
        return self._hash.hexdigest()


def fingerprint_of(images: np.ndarray, labels: np.ndarray, cond: np.ndarray | None = None) -> str:
    """Returns the sha256 (hex) of the shape and bytes of images [N, H, W, C], labels and cond.

    The order of the examples counts: a run that resumes draws them by index. Raises TypeError for
    images that are not uint8 and for labels or cond that are not numbers, ValueError for other
    shapes.
    """
    call = "fingerprint_of"
    if host_numbers(call, "images", images).dtype != np.uint8 or np.ndim(images) != 4:
        raise TypeError(f"{call} needs uint8 images [N, H, W, C], got {describe(images)}.")
    labels = host_numbers(call, "labels", labels)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{call} needs one integer label per image, [{len(images)}], got {describe(labels)}."
        )
    if cond is not None:
        cond = _checked_cond(call, cond, len(images))
    fingerprint = Fingerprint(images.shape)
    for block in _blocks(images):
        fingerprint.update(block)
    return fingerprint.hexdigest(labels, cond)


def _blocks(images: np.ndarray, num_bytes: int = 1 << 24) -> Iterable[np.ndarray]:
    """Slices images [N, ...] into blocks of about `num_bytes`."""
    size = max(1, num_bytes // max(1, math.prod(images.shape[1:])))
    return (images[start : start + size] for start in range(0, len(images), size))


def _read_only(x: np.ndarray) -> np.ndarray:
    view = x.view()
    view.flags.writeable = False
    return view
