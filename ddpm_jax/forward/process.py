"""The forward process q in closed form: to any step, and one step back when x_0 is known.

    q(x_t | x_0)          = N(√ᾱ_t x_0, (1-ᾱ_t) I)            (Ho et al. 2020, Eq. 4)
    q(x_{t-1} | x_t, x_0) = N(μ̃_t(x_0, x_t), β̃_t I)           (Eq. 6)
    μ̃_t = √ᾱ_{t-1} β_t/(1-ᾱ_t) x_0 + √(1-β_t) (1-ᾱ_{t-1})/(1-ᾱ_t) x_t      (Eq. 7)
    β̃_t = (1-ᾱ_{t-1})/(1-ᾱ_t) β_t

Every function takes events of any shape, x [B, ...] with t [B], or t [] shared by all. No keys
here: noise is passed in.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from ddpm_jax.forward.schedule import NoiseSchedule, lookup
from ddpm_jax.types import Array, ArrayLike, bcast_right


class Gaussian(NamedTuple):
    """A diagonal Gaussian: mean, variance and log-variance, all of the event's shape [B, ...]."""

    mean: Array
    variance: Array
    log_variance: Array


def at_step(table: ArrayLike, t: ArrayLike, ndim: int) -> Array:
    """Reads table[t], shaped to multiply events with `ndim` axes."""
    return bcast_right(lookup(table, t), ndim)


def q_sample(schedule: NoiseSchedule, x_0: Array, t: ArrayLike, noise: Array) -> Array:
    """Diffuses x_0 [B, ...] to steps t [B]: √ᾱ_t x_0 + √(1-ᾱ_t) ε  (Ho et al. 2020, Eq. 4)."""
    if jnp.shape(noise) != jnp.shape(x_0):
        raise ValueError(
            f"q_sample needs noise of x_0's shape {jnp.shape(x_0)}, got {jnp.shape(noise)}."
        )
    ndim = jnp.ndim(x_0)
    return (
        at_step(schedule.signal_scale, t, ndim) * x_0
        + at_step(schedule.noise_scale, t, ndim) * noise
    )


def q_mean_variance(schedule: NoiseSchedule, x_0: Array, t: ArrayLike) -> Gaussian:
    """q(x_t | x_0) = N(√ᾱ_t x_0, (1-ᾱ_t) I) for x_0 [B, ...], t [B]  (Ho et al. 2020, Eq. 4)."""
    noise_scale = at_step(schedule.noise_scale, t, jnp.ndim(x_0))
    mean = at_step(schedule.signal_scale, t, jnp.ndim(x_0)) * x_0
    # log(1-ᾱ) from √(1-ᾱ), the table that keeps its digits where ᾱ is close to 1.
    return Gaussian(
        mean,
        jnp.broadcast_to(noise_scale**2, mean.shape),
        jnp.broadcast_to(2.0 * jnp.log(noise_scale), mean.shape),
    )


def posterior_coefficients(schedule: NoiseSchedule, t: ArrayLike, ndim: int) -> tuple[Array, Array]:
    """The weights of x_0 and of x_t in μ̃_t: √ᾱ_{t-1} β_t/(1-ᾱ_t) and √(1-β_t)
    (1-ᾱ_{t-1})/(1-ᾱ_t)."""
    beta = at_step(schedule.beta, t, ndim)
    one_minus_alpha_bar = at_step(schedule.noise_scale, t, ndim) ** 2
    # β̃_t/β_t is (1-ᾱ_{t-1})/(1-ᾱ_t), free of the cancellation in 1-ᾱ_{t-1}.
    shrink = at_step(schedule.posterior_variance, t, ndim) / beta
    signal_prev = jnp.sqrt(at_step(schedule.alpha_bar_prev, t, ndim))
    # √(1-β) as √ᾱ_t/√ᾱ_{t-1} where β is near 1 and 1-β has lost its digits: on a cosine schedule
    # respaced to 20 steps the plain form is off by 1e-3 relative.
    tiny = jnp.finfo(beta.dtype).tiny
    ratio = at_step(schedule.signal_scale, t, ndim) / jnp.maximum(signal_prev, tiny)
    root = jnp.where(beta < 0.5, jnp.sqrt(1.0 - beta), ratio)
    return signal_prev * beta / one_minus_alpha_bar, root * shrink


def posterior_mean(schedule: NoiseSchedule, x_0: Array, x_t: Array, t: ArrayLike) -> Array:
    """μ̃_t(x_0, x_t), the mean of q(x_{t-1} | x_t, x_0), for x_0, x_t [B, ...]  (Ho et al. 2020,
    Eq. 7)."""
    weight_x_0, weight_x_t = posterior_coefficients(schedule, t, jnp.ndim(x_t))
    return weight_x_0 * x_0 + weight_x_t * x_t


def posterior_variance(schedule: NoiseSchedule, t: ArrayLike) -> Array:
    """β̃_t, the variance of q(x_{t-1} | x_t, x_0), of t's shape; 0 at t = 0  (Ho et al. 2020, Eq.
    7)."""
    return lookup(schedule.posterior_variance, t)


def q_posterior(schedule: NoiseSchedule, x_0: Array, x_t: Array, t: ArrayLike) -> Gaussian:
    """q(x_{t-1} | x_t, x_0) for x_0, x_t [B, ...], t [B]  (Ho et al. 2020, Eqs. 6 and 7).

    At t = 0 the variance is 0 and its logarithm is that of β̃_1, so that it can be exponentiated
    and divided by.
    """
    mean = posterior_mean(schedule, x_0, x_t, t)
    variance = at_step(schedule.posterior_variance, t, mean.ndim)
    log_variance = at_step(schedule.posterior_log_variance, t, mean.ndim)
    return Gaussian(
        mean, jnp.broadcast_to(variance, mean.shape), jnp.broadcast_to(log_variance, mean.shape)
    )
