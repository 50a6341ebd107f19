"""Predictor-corrector sampling: Langevin steps at every level behind a sampler's own (Song et al.
2020, arXiv 2011.13456)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.process import at_step
from ddpm_jax.samplers.base import Sampler, StepResult, take_draws, unless_data, x_0_of
from ddpm_jax.types import Array, bcast_right


def predictor_corrector(
    predictor: Sampler, schedule: NoiseSchedule, *, snr: float = 0.16, num_corrections: int = 1
) -> Sampler:
    """After each step of `predictor`, Langevin steps at the level reached (Algorithms 3 and 5).

        s = (√ᾱ x̂_0 - x)/(1-ᾱ),   ε = 2 (1-β) (r ‖z‖/‖s‖)²,   x ← x + ε s + √(2ε) z

    r is `snr`, the paper's signal-to-noise ratio; all tables are those of the level t-1 reached.
    Nothing follows the last step. The norms are each example's own, so that no example sees another
    (the authors' code averages them over the batch): that suits events of many dimensions, whose
    norms hardly vary; in one or two dimensions a step size that depends on z biases the samples.

    Needs predictor.draws + num_corrections draws and 1 + num_corrections evaluations a step. The
    trajectory's x̂_0 is the predictor's.

    Args:
        predictor: any sampler on the same grid, in the paper `ancestral(schedule)`.
        schedule: the predictor's own schedule.
        snr: r, at least 0; 0.16 is the paper's for CIFAR-10, where 0 leaves the predictor as it is.
        num_corrections: M, Langevin steps a level, at least 1.

    Raises ValueError for values outside these, and when schedule and predictor differ in steps.
    """
    if not (snr >= 0 and num_corrections >= 1):
        raise ValueError(
            f"predictor_corrector needs snr >= 0 and num_corrections >= 1, got {snr=}, "
            f"{num_corrections=}. Song et al. (2020) use 0.16 and 1 on CIFAR-10."
        )
    if schedule.num_timesteps != predictor.num_steps:
        raise ValueError(
            f"predictor_corrector needs the predictor's own schedule, of {predictor.num_steps} "
            f"steps, got one of {schedule.num_timesteps}. Respace once and pass it to both."
        )
    draws = predictor.draws + num_corrections

    def step(denoise, x_t, t, noise, state):
        own = take_draws(noise, draws, 0, predictor.draws)
        result = predictor.step(denoise, x_t, t, own, state)
        rest = take_draws(noise, draws, predictor.draws, num_corrections)
        rest = rest[None] if num_corrections == 1 else rest
        level = jnp.maximum(t - 1, 0)

        def correct(x: Array) -> Array:
            return jax.lax.scan(langevin, x, rest)[0]

        def langevin(x, z):
            x_0_hat = x_0_of(denoise(x, schedule.timesteps[level]))
            signal = at_step(schedule.signal_scale, level, x.ndim)
            score = (signal * x_0_hat - x) / at_step(schedule.noise_scale, level, x.ndim) ** 2
            ratio = snr * norm_ratio(z, score)
            size = 2.0 * (1.0 - at_step(schedule.beta, level, x.ndim)) * ratio**2
            return (x + size * score + jnp.sqrt(2.0 * size) * z).astype(x.dtype), None

        x_s = unless_data(t, result.x.astype(x_t.dtype), correct)
        return StepResult(x_s, result.x_0_hat, result.state)

    return Sampler(predictor.init, step, predictor.num_steps, draws)


def norm_ratio(z: Array, score: Array) -> Array:
    """‖z‖/‖s‖ per example, shaped to multiply events; 0 where the score vanishes."""
    axes = tuple(range(1, z.ndim))
    above, below = jnp.sum(z**2, axis=axes), jnp.sum(score**2, axis=axes)
    squared = jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 0.0)
    return bcast_right(jnp.sqrt(squared), z.ndim)
