"""Images decoded when they are used, for data sets that do not fit on the disk when decoded."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ddpm_jax.forward.checks import check_function
from ddpm_jax.types import describe

Stream = Literal["auto", "always", "never"]
"""Whether images are decoded when they are used, or once into the cache: "auto" streams them if the
disk of the cache has no room for all."""
ANNOUNCED_BYTES = 2**28
"""From this size on, the bytes needed are printed before decoding begins."""
MEMORY_BYTES = 2**32
"""Limit in bytes for turning streamed images into one array."""


class StreamedImages:
    """uint8 images [N, H, W, C] that are decoded when they are indexed.

    An integer, a slice, a mask or indices of any shape return NumPy arrays, as for an array.

    Args:
        read: maps indices [n] to images uint8 [n, H, W, C]; called from several threads.
        shape: [N, H, W, C].
        rows: the indices [N] that `read` gets; by default 0 … N-1.

    Raises TypeError unless `read` is a function, and if it returns anything but such images;
    ValueError for another shape.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        read: Callable[[np.ndarray], np.ndarray],
        shape: tuple[int, ...],
        rows: np.ndarray | None = None,
    ):
        check_function("StreamedImages", "read", read, "(indices) -> images")
        whole = isinstance(shape, Sequence) and all(
            isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 0 for n in shape
        )
        if not whole or len(shape) < 3:
            raise ValueError(
                f"StreamedImages needs shape, [N, H, W, C] as whole numbers, got {describe(shape)}."
            )
        self._read, self.shape = read, tuple(map(int, shape))
        self._rows = np.arange(shape[0]) if rows is None else rows

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes that all images take when decoded."""
        return self.size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, tuple):
            raise TypeError(
                f"streamed images are indexed by their first axis alone, got {describe(key)}. "
                "Index the returned images."
            )
        rows = self._rows[key]
        event = self.shape[1:]
        if not np.size(rows):
            return np.zeros((*np.shape(rows), *event), np.uint8)
        made = self._read(np.reshape(rows, -1))
        wanted = (np.size(rows), *event)
        if getattr(made, "dtype", None) != np.uint8 or np.shape(made) != wanted:
            raise TypeError(
                f"StreamedImages needs a function that reads uint8 {list(wanted)}, got "
                f"{describe(made)}."
            )
        return made.reshape(*np.shape(rows), *event)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.nbytes > MEMORY_BYTES:
            raise ValueError(
                f"all images at once take {self.nbytes:,} bytes, and streamed images become one "
                f"array only up to {MEMORY_BYTES:,}. Use some of them, images[:1000], or decode "
                "them into the cache (--data.stream never)."
            )
        return self[:] if dtype is None else self[:].astype(dtype)

    def subset(self, chosen: np.ndarray | slice) -> StreamedImages:
        """The images at these indices, or where this mask is true; decodes nothing."""
        rows = self._rows[chosen]
        return StreamedImages(self._read, (len(rows), *self.shape[1:]), rows)


def is_streamed(stream: Stream, name: str, count: int, num_bytes: int, root: Path) -> bool:
    """Whether to stream images that take num_bytes when decoded; announces large data sets.

    "auto" streams if the disk of the cache folder `root` has less free space.
    """
    free = _free_bytes(root)
    streamed = stream == "always" or (stream == "auto" and num_bytes > free)
    if num_bytes >= ANNOUNCED_BYTES or (streamed and stream == "auto"):
        takes = f"{name}: {count:,} images take {num_bytes:,} bytes decoded"
        what = f"{takes}; they are decoded into {root}, which has {free:,} bytes free"
        if streamed:
            what = (
                f"{takes}, and {root} has {free:,} bytes free; they are decoded when they are "
                "used (--data.stream), after all have been read once to check and identify them"
            )
        print(what, file=sys.stderr, flush=True)
    return streamed


def _free_bytes(root: Path) -> int:
    """The free space on the disk of a folder that need not exist."""
    for place in (root, *root.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return 0
