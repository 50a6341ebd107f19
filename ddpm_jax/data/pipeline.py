"""Turns a stored data set into the batches of training steps.

A training loop runs K consecutive steps at a time. If the images fit on the device, they stay there
as uint8, and a chunk consists of indices only, `ShuffledIndices.chunk(step, K)`. If not,
`PrefetchedBatches` reads the images of the next chunks in the background. Either way the examples
are a function of the step, and the jitted step converts them to floats with `prepare_images`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.dataset import ImageDataset
from ddpm_jax.data.shuffle import ShuffledIndices
from ddpm_jax.data.streamed import StreamedImages
from ddpm_jax.forward.checks import check_flag, check_function, check_kind, check_whole
from ddpm_jax.forward.pixels import from_pixels
from ddpm_jax.keys import check_keys, fold_in_each
from ddpm_jax.types import Array, Key, bcast_right, describe

PADDING = 4
"""Pixels of padding on each side before `prepare_images` crops; He et al. 2016, §4.2."""
DEPTH = 2
"""Finished chunks of `PrefetchedBatches` that may wait, besides those being read and in use."""


def prepare_images(images: Array, keys: Key | None, *, flip: bool, pad_crop: bool = False) -> Array:
    """Maps uint8 images [B, H, W, C] to float32 in [-1, 1], with random augmentation.

    flip      mirror left and right with probability ½; signals [B, L, C] end to end
    pad_crop  shift by up to 4 pixels in each direction: pad by reflection, then crop (He et al.
              2016, §4.2, who pad with zeros)

    Each example draws from its own key, keys [B], so that the result does not depend on how a batch
    is distributed over devices. Without augmentation, keys may be None. Traceable.
    `augment_images` does the same for floats.

    Raises TypeError for images that are not uint8, and for missing or untyped keys; ValueError for
    keys of another shape than [B], and for images too small to be padded by reflection.
    """
    if getattr(images, "dtype", None) != jnp.uint8:
        raise TypeError(f"prepare_images needs uint8 images in 0..255, got {describe(images)}.")
    check_flag("prepare_images", "flip", flip)
    check_flag("prepare_images", "pad_crop", pad_crop)
    return augment_images(from_pixels(images), keys, flip=flip, pad_crop=pad_crop)


def augment_images(x: Array, keys: Key | None, *, flip: bool, pad_crop: bool = False) -> Array:
    """Mirrors and shifts x [B, H, W, C], or signals or volumes, like `prepare_images`.

    The augmentation of an example depends only on its key: arrays of one size stay aligned.
    """
    if not flip and not pad_crop:
        return x
    keys = cast(Key, keys)
    check_keys("prepare_images", keys, len(x))
    key_crop = fold_in_each(keys, 1) if pad_crop else None
    if flip:
        mirrored = jax.vmap(jax.random.bernoulli)(keys)
        x = jnp.where(bcast_right(mirrored, x.ndim), jnp.flip(x, -2), x)
    return x if key_crop is None else _pad_crop(x, key_crop)


def _pad_crop(x: Array, keys: Key) -> Array:
    """Pads x [B, H, W, C] by reflection and crops it at random to its size."""
    space = x.shape[1:-1]
    if min(space) <= PADDING:
        raise ValueError(
            f"prepare_images with pad_crop=True needs images of more than {PADDING} pixels per "
            f"side, got {'×'.join(map(str, space))}. Leave pad_crop out (--data.augment)."
        )
    sides = ((PADDING, PADDING),) * len(space)
    padded = jnp.pad(x, ((0, 0), *sides, (0, 0)), mode="reflect")

    def crop(image: Array, key: Key) -> Array:
        corner = jax.random.randint(key, (len(space),), 0, 2 * PADDING + 1, jnp.int32)
        return jax.lax.dynamic_slice(image, (*corner, 0), x.shape[1:])

    return jax.vmap(crop)(padded, keys)


def fits_on_device(dataset: ImageDataset, limit_bytes: int) -> bool:
    """Whether images, labels and conditions take at most `limit_bytes` of device memory.

    Streamed images never do: they are decoded step by step.
    """
    check_kind("fits_on_device", "dataset", dataset, ImageDataset, "data.make_dataset")
    check_whole("fits_on_device", "limit_bytes", limit_bytes, least=0)
    if isinstance(dataset.images, StreamedImages):
        return False
    arrays = (dataset.images, dataset.labels, *dataset.conditions.values())
    return sum(x.nbytes for x in arrays) <= limit_bytes


class BatchChunk(NamedTuple):
    """The batches of K consecutive training steps, or one process's share of them.

    step        the first of the K global steps
    indices     int32 [K, B] into the data set
    images      uint8 [K, B, H, W, C]
    labels      int32 [K, B]
    conditions  those of cond [K, B, D], context [K, B, L, D], context_mask, concat that there are
    """

    step: int
    indices: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    conditions: dict[str, np.ndarray]


class PrefetchedBatches:
    """Reads the images of coming steps in a background thread: a context manager and an iterator.

        with PrefetchedBatches(dataset, indices, start_step=7, chunk_length=lambda s: 8) as chunks:
            for chunk in chunks: ...

    dataset       the images, usually a memory map larger than memory
    indices       `ShuffledIndices` of the global batch over that data set
    start_step    the first step to read; resuming needs nothing else
    chunk_length  maps a chunk's first step to its number of steps; 0 ends the sequence
    share         the part of the global batch that this process reads; by default all

    A read error is raised in the consumer as a RuntimeError naming steps and data, with the cause
    attached. Leaving the `with` block in any way ends the thread.

    Raises ValueError if `indices` is for another number of examples.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        indices: ShuffledIndices,
        *,
        start_step: int,
        chunk_length: Callable[[int], int],
        share: slice = slice(None),
    ) -> None:
        call = "PrefetchedBatches"
        check_kind(call, "dataset", dataset, ImageDataset, "data.make_dataset")
        check_kind(call, "indices", indices, ShuffledIndices, "data.ShuffledIndices")
        check_kind(call, "share", share, slice, "as devices.mesh.own_rows")
        start_step = check_whole(call, "start_step", start_step, least=0)
        check_function(call, "chunk_length", chunk_length, "(first step) -> number of steps")
        if indices.num_examples != len(dataset.images):
            raise ValueError(
                f"PrefetchedBatches got indices over {indices.num_examples} examples for "
                f"{dataset.name} of {len(dataset.images)}. Build the indices for that data set."
            )
        self._dataset, self._indices, self._share = dataset, indices, share
        self._step, self._chunk_length = start_step, chunk_length
        self._coming: deque[Future[BatchChunk | None]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> PrefetchedBatches:
        if self._pool is not None:
            raise RuntimeError("PrefetchedBatches can be entered once. Make another for each pass.")
        self._pool = ThreadPoolExecutor(1, "prefetched-batches")
        for _ in range(DEPTH + 1):
            self._coming.append(self._pool.submit(self._read_next))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._coming.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[BatchChunk]:
        return self

    def __next__(self) -> BatchChunk:
        if self._pool is None or not self._coming:
            raise RuntimeError(
                "PrefetchedBatches has no thread reading for it. Iterate inside a `with` block."
            )
        # The end and an error stay in the queue: a later `next` finds them again.
        chunk = self._coming[0].result()
        if chunk is None:
            raise StopIteration
        self._coming.append(self._pool.submit(self._read_next))
        self._coming.popleft()
        return chunk

    def _read_next(self) -> BatchChunk | None:
        """Reads the chunk that follows, in the pool's only thread; None after the last."""
        step, length, data = self._step, 0, self._dataset
        try:
            length = check_whole(
                "PrefetchedBatches", "chunk_length(step)", self._chunk_length(step), least=0
            )
            chunk = self._read(step, length) if length else None
        except Exception as error:
            filename = getattr(data.images, "filename", None)
            raise RuntimeError(
                f"PrefetchedBatches could not read steps {step}..{step + max(length, 1) - 1} of "
                f"{data.name}" + (f" ({filename})" if filename else "") + f": {error!r}"
            ) from error
        self._step += length
        return chunk

    def _read(self, step: int, length: int) -> BatchChunk:
        chosen = self._indices.chunk(step, length)[:, self._share]
        data = self._dataset
        conditions = {name: x[chosen] for name, x in data.conditions.items()}
        return BatchChunk(step, chosen, data.images[chosen], data.labels[chosen], conditions)
