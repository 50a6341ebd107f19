"""From given x down a sampler's steps: for studies that start in the middle, or look on the way.

`generation.Generator` goes from noise to images; here x, the steps and the noise are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax.devices import processes
from ddpm_jax.keys import example_keys
from ddpm_jax.programs.generator import DenoiserOf, chunk_length
from ddpm_jax.programs.trained_run import TrainedRun
from ddpm_jax.samplers import Sampler, advance
from ddpm_jax.types import Array, Key, bcast_right


class Walked(NamedTuple):
    """Where x went, as float32 on the host.

    x        [N, ...], after the last step
    frames   [F, N, ...], x before each chunk of steps; F = 0 unless asked for
    x_0_hat  [F, N, ...], the x̂_0 of each of them; likewise
    """

    x: np.ndarray
    frames: np.ndarray
    x_0_hat: np.ndarray


class Walk:
    """Takes x [N, ...] down a sampler's steps, in batches on all devices of a run.

    Args:
        run: whose parameters, devices and image shape.
        sampler_of: the sampler, as a function of what is given with each example (or of None).
        denoiser_of: see `generation.DenoiserOf`.
        chunk: steps in one compiled call; must divide the number of steps of every walk.
        batch_size: examples at a time over all devices; changes speed and memory only.
    """

    def __init__(
        self,
        run: TrainedRun,
        sampler_of: Callable[[Array | None], Sampler],
        denoiser_of: DenoiserOf,
        *,
        chunk: int,
        batch_size: int,
    ):
        self._batch_size, self._chunk, self._count = batch_size, chunk, len(run.devices)
        mesh = processes.make_mesh(run.devices)
        self._split = NamedSharding(mesh, PartitionSpec(processes.AXES))
        whole = NamedSharding(mesh, PartitionSpec())
        self._params = jax.device_put(jax.device_get(run.params), whole)

        def start(x, given):
            return sampler_of(given).init(x)

        def go(params, x, state, keys, labels, given, steps):
            sampler = _remembering(sampler_of(given), steps[0])
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
        self._go = mapped(go, (whole.spec, *(split,) * 5, whole.spec))

    def __call__(
        self,
        key: Key,
        x: np.ndarray,
        steps: np.ndarray,
        streams: np.ndarray,
        *,
        labels: np.ndarray | None = None,
        given: np.ndarray | None = None,
        keep: bool = False,
        on_progress: Callable[[int], None] = lambda steps: None,
    ) -> Walked:
        """Walks the grid steps listed, falling, from x [N, ...].

        Args:
            key: of all noise.
            x: where to start, at step steps[0].
            steps: grid steps [S], falling.
            streams: whole numbers [N]; equal numbers draw equal noise.
            labels: one class per example [N], for conditional networks.
            given: one more array [N, ...], handed to `sampler_of` batch by batch.
            keep: also return x and x̂_0 before every chunk.
            on_progress: told the number of examples × steps done since the last call.
        """
        size = -(-min(self._batch_size, len(x)) // self._count) * self._count
        if len(steps) % self._chunk:
            raise ValueError(f"a Walk in chunks of {self._chunk} cannot go {len(steps)} steps.")
        parts = []
        for first in range(0, len(x), size):
            # The last batch is filled up by repeating its examples, so that one program serves all.
            real = min(size, len(x) - first)
            rows = np.resize(np.arange(first, first + real), size)

            def put(values, rows=rows):
                return None if values is None else jax.device_put(values[rows], self._split)

            keys = jax.device_put(example_keys(key, streams[rows].astype(np.uint32)), self._split)
            chosen_labels = put(None if labels is None else labels.astype(np.int32))
            chosen_given = put(given)
            at = put(np.asarray(x, np.float32))
            state = self._start(at, chosen_given)
            kept = []
            for begin in range(0, len(steps), self._chunk):
                part = steps[begin : begin + self._chunk].astype(np.int32)
                before = at
                at, state, x_0_hat = self._go(
                    self._params, at, state, keys, chosen_labels, chosen_given, part
                )
                if keep:
                    kept.append(np.asarray(jax.device_get((before, x_0_hat)))[:, :real])
                jax.block_until_ready(at)
                on_progress(real * len(part))
            none = np.empty((2, 0, real, *x.shape[1:]), np.float32)
            parts.append((np.asarray(at)[:real], np.stack(kept, axis=1) if keep else none))
        frames, x_0_hat = np.concatenate([kept for _, kept in parts], axis=2)
        return Walked(np.concatenate([end for end, _ in parts]), frames, x_0_hat)


def common_chunk(counts: Sequence[int], target_chunks: int = 40) -> int:
    """Steps per compiled call that fit walks of all these lengths, about so many in the longest."""
    divisor = math.gcd(*counts)
    return chunk_length(divisor, math.ceil(target_chunks * divisor / max(counts)))


def depth_counts(num_steps: int, shares: Sequence[float], flag: str) -> list[int]:
    """How many steps each share of a grid is, at least one.

    Raises ValueError, in the name of the flag, for shares outside (0, 1] and for none.
    """
    if not shares or not all(0.0 < share <= 1.0 for share in shares):
        raise ValueError(
            f"{flag} takes shares of the process in (0, 1], 1 for all of it, got {shares}."
        )
    return [max(1, round(share * num_steps)) for share in shares]


def _remembering(sampler: Sampler, moment: Array) -> Sampler:
    """The same sampler, with the x̂_0 of grid step `moment` [] beside its state: (state, x̂_0)."""

    def step(denoise, x_t, t, noise, state):
        result = sampler.step(denoise, x_t, t, noise, state[0])
        now = bcast_right(t == moment, x_t.ndim)
        kept = jnp.where(now, result.x_0_hat.astype(x_t.dtype), state[1])
        return result._replace(state=(result.state, kept))

    return sampler._replace(step=step)
