"""The terms of the variational bound, per example, in bits per dimension (Ho et al. 2020, Eq. 5).

    -log p(x_0) ≤ L = L_T + Σ_{t≥1} L_t + L_0            (the code's t, 0-based)
    L_T = KL(q(x_T | x_0) ‖ N(0, I))
    L_t = KL(q(x_{t-1} | x_t, x_0) ‖ p_θ(x_{t-1} | x_t)),  t = 1 … T-1
    L_0 = -log p_θ(x_0 | x_1), the discretised decoder at t = 0 (Eq. 13)

Bits per dimension are nats per example divided by d ln 2, with d the number of values per event.
Each L_t is a sample of an expectation over x_t ~ q(x_t | x_0), and ≥ 0 for t ≥ 1.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from ddpm_jax.denoisers.prediction import ReverseStep
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_kind, check_same_shape
from ddpm_jax.forward.process import q_mean_variance, q_posterior
from ddpm_jax.forward.schedule import check_arguments
from ddpm_jax.likelihood.normal import discretized_log_likelihood, normal_kl
from ddpm_jax.types import Array, ArrayLike, bcast_right, mean_per_example

NATS_PER_BIT = math.log(2.0)


def bound_term(
    schedule: NoiseSchedule, reverse: ReverseStep, x_0: Array, x_t: Array, t: ArrayLike
) -> Array:
    """L_t [B] in bits/dim: the KL of one reverse step, or at t = 0 the decoder's code length.

    Args:
        schedule: the process, respaced or not; t counts its steps.
        reverse: p_θ(x_{t-1} | x_t), from `p_mean_variance`.
        x_0: clean data [B, ...]; at t = 0 on the grid of 256 levels, as `from_pixels` makes it.
        x_t: `q_sample(schedule, x_0, t, noise)`.
        t: steps, int32 [B], or [] shared by all.

    Raises ValueError where shapes differ, TypeError for data that are not floating-point.

    Example:
        >>> schedule, x_0, t = dj.linear_schedule(1000), jnp.ones((2, 3)), jnp.array([500, 999])
        >>> x_t = dj.q_sample(schedule, x_0, t, jnp.zeros((2, 3)))
        >>> p = dj.p_mean_variance(schedule, x_0, x_t, t, target="x_0", variance="fixed_small")
        >>> dj.likelihood.bound_term(schedule, p, x_0, x_t, t)
        Array([0., 0.], dtype=float32)
    """
    check_kind("bound_term", "reverse", reverse, ReverseStep, "p_mean_variance returns one")
    shape = check_arguments("bound_term", schedule=schedule, x_0=x_0, x_t=x_t, t=t)
    check_same_shape("bound_term", mean=reverse.mean, log_variance=reverse.log_variance, x_0=x_0)
    t = jnp.broadcast_to(jnp.asarray(t), shape[:1])
    first = bcast_right(t == 0, len(shape))
    posterior = q_posterior(schedule, x_0, x_t, t)
    # Each branch counts at its own steps only. At the others it gets a harmless distribution, lest
    # an overflow there turn gradients into NaN.
    kl = normal_kl(
        posterior.mean,
        posterior.log_variance,
        jnp.where(first, posterior.mean, reverse.mean),
        jnp.where(first, posterior.log_variance, reverse.log_variance),
    )
    decoder = discretized_log_likelihood(
        x_0, jnp.where(first, reverse.mean, 0.0), jnp.where(first, reverse.log_variance, 0.0)
    )
    return mean_per_example(jnp.where(first, -decoder, kl)) / NATS_PER_BIT


def prior_term(schedule: NoiseSchedule, x_0: Array) -> Array:
    """L_T [B] in bits/dim: KL(N(√ᾱ_T x_0, (1-ᾱ_T) I) ‖ N(0, I)); without parameters, nearly 0.

    Raises TypeError for data that are not floating-point.

    Example:
        >>> dj.likelihood.prior_term(dj.linear_schedule(1000), jnp.ones((2, 3))) < 1e-4
        Array([ True,  True], dtype=bool)
    """
    check_arguments("prior_term", schedule=schedule, x_0=x_0)
    q = q_mean_variance(schedule, x_0, schedule.num_timesteps - 1)
    return mean_per_example(normal_kl(q.mean, q.log_variance, 0.0, 0.0)) / NATS_PER_BIT
