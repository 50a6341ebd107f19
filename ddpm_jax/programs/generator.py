"""Sampling many images: in batches, on all devices, with progress and one key per image.

Image i of a seed is the same for any batch size, number of devices and number of images. The
devices may belong to several processes; all of them must call, and each gets all images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.devices import processes
from ddpm_jax.devices.batched import RowSplit, batches
from ddpm_jax.devices.mesh import ROWS, WHOLE, fetch
from ddpm_jax.forward.checks import check_function, check_kind, check_whole, host_table
from ddpm_jax.forward.pixels import to_pixels
from ddpm_jax.keys import example_keys, make_key
from ddpm_jax.programs.chunks import chunk_length
from ddpm_jax.samplers import Sampler, advance, grid_steps, initial_noise
from ddpm_jax.types import Array, Denoiser, Device, Key, PyTree, bcast_right, describe

DenoiserOf = Callable[..., Denoiser]
"""`denoiser_of(params, labels) -> denoise`; labels [B], or None for networks without classes. Other
`Conditions` are keyword arguments."""
Conditions = Mapping[str, Any]
"""The conditions of a network by name, one row per image:
"label" int [B], "cond" [B, D], "context" [B, L, D], "context_mask" bool [B, L], "concat"
[B, H, W, C'], or nothing."""


class Stopped(Exception):  # noqa: N818 - a request honoured, not an error
    """Sampling was stopped on request before it was done."""


class Generated(NamedTuple):
    """uint8 images [N, H, W, C] and frames of x_t [F, N', H, W, C], or None without frames.

    Signals have one spatial axis less, volumes one more.
    """

    images: np.ndarray
    frames: np.ndarray | None


class Generator:
    """Generates images with one sampler; compiled once, whatever the number of calls.

    Args:
        sampler: a sampler over its grid.
        denoiser_of: see DenoiserOf.
        shape: the shape of one image, [H, W, C], or of another event.
        devices: the devices to use; None for the default device. A single process uses no more
            devices than there are images.
        target_chunks: the least number of chunks that the grid is cut into. There is a frame and a
            report of progress per chunk.
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
        check_function("Generator", "denoiser_of", denoiser_of, "(params, labels) -> denoise")
        target_chunks = check_whole("Generator", "target_chunks", target_chunks)
        self.shape = shape
        self.devices = tuple(devices) if devices else tuple(jax.local_devices()[:1])
        self._sampler, self._denoiser_of = sampler, denoiser_of
        self._steps = np.asarray(grid_steps(sampler))
        self._chunk = chunk_length(len(self._steps), target_chunks)
        self._programs_on = functools.cache(self._compile)

    def _compile(self, num_devices: int) -> tuple[RowSplit, Callable, Callable]:
        """The split over so many devices, and the functions that start and advance a batch."""
        sampler, split = self._sampler, RowSplit(self.devices[:num_devices])

        def start(seed, index):
            keys = example_keys(make_key(seed), index)
            x_T = initial_noise(keys, self.shape)
            return keys, x_T, sampler.init(x_T)

        def run(params, x, state, keys, labels_and_others, steps):
            labels, conditions = labels_and_others
            denoise = self._denoiser_of(params, labels, **conditions)
            noise_keys = keys if sampler.stochastic else None
            x, state, _ = advance(sampler, denoise, x, state, steps, keys=noise_keys)
            return x, state

        start_batch = split.map(start, (WHOLE, ROWS))
        return split, start_batch, split.map(run, (WHOLE, ROWS, ROWS, ROWS, ROWS, WHOLE))

    @property
    def num_steps(self) -> int:
        """The number of steps of the sampler's grid."""
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
        conditions: Conditions | None = None,
        frames_of: int = 0,
        on_progress: Callable[[int], None] = lambda steps: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Generated:
        """Generates `count` images as uint8 [count, H, W, C].

        Args:
            params: usually the averaged parameters; copied to every device.
            seed: image i is a function of (seed, i) alone.
            count: the number of images.
            batch_size: the number of images at a time over all devices; rounded up to a multiple of
                the devices used.
            start: the number of the first image, to continue where an earlier call ended.
            labels: one class per image [count], for conditional networks.
            conditions: other conditions by name, [count, ...] each, for networks that take them.
            frames_of: for this many of the first images, at most one batch, also return x_t before
                each chunk and at the end.
            on_progress: called with the number of images × steps since the last call.
            should_stop: called between chunks; when it returns True, Stopped is raised.

        Raises ValueError for counts below one, seeds beyond 32 bits, labels or conditions that are
        not one per image, and images with a NaN or an infinity.
        """
        call = "Generator"
        count = check_whole(call, "count", count)
        batch_size = check_whole(call, "batch_size", batch_size)
        start = check_whole(call, "start", start, least=0)
        seed = check_whole(call, "seed", seed, least=0)
        frames_of = check_whole(call, "frames_of", frames_of, least=0)
        if max(seed, start + count) >= 2**32:
            raise ValueError(f"{call} needs 32 bits, got {seed=}, {start=}, {count=}.")
        check_function(call, "on_progress", on_progress, "(steps done) -> None")
        check_function(call, "should_stop", should_stop, "() -> bool")
        labels = None if labels is None else host_table(call, "labels", labels, integer=True)
        given = {} if conditions is None else conditions
        check_kind(call, "conditions", given, Mapping, "arrays by name")
        conditions = {name: np.asarray(x) for name, x in given.items() if x is not None}
        for name, given in {"labels": labels, **conditions}.items():
            if given is not None and np.shape(given)[:1] != (count,):
                raise ValueError(
                    f"{call} needs {name} with one row per image, got {describe(given)} for "
                    f"{count} images."
                )
        num_devices = len(self.devices)
        if processes.num_processes() == 1:
            num_devices = min(num_devices, batch_size, count)
        split, start_batch, run_chunk = self._programs_on(num_devices)
        size = split.round_up(min(batch_size, count))
        params = split.replicate(params)
        images, frames = [], []
        for rows in batches(count, size):
            real = rows.stop - rows.start
            index = np.arange(start + rows.start, start + rows.stop, dtype=np.uint32)
            own_labels = None if labels is None else labels[rows].astype(np.int32)
            own = own_labels, {name: x[rows] for name, x in conditions.items()}
            index, own = split.put((index, own), size)
            keys, x, state = start_batch(np.uint32(seed), index)
            keep = rows.start == 0 and frames_of > 0
            if keep:
                frames.append(_pixels(x, frames_of))
            for begin in range(0, self.num_steps, self._chunk):
                if should_stop():
                    raise Stopped(f"stopped after {rows.start} of {count} images")
                steps = self._steps[begin : begin + self._chunk]
                x, state = run_chunk(params, x, state, keys, own, steps)
                if keep:
                    frames.append(_pixels(x, frames_of))
                jax.block_until_ready(x)
                on_progress(real * len(steps))
            images.append(_pixels(x, real))
        return Generated(np.concatenate(images), np.stack(frames) if frames else None)


def _pixels(x: Array, count: int) -> np.ndarray:
    images = fetch(x)[:count]
    if not np.isfinite(images).all():
        raise ValueError(
            "a Generator got images with NaN or ±∞, which would become black pixels. Check the "
            "parameters (training may have diverged), the guidance scale (too large?) and clip."
        )
    return np.asarray(to_pixels(images))


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
        self._batch_size, self._chunk = batch_size, chunk
        self._split = RowSplit(devices)
        self._params = self._split.replicate(params)

        def start(key, x, streams, condition):
            return example_keys(key, streams), sampler_of(condition).init(x)

        def run(params, x, state, keys, labels_and_others, condition, steps):
            sampler = _keeping_x_0_hat(sampler_of(condition), steps[0])
            noise_keys = keys if sampler.stochastic else None
            labels, others = labels_and_others
            denoise = denoiser_of(params, labels, **others)
            x, state, _ = advance(sampler, denoise, x, (state, x), steps, keys=noise_keys)
            return x, *state

        self._start = self._split.map(start, (WHOLE, ROWS, ROWS, ROWS))
        self._run = self._split.map(run, (WHOLE, *(ROWS,) * 5, WHOLE))

    def __call__(
        self,
        key: Key,
        x: np.ndarray,
        steps: np.ndarray,
        streams: np.ndarray,
        *,
        labels: np.ndarray | None = None,
        conditions: Conditions | None = None,
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
            conditions: other conditions of the network by name, [N, ...] each.
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
        split = self._split
        size = split.round_up(min(self._batch_size, len(x)))
        key = split.replicate(key)
        parts = []
        for rows in batches(len(x), size):
            real = rows.stop - rows.start
            batch = (
                np.asarray(x[rows], np.float32),
                streams[rows].astype(np.uint32),
                (
                    None if labels is None else labels[rows].astype(np.int32),
                    {name: given[rows] for name, given in (conditions or {}).items()},
                ),
                None if condition is None else condition[rows],
            )
            now, batch_streams, batch_own, batch_condition = split.put(batch, size)
            keys, state = self._start(key, now, batch_streams, batch_condition)
            kept = []
            for begin in range(0, len(steps), self._chunk):
                part = steps[begin : begin + self._chunk].astype(np.int32)
                before = now
                now, state, x_0_hat = self._run(
                    self._params, now, state, keys, batch_own, batch_condition, part
                )
                if keep:
                    kept.append(np.asarray(jax.device_get((before, x_0_hat)))[:, :real])
                jax.block_until_ready(now)
                on_progress(real * len(part))
            none = np.empty((2, 0, real, *x.shape[1:]), np.float32)
            parts.append((np.asarray(now)[:real], np.stack(kept, axis=1) if keep else none))
        frames, x_0_hat = np.concatenate([kept for _, kept in parts], axis=2)
        return Trajectory(np.concatenate([end for end, _ in parts]), frames, x_0_hat)


def _keeping_x_0_hat(sampler: Sampler, step: Array) -> Sampler:
    """The same sampler, with the x̂_0 of grid step `step` [] beside its state: (state, x̂_0)."""

    def keeping(denoise, x_t, t, noise, state):
        result = sampler.step(denoise, x_t, t, noise, state[0])
        here = bcast_right(t == step, x_t.ndim)
        kept = jnp.where(here, result.x_0_hat.astype(x_t.dtype), state[1])
        return result._replace(state=(result.state, kept))

    return sampler._replace(init=lambda x: (sampler.init(x), x), step=keeping)
