"""The forward process q in closed form: to any step, and one step back when x_0 is known.

    q(x_t | x_0)          = N(√ᾱ_t x_0, (1-ᾱ_t) I)            (Ho et al. 2020, Eq. 4)
    q(x_{t-1} | x_t, x_0) = N(μ̃_t(x_0, x_t), β̃_t I)           (Eq. 6)
    μ̃_t = √ᾱ_{t-1} β_t/(1-ᾱ_t) x_0 + √(1-β_t) (1-ᾱ_{t-1})/(1-ᾱ_t) x_t      (Eq. 7)
    β̃_t = (1-ᾱ_{t-1})/(1-ᾱ_t) β_t

Every function takes events of any shape, x [B, ...] with t [B], or t [] shared by all, and
broadcasts nothing else. Noise is passed in, never drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from ddpm_jax.forward.schedule import NoiseSchedule, check_arguments, lookup
from ddpm_jax.types import Array, ArrayLike, bcast_right


class Gaussian(NamedTuple):
    """A diagonal Gaussian: mean, variance and log-variance, all of the event's shape [B, ...]."""

    mean: Array
    variance: Array
    log_variance: Array


def at_step(table: ArrayLike, t: ArrayLike, ndim: int) -> Array:
    """Reads table[t], shaped to multiply events with `ndim` axes."""
    return bcast_right(lookup(table, t), ndim)


def scales_at(schedule: NoiseSchedule, t: ArrayLike, ndim: int) -> tuple[Array, Array]:
    """(√ᾱ_t, √(1-ᾱ_t)), shaped to multiply events with `ndim` axes."""
    return at_step(schedule.signal_scale, t, ndim), at_step(schedule.noise_scale, t, ndim)


def q_sample(schedule: NoiseSchedule, x_0: Array, t: ArrayLike, noise: Array) -> Array:
    """Diffuses x_0 [B, ...] to steps t [B]: √ᾱ_t x_0 + √(1-ᾱ_t) ε  (Ho et al. 2020, Eq. 4).

    `noise` is ε ~ N(0, I) of x_0's shape. Raises ValueError for other shapes and for steps outside
    of the process, TypeError for data that are not floating-point (uint8 pixels: `from_pixels`).

    Example:
        >>> x_0 = jnp.ones((2, 3))
        >>> dj.q_sample(dj.linear_schedule(1000), x_0, jnp.array([0, 999]), jnp.zeros((2, 3)))[0]
        Array([0.99995, 0.99995, 0.99995], dtype=float32)
    """
    ndim = len(check_arguments("q_sample", schedule=schedule, x_0=x_0, t=t, noise=noise))
    signal, sigma = scales_at(schedule, t, ndim)
    return signal * x_0 + sigma * noise


def q_mean_variance(schedule: NoiseSchedule, x_0: Array, t: ArrayLike) -> Gaussian:
    """q(x_t | x_0) = N(√ᾱ_t x_0, (1-ᾱ_t) I) for x_0 [B, ...], t [B]  (Ho et al. 2020, Eq. 4).

    Raises as `q_sample` does.

    Example:
        >>> q = dj.q_mean_variance(dj.linear_schedule(1000), jnp.ones((2, 3)), 0)
        >>> q.variance[0]
        Array([0.0001, 0.0001, 0.0001], dtype=float32)
    """
    shape = check_arguments("q_mean_variance", schedule=schedule, x_0=x_0, t=t)
    signal, noise_scale = scales_at(schedule, t, len(shape))
    # log(1-ᾱ) from √(1-ᾱ), the table that keeps its digits where ᾱ is close to 1.
    return Gaussian(
        signal * x_0,
        jnp.broadcast_to(noise_scale**2, shape),
        jnp.broadcast_to(2.0 * jnp.log(noise_scale), shape),
    )


def posterior_coefficients(schedule: NoiseSchedule, t: ArrayLike, ndim: int) -> tuple[Array, Array]:
    """The weights in μ̃_t: √ᾱ_{t-1} β_t/(1-ᾱ_t) of x_0, √(1-β_t) (1-ᾱ_{t-1})/(1-ᾱ_t) of x_t."""
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
    """μ̃_t(x_0, x_t), the mean of q(x_{t-1} | x_t, x_0), [B, ...]  (Ho et al. 2020, Eq. 7).

    Raises ValueError unless x_0 and x_t have one shape and t is [B] or []; TypeError as `q_sample`.

    Example:
        >>> x = jnp.ones((2, 3))
        >>> dj.posterior_mean(dj.linear_schedule(1000), x, 0.5 * x, 0)[0]
        Array([1., 1., 1.], dtype=float32)
    """
    shape = check_arguments("posterior_mean", schedule=schedule, x_0=x_0, x_t=x_t, t=t)
    weight_x_0, weight_x_t = posterior_coefficients(schedule, t, len(shape))
    return weight_x_0 * x_0 + weight_x_t * x_t


def posterior_variance(schedule: NoiseSchedule, t: ArrayLike) -> Array:
    """β̃_t, the variance of q(x_{t-1} | x_t, x_0), of t's shape  (Ho et al. 2020, Eq. 7).

    It is 0 at t = 0. Raises ValueError for steps outside of the process.

    Example:
        >>> dj.forward.posterior_variance(dj.schedule_from_beta([0.1, 0.5]), 0)
        Array(0., dtype=float32)
    """
    check_arguments("posterior_variance", schedule=schedule, t=t)
    return lookup(schedule.posterior_variance, t)


def q_posterior(schedule: NoiseSchedule, x_0: Array, x_t: Array, t: ArrayLike) -> Gaussian:
    """q(x_{t-1} | x_t, x_0) for x_0, x_t [B, ...], t [B]  (Ho et al. 2020, Eqs. 6 and 7).

    At t = 0 the variance is 0 and its logarithm is that of β̃_1, so that it can be exponentiated
    and divided by. Raises as `posterior_mean` does.

    Example:
        >>> x = jnp.ones((2, 3))
        >>> dj.q_posterior(dj.linear_schedule(1000), x, x, jnp.array([0, 500])).mean.shape
        (2, 3)
    """
    ndim = len(check_arguments("q_posterior", schedule=schedule, x_0=x_0, x_t=x_t, t=t))
    mean = posterior_mean(schedule, x_0, x_t, t)
    variance = at_step(schedule.posterior_variance, t, ndim)
    log_variance = at_step(schedule.posterior_log_variance, t, ndim)
    return Gaussian(
        mean, jnp.broadcast_to(variance, mean.shape), jnp.broadcast_to(log_variance, mean.shape)
    )
