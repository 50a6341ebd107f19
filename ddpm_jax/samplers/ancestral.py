"""Ancestral sampling: x_{t-1} ~ p_θ(x_{t-1} | x_t) (Ho et al. 2020, Algorithm 2)."""

from __future__ import annotations

import jax.numpy as jnp

from ddpm_jax.denoisers.prediction import Variance, check_variance, is_learned, reverse_variance
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.process import posterior_mean
from ddpm_jax.forward.schedule import timesteps_at
from ddpm_jax.samplers.base import Sampler, StepResult, check_schedule, no_state
from ddpm_jax.types import Denoised, bcast_right, x_0_of


def ancestral(schedule: NoiseSchedule, *, variance: Variance = "fixed_large") -> Sampler:
    """x_{t-1} = μ̃_t(x̂_0, x_t) + σ_t z, without noise at the last step (Ho et al. 2020, Alg. 2).

    σ_t² is β_t (fixed_large), β̃_t (fixed_small), taken from a table of log-variances for this
    schedule (`optimal_log_variance`), or learned: then the denoiser must return
    `Denoised(x_0, variance_output)`, and the range is that of this schedule, respaced or not
    (iDDPM §4). Raises ValueError for an unknown variance or a table of another length; the step
    raises it if a learned variance is missing.

    >>> keys = dj.example_keys(jax.random.key(0), jnp.arange(4))
    >>> x_T = dj.initial_noise(keys, (3,))
    >>> dj.sample(dj.ancestral(dj.linear_schedule(10)), lambda x, t: 0.5 * x, x_T, keys=keys).shape
    (4, 3)
    """
    check_schedule("ancestral", schedule)
    check_variance("ancestral", variance, schedule.num_timesteps)

    def step(denoise, x_t, t, noise, state):
        denoised = denoise(x_t, timesteps_at(schedule, t))
        x_0_hat = x_0_of(denoised, x_t)
        variance_output = denoised.variance_output if isinstance(denoised, Denoised) else None
        if is_learned(variance) and variance_output is None:
            raise ValueError(
                f"ancestral(variance={variance!r}) needs a denoiser that returns Denoised(x_0, "
                "variance_output), got x̂_0 alone. Build it with make_denoiser(..., "
                f"variance={variance!r}), or sample with a fixed variance."
            )
        mean = posterior_mean(schedule, x_0_hat, x_t, t)
        _, log_variance = reverse_variance(
            schedule, t, mean.shape, variance=variance, variance_output=variance_output
        )
        sigma = jnp.where(bcast_right(t == 0, mean.ndim), 0.0, jnp.exp(0.5 * log_variance))
        return StepResult(mean + sigma * noise, x_0_hat, state)

    return Sampler(schedule, no_state, step, num_draws=1)
