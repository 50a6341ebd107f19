"""Running a sampler over many images: in batches, on all devices, with progress, one key per image.

Image i of seed s is the same image whatever the batch size, the number of devices, or how many are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ddpm_jax.keys import example_keys
from ddpm_jax.pixels import to_pixels
from ddpm_jax.samplers import Sampler, advance, grid_steps, initial_noise
from ddpm_jax.types import Array, Denoiser, PyTree

DenoiserOf = Callable[[PyTree, Any], Denoiser]
"""`denoiser_of(params, labels) -> denoise`: binds parameters and labels [B] (None without classes)."""


class Stopped(Exception):  # noqa: N818 - a request honoured, not an error
    """Sampling was asked to stop before it was done."""


class Generated(NamedTuple):
    """uint8 images [N, H, W, C] and, when asked for, frames of x_t on the way [F, N', H, W, C]."""

    images: np.ndarray
    frames: np.ndarray | None


def chunk_length(num_steps: int, target_chunks: int) -> int:
    """The largest divisor of num_steps that cuts it into at least `target_chunks` chunks, or 1."""
    limit = max(1, num_steps // target_chunks)
    return max(d for d in range(1, limit + 1) if num_steps % d == 0)


def generate(
    sampler: Sampler,
    denoiser_of: DenoiserOf,
    params: PyTree,
    *,
    seed: int,
    count: int,
    shape: tuple[int, ...],
    batch_size: int = 64,
    labels: np.ndarray | None = None,
    devices: Sequence[jax.Device] | None = None,
    frames_of: int = 0,
    target_chunks: int = 40,
    on_progress: Callable[[int], None] = lambda steps: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generated:
    """Generates `count` images of `shape` [H, W, C] as uint8.

    Args:
        sampler: a sampler over its grid.
        denoiser_of: see DenoiserOf.
        params: usually the averaged parameters; copied to every device.
        seed: image i is a function of (seed, i) alone.
        count: how many.
        shape: of one event.
        batch_size: images at a time over all devices; rounded up to a multiple of their number.
        labels: one class per image [count], for conditional networks.
        devices: where; the default device when None.
        frames_of: keep the way of the first so many images (at most one batch).
        target_chunks: how many frames, and reports of progress, a batch has at least.
        on_progress: told the number of network steps × images done since the last call.
        should_stop: asked between chunks; Stopped is raised when it says so.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"generate needs count >= 1 and batch_size >= 1, got {count=}, {batch_size=}.")
    if labels is not None and len(labels) != count:
        raise ValueError(f"generate needs one label per image, got {len(labels)} for {count} images.")
    devices = tuple(devices) if devices else tuple(jax.local_devices()[:1])
    size = -(-min(batch_size, count) // len(devices)) * len(devices)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    split, whole = PartitionSpec("data"), PartitionSpec()

    def start(keys):
        x_T = initial_noise(keys, shape)
        return x_T, sampler.init(x_T)

    def run(params, x, state, keys, labels, steps):
        x, state, _ = advance(
            sampler, denoiser_of(params, labels), x, state, steps, keys=keys if sampler.stochastic else None
        )
        return x, state

    # Without the check of varying axes: a user's sampler state may hold constants, which are the same anywhere.
    def mapped(fn, in_specs):
        return jax.jit(
            jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=split, check_vma=False)
        )

    start_fn = mapped(start, (split,))
    run_fn = mapped(run, (whole, split, split, split, split, whole))
    params = jax.device_put(params, NamedSharding(mesh, whole))
    steps = np.asarray(grid_steps(sampler))
    chunk = chunk_length(len(steps), target_chunks)
    images, frames = [], []
    for first in range(0, count, size):
        # The last batch is filled up with images nobody asked for, so that one program serves all.
        index = np.arange(first, first + size)
        real = min(size, count - first)
        batch_labels = None
        if labels is not None:
            batch_labels = jax.device_put(
                np.resize(labels[first : first + real], size).astype(np.int32),
                NamedSharding(mesh, split),
            )
        keys = jax.device_put(
            example_keys(jax.random.key(seed), jnp.asarray(index, jnp.uint32)),
            NamedSharding(mesh, split),
        )
        x, state = start_fn(keys)
        keep = first == 0 and frames_of > 0
        if keep:
            frames.append(_pixels(x, frames_of))
        for begin in range(0, len(steps), chunk):
            if should_stop():
                raise Stopped(f"stopped after {first} of {count} images")
            x, state = run_fn(params, x, state, keys, batch_labels, steps[begin : begin + chunk])
            if keep:
                frames.append(_pixels(x, frames_of))
            else:
                jax.block_until_ready(x)
            on_progress(real * chunk)
        images.append(_pixels(x, real))
    return Generated(np.concatenate(images), np.stack(frames) if frames else None)


def _pixels(x: Array, count: int) -> np.ndarray:
    return np.asarray(to_pixels(jax.device_get(x)[:count]))
