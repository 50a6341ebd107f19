"""Ancestral sampling: x_{t-1} ~ p_θ(x_{t-1} | x_t), the paper's sampler (Ho et al. 2020, Algorithm
2)."""

from __future__ import annotations

import jax.numpy as jnp

from ddpm_jax.denoisers.prediction import Variance, check_variance, is_learned, reverse_variance
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.process import posterior_mean
from ddpm_jax.samplers.base import Sampler, StepResult, no_state, x_0_of
from ddpm_jax.types import bcast_right


def ancestral(schedule: NoiseSchedule, *, variance: Variance = "fixed_large") -> Sampler:
    """x_{t-1} = μ̃_t(x̂_0, x_t) + σ_t z, with no noise at the last step (Ho et al. 2020, Algorithm
    2).

    σ_t² is β_t (fixed_large), β̃_t (fixed_small), from a table of log-variances for this schedule
    (`optimal_log_variance`), or learned: then the denoiser must return the pair
    `(x̂_0, variance_output)`, and the range is that of this schedule, respaced or not (iDDPM §4).
    """
    check_variance("ancestral", variance)
    if not isinstance(variance, str) and jnp.shape(variance)[0] != schedule.num_timesteps:
        raise ValueError(
            f"ancestral got log-variances for {jnp.shape(variance)[0]} steps with a schedule of "
            f"{schedule.num_timesteps}. Make the table for the schedule that is sampled on."
        )

    def step(denoise, x_t, t, noise, state):
        denoised = denoise(x_t, schedule.timesteps[t])
        variance_output = None
        if is_learned(variance):
            if not isinstance(denoised, tuple):
                raise ValueError(
                    f"ancestral(variance={variance!r}) needs a denoiser that returns (x_0_hat, "
                    "variance_output), got x_0_hat alone. Build it with make_denoiser(..., "
                    f"variance={variance!r}), or sample with a fixed variance."
                )
            variance_output = denoised[1]
        x_0_hat = x_0_of(denoised)
        mean = posterior_mean(schedule, x_0_hat, x_t, t)
        _, log_variance = reverse_variance(
            schedule, t, mean.shape, variance=variance, variance_output=variance_output
        )
        sigma = jnp.where(bcast_right(t == 0, mean.ndim), 0.0, jnp.exp(0.5 * log_variance))
        return StepResult(mean + sigma * noise, x_0_hat, state)

    return Sampler(no_state, step, schedule.num_timesteps, draws=1)
