"""Running a sampler over many images: in batches, on all devices, with progress, one key per image.

Image i of seed s is the same image whatever the batch size, the number of devices, or how many are
asked for. The devices may belong to several processes; all of them call, and all get all images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax.devices import processes
from ddpm_jax.forward.pixels import to_pixels
from ddpm_jax.keys import example_keys
from ddpm_jax.samplers import Sampler, advance, grid_steps, initial_noise
from ddpm_jax.types import Array, Denoiser, Device, PyTree

DenoiserOf = Callable[[PyTree, Any], Denoiser]
"""`denoiser_of(params, labels) -> denoise`: binds parameters and labels [B] (None without
classes)."""


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


class Generator:
    """Generates images with one sampler; compiled once, whatever the number of calls.

    Args:
        sampler: a sampler over its grid.
        denoiser_of: see DenoiserOf.
        shape: of one image, [H, W, C].
        devices: what to run on; the default device when None. In one process no more of them are
            used than there are images.
        target_chunks: how many chunks the grid is cut into at least: frames, and reports of
            progress.
    """

    def __init__(
        self,
        sampler: Sampler,
        denoiser_of: DenoiserOf,
        shape: tuple[int, ...],
        *,
        devices: Sequence[Device] | None = None,
        target_chunks: int = 40,
    ):
        self.shape = shape
        self.devices = tuple(devices) if devices else tuple(jax.local_devices()[:1])
        self._fewer: dict[int, Generator] = {}
        self._on = functools.partial(
            Generator, sampler, denoiser_of, shape, target_chunks=target_chunks
        )
        self._steps = np.asarray(grid_steps(sampler))
        self._chunk = chunk_length(len(self._steps), target_chunks)
        mesh = processes.make_mesh(self.devices)
        self._split = NamedSharding(mesh, PartitionSpec(processes.AXES))
        self._whole = NamedSharding(mesh, PartitionSpec())

        def start(seed, index):
            keys = example_keys(jax.random.key(seed), index)
            x_T = initial_noise(keys, shape)
            return keys, x_T, sampler.init(x_T)

        def run(params, x, state, keys, labels, steps):
            denoise = denoiser_of(params, labels)
            noise_keys = keys if sampler.stochastic else None
            x, state, _ = advance(sampler, denoise, x, state, steps, keys=noise_keys)
            return x, state

        split, whole = self._split.spec, self._whole.spec

        def mapped(fn, in_specs):
            # Unchecked: a sampler's state may hold constants, which are the same on every device
            # anyway.
            return jax.jit(
                jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=split, check_vma=False)
            )

        self._start = mapped(start, (whole, split))
        self._run = mapped(run, (whole, split, split, split, split, whole))

    @property
    def num_steps(self) -> int:
        """Steps of the sampler's grid."""
        return len(self._steps)

    def __call__(
        self,
        params: PyTree,
        *,
        seed: int,
        count: int,
        batch_size: int = 64,
        start: int = 0,
        labels: np.ndarray | None = None,
        frames_of: int = 0,
        on_progress: Callable[[int], None] = lambda steps: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Generated:
        """Generates `count` images as uint8 [count, H, W, C].

        Args:
            params: usually the averaged parameters; copied to every device.
            seed: image i is a function of (seed, i) alone.
            count: how many.
            batch_size: images at a time over all devices; rounded up to a multiple of those used.
            start: number of the first image, to go on from where an earlier call ended.
            labels: one class per image [count], for conditional networks.
            frames_of: also keep x_t on the way, of the first so many images (at most one batch).
            on_progress: told the number of images × steps done since the last call.
            should_stop: asked between chunks; Stopped is raised when it says so.

        Raises ValueError for counts below one, seeds beyond 32 bits, and labels that are not one
        per image.
        """
        if count < 1 or batch_size < 1 or start < 0 or not 0 <= seed < 2**32:
            raise ValueError(
                "a Generator needs count >= 1, batch_size >= 1, start >= 0 and 0 <= seed < 2**32, "
                f"got {count=}, {batch_size=}, {start=}, {seed=}."
            )
        if labels is not None and len(labels) != count:
            raise ValueError(
                f"a Generator needs one label per image, got {len(labels)} for {count} images."
            )
        most = min(batch_size, count)
        if most < len(self.devices) and processes.num_processes() == 1:
            if most not in self._fewer:
                self._fewer[most] = self._on(devices=self.devices[:most])
            return self._fewer[most](
                params,
                seed=seed,
                count=count,
                batch_size=batch_size,
                start=start,
                labels=labels,
                frames_of=frames_of,
                on_progress=on_progress,
                should_stop=should_stop,
            )
        size = -(-most // len(self.devices)) * len(self.devices)
        params = processes.spread(params, self._whole)
        images, frames = [], []
        for first in range(0, count, size):
            # The last batch is filled up with images nobody asked for, so that one program serves
            # all.
            real = min(size, count - first)
            index = np.arange(start + first, start + first + size, dtype=np.uint32)
            batch_labels = None
            if labels is not None:
                filled = np.resize(labels[first : first + real], size).astype(np.int32)
                batch_labels = processes.put(filled, self._split)
            keys, x, state = self._start(np.uint32(seed), processes.put(index, self._split))
            keep = first == 0 and frames_of > 0
            if keep:
                frames.append(_pixels(x, frames_of))
            for begin in range(0, self.num_steps, self._chunk):
                if should_stop():
                    raise Stopped(f"stopped after {first} of {count} images")
                steps = self._steps[begin : begin + self._chunk]
                x, state = self._run(params, x, state, keys, batch_labels, steps)
                if keep:
                    frames.append(_pixels(x, frames_of))
                jax.block_until_ready(x)
                on_progress(real * len(steps))
            images.append(_pixels(x, real))
        return Generated(np.concatenate(images), np.stack(frames) if frames else None)


def _pixels(x: Array, count: int) -> np.ndarray:
    return np.asarray(to_pixels(processes.fetch(x)[:count]))
