"""Two names for one model: a denoiser of a diffusion process, and a score at every noise level.

With y = x_t/√ᾱ_t = x_0 + σ_t ε and σ = √((1-ᾱ)/ᾱ), Tweedie's formula says E[x_0 | y] = y + σ² s,
where s is the score of y's density. So a DDPM is a noise-conditional score network with scaled
inputs, and an NCSN is a variance-exploding diffusion; what samples or measures one works for both.

    process  t = 0 … T-1, noisiest last         ladder  level 0 … L-1, noisiest first (NCSN's order)

`schedule_from_noise_levels` makes the process of given noise levels; `noise_levels` gives the
levels of a process.
"""

from __future__ import annotations

import jax.numpy as jnp

from ddpm_jax.denoisers.scheduled import ScheduledDenoiser, check_denoiser
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_batch, check_function, check_steps
from ddpm_jax.forward.process import at_step
from ddpm_jax.forward.schedule import (
    at_least_32_bits,
    check_arguments,
    rows_of_timesteps,
    timesteps_at,
)
from ddpm_jax.types import Array, Denoiser, LevelScore, x_0_of


def noise_levels(schedule: NoiseSchedule) -> Array:
    """σ [T] of a process, falling: NCSN's ladder σ_1 > … > σ_L. inf where ᾱ is 0.

    >>> sigmas = dj.denoisers.noise_levels(dj.linear_schedule())
    >>> bool(sigmas[0] > sigmas[-1])
    True
    """
    check_arguments("noise_levels", schedule=schedule)
    return jnp.exp(-0.5 * schedule.log_snr)[::-1]


def denoiser_from_score(schedule: NoiseSchedule, score_fn: LevelScore) -> ScheduledDenoiser:
    """x̂_0 = y + σ_t² s(y, level), y = x_t/√ᾱ_t: an NCSN as a denoiser, for every sampler.

    `schedule` is the ladder's process; level T-1-t is step t. A timestep it does not have gives
    NaN.

    >>> ladder = dj.schedule_from_noise_levels([1.0, 0.5, 0.1])
    >>> denoise = dj.denoiser_from_score(ladder, lambda y, level: -y)
    >>> denoise(jnp.ones((2, 3)), jnp.array([0, 2])).shape
    (2, 3)
    """

    check_arguments("denoiser_from_score", schedule=schedule)
    check_function("denoiser_from_score", "score_fn", score_fn, "(y, level) -> s")

    def denoise(x_t: Array, timesteps: Array) -> Array:
        row = rows_of_timesteps(schedule, timesteps)
        y = x_t / at_step(schedule.signal_scale, row, x_t.ndim)
        variance = at_step(jnp.exp(-schedule.log_snr), row, x_t.ndim)
        s = score_fn(y, schedule.num_timesteps - 1 - row)
        check_batch("denoiser_from_score", score=s, y=y)
        return y + variance * s

    return ScheduledDenoiser(schedule, denoise, "denoiser_from_score")


def score_from_denoiser(schedule: NoiseSchedule, denoise: Denoiser) -> LevelScore:
    """s(y, level) = (x̂_0 - y)/σ²: a DDPM as a noise-conditional score, for Langevin dynamics.

    `schedule` is the process, or the part of it that serves as ladder: level i is its step T-1-i.
    The denoiser must not clip, because a clipped x̂_0 gives no score. A variance output is ignored.
    Raises ValueError for a denoiser of another process.

    >>> schedule = dj.linear_schedule(10)
    >>> score_fn = dj.score_from_denoiser(schedule, lambda x, t: 0.5 * x)
    >>> score_fn(jnp.ones((2, 3)), jnp.array([0, 9])).shape
    (2, 3)
    """
    check_arguments("score_from_denoiser", schedule=schedule)
    check_function("score_from_denoiser", "denoise", denoise, "(x_t, timesteps) -> x̂_0")
    check_denoiser("score_from_denoiser", schedule, denoise)

    def score_fn(y: Array, level: Array) -> Array:
        (y,) = check_batch("score_from_denoiser", y=y)
        check_steps("score_from_denoiser", level, schedule.num_timesteps, y.shape[:1])
        row = schedule.num_timesteps - 1 - at_least_32_bits(level)
        x_t = at_step(schedule.signal_scale, row, y.ndim) * y
        x_0_hat = x_0_of(denoise(x_t, timesteps_at(schedule, row)), x_t)
        return (x_0_hat - y) * at_step(jnp.exp(schedule.log_snr), row, y.ndim)

    return score_fn
