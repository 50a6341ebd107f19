"""DDIM: the non-Markovian family with DDPM's marginals (Song, Meng, Ermon 2020, arXiv
2010.02502)."""

from __future__ import annotations

import jax.numpy as jnp

from ddpm_jax.gaussian import at_step
from ddpm_jax.samplers.base import Sampler, StepResult, no_state, x_0_of
from ddpm_jax.schedules import NoiseSchedule


def ddim(schedule: NoiseSchedule, *, eta: float = 0.0) -> Sampler:
    """x_{t-1} = √ᾱ_{t-1} x̂_0 + √(1-ᾱ_{t-1}-σ_t²) ε̂ + σ_t z,  σ_t = η √β̃_t  (DDIM Eqs. 12, 16).

    η = 0 is deterministic, the Euler scheme of the probability-flow ODE in √(1-ᾱ)/√ᾱ; η = 1 equals
    ancestral sampling with fixed_small. ε̂ is recomputed from the (clipped) x̂_0. Raises ValueError
    unless 0 <= η <= 1.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(
            f"ddim needs 0 <= eta <= 1, got {eta}. 0 is deterministic; 1 has DDPM's posterior "
            "variance."
        )

    def step(denoise, x_t, t, noise, state):
        x_0_hat = x_0_of(denoise(x_t, schedule.timesteps[t]))
        ndim = x_t.ndim
        noise_scale = at_step(schedule.noise_scale, t, ndim)
        epsilon_hat = (x_t - at_step(schedule.signal_scale, t, ndim) * x_0_hat) / noise_scale
        variance = at_step(schedule.posterior_variance, t, ndim)
        # 1-ᾱ_{t-1} as β̃_t (1-ᾱ_t)/β_t: no subtraction from 1.
        previous_noise_variance = variance * noise_scale**2 / at_step(schedule.beta, t, ndim)
        left = previous_noise_variance - eta**2 * variance
        # Zero at the last step, where the square root has no gradient: keep it away from 0.
        direction = jnp.where(left > 0, jnp.sqrt(jnp.where(left > 0, left, 1.0)), 0.0)
        x_s = (
            jnp.sqrt(at_step(schedule.alpha_bar_prev, t, ndim)) * x_0_hat + direction * epsilon_hat
        )
        if eta > 0:
            x_s = x_s + eta * jnp.sqrt(variance) * noise
        return StepResult(x_s, x_0_hat, state)

    return Sampler(no_state, step, schedule.num_timesteps, stochastic=eta > 0)
