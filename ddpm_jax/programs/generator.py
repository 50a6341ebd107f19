"""Running a sampler over many images: in batches, on all devices, with progress, one key per image.

Image i of seed s is the same image whatever the batch size, the number of devices, or how many are
asked for. The devices may belong to several processes; all of them call, and all get all images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax.devices import processes
from ddpm_jax.forward.pixels import to_pixels
from ddpm_jax.keys import example_keys
from ddpm_jax.samplers import Sampler, advance, grid_steps, initial_noise
from ddpm_jax.types import Array, Denoiser, Device, Key, PyTree, bcast_right

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


class Trajectory(NamedTuple):
    """The end of a reverse process and what it passed through, float32 on the host.

    x        [N, ...], after the last step
    frames   [F, N, ...], x before each chunk of steps; F = 0 unless they were kept
    x_0_hat  [F, N, ...], the x̂_0 estimated from each frame; likewise
    """

    x: np.ndarray
    frames: np.ndarray
    x_0_hat: np.ndarray


class ReverseProcess:
    """Runs a sampler from given x [N, ...] over given steps, in batches on all devices.

    `Generator` starts from noise and returns images; here the caller chooses x, the steps and the
    noise. Compiled once for all calls.

    Args:
        params: the network's parameters; copied to every device.
        sampler_of: returns the sampler, given `condition` for a batch (or None).
        denoiser_of: see DenoiserOf.
        devices: what to run on.
        chunk: steps per compiled call; must divide the number of steps of every call.
        batch_size: examples at a time over all devices; changes speed and memory only.
    """

    def __init__(
        self,
        params: PyTree,
        sampler_of: Callable[[Array | None], Sampler],
        denoiser_of: DenoiserOf,
        *,
        devices: Sequence[Device],
        chunk: int,
        batch_size: int,
    ):
        self._batch_size, self._chunk, self._count = batch_size, chunk, len(devices)
        mesh = processes.make_mesh(devices)
        self._split = NamedSharding(mesh, PartitionSpec(processes.AXES))
        whole = NamedSharding(mesh, PartitionSpec())
        self._params = jax.device_put(jax.device_get(params), whole)

        def start(x, condition):
            return sampler_of(condition).init(x)

        def run(params, x, state, keys, labels, condition, steps):
            sampler = _keeping_x_0_hat(sampler_of(condition), steps[0])
            noise_keys = keys if sampler.stochastic else None
            denoise = denoiser_of(params, labels)
            x, state, _ = advance(sampler, denoise, x, (state, x), steps, keys=noise_keys)
            return x, *state

        split = self._split.spec

        def mapped(fn, in_specs):
            return jax.jit(
                jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=split, check_vma=False)
            )

        self._start = mapped(start, (split, split))
        self._run = mapped(run, (whole.spec, *(split,) * 5, whole.spec))

    def __call__(
        self,
        key: Key,
        x: np.ndarray,
        steps: np.ndarray,
        streams: np.ndarray,
        *,
        labels: np.ndarray | None = None,
        condition: np.ndarray | None = None,
        keep: bool = False,
        on_progress: Callable[[int], None] = lambda steps: None,
    ) -> Trajectory:
        """Takes the steps [S] of the sampler's grid, in falling order, from x [N, ...].

        Args:
            key: of all noise.
            x: where to start, at step steps[0].
            steps: steps of the grid, falling.
            streams: integers [N]; examples with equal numbers draw equal noise.
            labels: one class per example [N], for class-conditional networks.
            condition: an array [N, ...] that `sampler_of` receives batch by batch.
            keep: also return x and x̂_0 before every chunk.
            on_progress: called with the number of examples × steps done since the last call.

        Raises ValueError when the chunks do not divide the steps.
        """
        if len(steps) % self._chunk:
            raise ValueError(
                f"a ReverseProcess needs a number of steps divisible by chunk = {self._chunk}, got "
                f"{len(steps)} steps. Take a chunk from common_chunk."
            )
        size = -(-min(self._batch_size, len(x)) // self._count) * self._count
        parts = []
        for first in range(0, len(x), size):
            # The last batch is padded with its own examples, so that one program serves all.
            real = min(size, len(x) - first)
            rows = np.resize(np.arange(first, first + real), size)

            def put(values, rows=rows):
                return None if values is None else jax.device_put(values[rows], self._split)

            keys = jax.device_put(example_keys(key, streams[rows].astype(np.uint32)), self._split)
            batch_labels = put(None if labels is None else labels.astype(np.int32))
            batch_condition = put(condition)
            now = put(np.asarray(x, np.float32))
            state = self._start(now, batch_condition)
            kept = []
            for begin in range(0, len(steps), self._chunk):
                part = steps[begin : begin + self._chunk].astype(np.int32)
                before = now
                now, state, x_0_hat = self._run(
                    self._params, now, state, keys, batch_labels, batch_condition, part
                )
                if keep:
                    kept.append(np.asarray(jax.device_get((before, x_0_hat)))[:, :real])
                jax.block_until_ready(now)
                on_progress(real * len(part))
            none = np.empty((2, 0, real, *x.shape[1:]), np.float32)
            parts.append((np.asarray(now)[:real], np.stack(kept, axis=1) if keep else none))
        frames, x_0_hat = np.concatenate([kept for _, kept in parts], axis=2)
        return Trajectory(np.concatenate([end for end, _ in parts]), frames, x_0_hat)


def common_chunk(counts: Sequence[int], target_chunks: int = 40) -> int:
    """Steps per compiled call that divide all counts, about target_chunks calls for the largest."""
    divisor = math.gcd(*counts)
    return chunk_length(divisor, math.ceil(target_chunks * divisor / max(counts)))


def depth_counts(num_steps: int, shares: Sequence[float], flag: str) -> list[int]:
    """The number of steps that each share of a grid amounts to, at least one.

    Raises ValueError that names the flag, for shares outside (0, 1] and for none.
    """
    if not shares or not all(0.0 < share <= 1.0 for share in shares):
        raise ValueError(
            f"{flag} takes shares of the process in (0, 1], 1 for all of it, got {shares}."
        )
    return [max(1, round(share * num_steps)) for share in shares]


def _keeping_x_0_hat(sampler: Sampler, step: Array) -> Sampler:
    """The same sampler, with the x̂_0 of grid step `step` [] beside its state: (state, x̂_0)."""

    def keeping(denoise, x_t, t, noise, state):
        result = sampler.step(denoise, x_t, t, noise, state[0])
        here = bcast_right(t == step, x_t.ndim)
        kept = jnp.where(here, result.x_0_hat.astype(x_t.dtype), state[1])
        return result._replace(state=(result.state, kept))

    return sampler._replace(step=keeping)
