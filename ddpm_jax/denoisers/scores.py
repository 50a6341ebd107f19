"""Two names for one model: a denoiser of a diffusion process, and a score at every noise level.

With y = x_t/√ᾱ_t = x_0 + σ_t ε and σ = √((1-ᾱ)/ᾱ), Tweedie's formula says E[x_0 | y] = y + σ² s,
s the score of y's density. A DDPM is thus a noise-conditional score network seen through a scale,
and an NCSN is a diffusion whose variance explodes; what samples or measures one does the other.

    process  t = 0 … T-1, noisiest last         ladder  level 0 … L-1, noisiest first (NCSN's order)

`schedule_from_noise_levels` makes the process of a ladder, `noise_levels` the ladder of a process.
"""

from __future__ import annotations

from typing import Protocol

import jax.numpy as jnp

from ddpm_jax.denoisers.prediction import schedule_rows
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.process import at_step
from ddpm_jax.types import Array, Denoiser


class LevelScore(Protocol):
    """A noise-conditional score: `(y [B, ...], level int32 [B]) -> ∇ log p_σ(y)` [B, ...]."""

    def __call__(self, y: Array, level: Array, /) -> Array:
        """Evaluates the score."""
        ...


def noise_levels(schedule: NoiseSchedule) -> Array:
    """σ [T] of a process, falling: NCSN's ladder σ_1 > … > σ_L. inf where ᾱ is 0."""
    return jnp.exp(-0.5 * schedule.log_snr)[::-1]


def denoiser_from_score(schedule: NoiseSchedule, score_fn: LevelScore) -> Denoiser:
    """x̂_0 = y + σ_t² s(y, level), y = x_t/√ᾱ_t: an NCSN as a denoiser, for every sampler.

    `schedule` is the ladder's process; level T-1-t is step t. A step it does not have gives NaN.
    """

    def denoise(x_t: Array, t: Array) -> Array:
        row = schedule_rows(schedule, t)
        y = x_t / at_step(schedule.signal_scale, row, x_t.ndim)
        variance = at_step(jnp.exp(-schedule.log_snr), row, x_t.ndim)
        return y + variance * score_fn(y, schedule.num_timesteps - 1 - row)

    return denoise


def score_from_denoiser(schedule: NoiseSchedule, denoise: Denoiser) -> LevelScore:
    """s(y, level) = (x̂_0 - y)/σ²: a DDPM as a noise-conditional score, for Langevin dynamics.

    `schedule` is the process, or the part of it that serves as ladder: level i is its step T-1-i.
    The denoiser must not clip, for a clipped x̂_0 is no score. A learned variance is left out.
    """

    def score_fn(y: Array, level: Array) -> Array:
        row = schedule.num_timesteps - 1 - jnp.asarray(level)
        x_t = at_step(schedule.signal_scale, row, y.ndim) * y
        denoised = denoise(x_t, schedule.timesteps[row])
        x_0_hat = denoised[0] if isinstance(denoised, tuple) else denoised
        return (x_0_hat - y) * at_step(jnp.exp(schedule.log_snr), row, y.ndim)

    return score_fn
