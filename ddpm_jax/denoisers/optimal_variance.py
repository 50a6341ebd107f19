"""The best fixed variance of the reverse steps, in closed form (Bao et al. 2022, 2201.06503).

A reverse step with mean μ̃_t(x̂_0, x_t) and variance σ_t² I costs, in expectation over q,
½ (log σ_t² + (β̃_t + w_t² m_t)/σ_t²) + const per dimension, with

    w_t = √ᾱ_{t-1} β_t/(1-ᾱ_t)      the weight of x_0 in μ̃_t
    m_t = E‖x_0 - x̂_0(x_t)‖²/d       the mean squared error of the denoiser

and is least at σ_t² = β̃_t + w_t² m_t. m_t is measured once on data, for each step of the full
process, and serves every grid. For an exact denoiser m_t = (1-ᾱ_t)/ᾱ_t (1 - E‖ε̂‖²/d), which
turns this into Bao et al.'s Theorem 1 with λ² = β̃; for any other denoiser only the form in m_t is
optimal.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import host_table
from ddpm_jax.forward.schedule import check_arguments
from ddpm_jax.types import Array, ArrayLike, host_array


def optimal_log_variance(schedule: NoiseSchedule, x_0_mse: ArrayLike) -> Array:
    """log σ_t² [S] of the variance that minimises the bound: log(β̃_t + w_t² m_t).

    Args:
        schedule: the S steps to be sampled or measured on, respaced or not.
        x_0_mse: m_t [T], the mean squared error of x̂_0 per dimension, for every step of the full
            process; read at `schedule.timesteps`.

    A host function, in float64. Pass the table as `variance=`. At t = 0, where β̃ is 0, it is m_0,
    the variance of the decoder. Raises ValueError for negative or missing entries, TypeError for
    traced arguments.

    >>> schedule = dj.linear_schedule()
    >>> dj.optimal_log_variance(schedule, np.full(1000, 0.01)).shape
    (1000,)
    """
    check_arguments("optimal_log_variance", schedule=schedule)
    mse = host_table("optimal_log_variance", "x_0_mse", x_0_mse)
    steps = host_array("optimal_log_variance", "the schedule", schedule.timesteps)
    if mse.size <= steps.max():
        raise ValueError(
            f"optimal_log_variance needs x_0_mse for steps 0..{steps.max()} of the full process, "
            f"got shape {mse.shape}."
        )
    mse = mse[steps]
    if not (mse >= 0).all():
        worst = int(np.argmin(mse >= 0))
        raise ValueError(
            f"optimal_log_variance needs mean squared errors ≥ 0, got {mse[worst]} for step "
            f"{steps[worst]}. These are variances, not their logarithms."
        )
    beta, posterior, previous, noise = (
        host_array("optimal_log_variance", "the schedule", table, np.float64)
        for table in (
            schedule.beta,
            schedule.posterior_variance,
            schedule.alpha_bar_prev,
            schedule.noise_scale,
        )
    )
    weight = np.sqrt(previous) * beta / noise**2
    variance = np.maximum(posterior + weight**2 * mse, np.finfo(np.float32).tiny)
    return jnp.asarray(np.log(variance), schedule.beta.dtype)


def x_0_mse_from_epsilon(schedule: NoiseSchedule, second_moment: ArrayLike) -> Array:
    """m_t = (1-ᾱ_t)/ᾱ_t (1 - Γ_t) from Γ_t = E‖ε̂(x_t, t)‖²/d [T], for an exact denoiser.

    Γ needs no clean data, only samples of x_t: the estimator of Bao et al. 2022 (Eq. 8). Estimates
    of Γ above 1 count as 1. Raises ValueError unless Γ has one entry per step, and if ᾱ reaches 0,
    where ε̂ says nothing about x_0; TypeError for traced arguments.

    >>> dj.denoisers.x_0_mse_from_epsilon(dj.linear_schedule(), np.full(1000, 0.9)).shape
    (1000,)
    """
    check_arguments("x_0_mse_from_epsilon", schedule=schedule)
    gamma = host_table("x_0_mse_from_epsilon", "second_moment", second_moment)
    if not (gamma >= 0).all():
        raise ValueError("x_0_mse_from_epsilon needs second moments ≥ 0, got a negative or NaN.")
    if gamma.shape != (schedule.num_timesteps,):
        raise ValueError(
            f"x_0_mse_from_epsilon needs a second moment for each of {schedule.num_timesteps} "
            f"steps, got shape {gamma.shape}."
        )
    log_snr = host_array("x_0_mse_from_epsilon", "the schedule", schedule.log_snr, np.float64)
    ratio = np.exp(-log_snr)
    if not np.isfinite(ratio).all():
        raise ValueError(
            f"x_0_mse_from_epsilon needs ᾱ > 0 at every step, got ᾱ = 0 at step "
            f"{int(np.argmin(np.isfinite(ratio)))}. Measure ‖x_0 - x̂_0‖² on data instead "
            "(`variational_bound`)."
        )
    return jnp.asarray(ratio * np.maximum(1.0 - gamma, 0.0), schedule.beta.dtype)
