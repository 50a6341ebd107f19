"""Sampling with self-conditioning: the network also sees x̂_0 of the step before.

Chen, Zhang, Hinton 2022 (arXiv 2208.04202, §3.2). `denoisers.with_previous_estimate` trains such a
network, `denoisers.self_conditioned_denoiser` turns it into the denoiser this sampler needs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from ddpm_jax.samplers.base import Sampler, StepResult, check_sampler
from ddpm_jax.types import Array, PyTree, x_0_of


class Remembered(NamedTuple):
    """The x̂_0 [B, ...] of the step before, and the state of the sampler within."""

    x_0_hat: Array
    state: PyTree


def self_conditioned(sampler: Sampler) -> Sampler:
    """`sampler` for a denoiser `(x_t, timesteps, x̂_0 of the step before) -> x̂_0` (Algorithm 2).

    The first step gets x̂_0 = 0. A sampler of several evaluations per step gives all of them the
    estimate of the step before. Its draws and evaluations stay the same. Raises TypeError if
    `sampler` is no Sampler.

    >>> sampler = dj.samplers.self_conditioned(dj.ddim(dj.linear_schedule(10)))
    >>> dj.sample(sampler, lambda x, t, before: 0.5 * x + 0.1 * before, jnp.ones((4, 3))).shape
    (4, 3)
    """
    check_sampler("self_conditioned", sampler)

    def init(x_T):
        return Remembered(jnp.zeros_like(x_T), sampler.init(x_T))

    def step(denoise, x_t, t, noise, state):
        def conditioned(x, timesteps):
            return denoise(x, timesteps, state.x_0_hat)

        x, x_0_hat, inner = sampler.step(conditioned, x_t, t, noise, state.state)
        return StepResult(x, x_0_hat, Remembered(x_0_of(x_0_hat, x_t).astype(x_t.dtype), inner))

    return Sampler(sampler.schedule, init, step, sampler.num_draws)
