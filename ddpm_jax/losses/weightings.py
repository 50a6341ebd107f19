"""Weights of the squared error over the noise levels.

A weighting is a function of the log-SNR λ = log ᾱ - log(1-ᾱ): the weight of the squared error of
x̂_0, w(λ) ‖x_0 - x̂_0‖². Stated for x_0 it means the same whatever the network predicts: an error of
ε is one of x_0 times √SNR, of v times √(SNR+1), of the score times √SNR/√(1-ᾱ), of the previous
mean times √ᾱ_{t-1} β_t/(1-ᾱ_t). `loss_weight` divides by the square of that, and the product with
`simple_loss` of the same target is the weighted loss:

    simple_loss(schedule, apply_fn, x_0, t, noise, target=target)
        * loss_weight(schedule, t, min_snr_weighting(5.0), target=target)

Any function of λ [B] that returns [B] is a weighting.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.denoisers.prediction import (
    Target,
    Variance,
    check_target,
    check_variance,
    is_learned,
    reverse_variance,
)
from ddpm_jax.forward import NoiseSchedule, lookup
from ddpm_jax.forward.checks import check_function, check_number, check_real
from ddpm_jax.forward.process import posterior_coefficients
from ddpm_jax.forward.schedule import check_arguments
from ddpm_jax.types import Array, ArrayLike, describe

Weighting = Callable[[Array], Array]
"""`weighting(log_snr [B]) -> w [B]`, the weight of ‖x_0 - x̂_0‖²."""


def snr_weighting(log_snr: Array) -> Array:
    """w = SNR: the plain ε loss, L_simple, for every target.

    Example:
        >>> dj.losses.snr_weighting(jnp.zeros(1))
        Array([1.], dtype=float32)
    """
    check_real("snr_weighting", log_snr=log_snr)
    return jnp.exp(log_snr)


def snr_plus_one_weighting(log_snr: Array) -> Array:
    """w = SNR + 1: the plain v loss, for every target (Salimans, Ho 2022, 2202.00512, §4).

    Example:
        >>> dj.losses.snr_plus_one_weighting(jnp.zeros(1))
        Array([2.], dtype=float32)
    """
    check_real("snr_plus_one_weighting", log_snr=log_snr)
    return jnp.exp(log_snr) + 1.0


def truncated_snr_weighting(log_snr: Array) -> Array:
    """w = max(SNR, 1): L_simple, but x_0 counts in full where there is more noise than signal.

    Salimans, Ho 2022, 2202.00512, §4.

    Example:
        >>> dj.losses.truncated_snr_weighting(jnp.array([-3.0]))
        Array([1.], dtype=float32)
    """
    check_real("truncated_snr_weighting", log_snr=log_snr)
    return jnp.maximum(jnp.exp(log_snr), 1.0)


def min_snr_weighting(gamma: float = 5.0) -> Weighting:
    """w = min(SNR, γ) (Hang et al. 2023, 2303.09556, §3.4).

    As the weight of a target's own loss: min(SNR, γ)/SNR for ε, min(SNR, γ) for x_0 and
    min(SNR, γ)/(SNR+1) for v. Returns the weighting: pass `min_snr_weighting()`, called. Raises
    ValueError unless γ > 0, TypeError unless it is a number.

    Example:
        >>> dj.min_snr_weighting(5.0)(jnp.array([0.0, 3.0]))
        Array([1., 5.], dtype=float32)
    """
    remedy = "The paper's weighting is min_snr_weighting(5.0), called."
    gamma = check_number("min_snr_weighting", "gamma", gamma, remedy, within="(0, inf]")
    return lambda log_snr: jnp.minimum(jnp.exp(log_snr), gamma)


def p2_weighting(k: float = 1.0, gamma: float = 1.0) -> Weighting:
    """w = SNR/(k + SNR)^γ: L_simple with less weight on nearly clean images (P2).

    Choi et al. 2022, 2204.00227, Eq. 8; γ = 0 is L_simple, they use γ of 0.5 and 1. Returns the
    weighting: pass `p2_weighting()`, called. Raises ValueError unless k > 0 and γ ≥ 0, TypeError
    unless both are numbers.

    Example:
        >>> dj.losses.p2_weighting(gamma=1.0)(jnp.zeros(1))
        Array([0.5], dtype=float32)
    """
    remedy = "The paper uses p2_weighting(1.0, gamma), called, with γ of 0.5 or 1."
    k = check_number("p2_weighting", "k", k, remedy, within="(0, inf)")
    gamma = check_number("p2_weighting", "gamma", gamma, remedy, within="[0, inf)")
    return lambda log_snr: jnp.exp(log_snr - gamma * jnp.logaddexp(jnp.log(k), log_snr))


def loss_weight(
    schedule: NoiseSchedule, t: ArrayLike, weighting: Weighting, *, target: Target
) -> Array:
    """w(λ_t) as the weight of this target's own squared error, of t's shape.

    x_0: w;  ε: w/SNR;  v: w/(SNR+1);  score: w (1-ᾱ)/SNR;  previous mean: w over the square of
    √ᾱ_{t-1} β_t/(1-ᾱ_t). Where ᾱ_t is 0 only x_0 and v have a weight; ε and the score get inf or
    NaN there. Raises ValueError for an unknown target and for steps outside of the process,
    TypeError for a weighting that is no function of λ, such as `min_snr_weighting` uncalled.

    Example:
        >>> t = jnp.array([0, 999])
        >>> dj.loss_weight(dj.linear_schedule(1000), t, dj.losses.snr_weighting, target="epsilon")
        Array([1., 1.], dtype=float32)
    """
    check_target("loss_weight", target)
    check_arguments("loss_weight", schedule=schedule, t=t)
    check_function("loss_weight", "weighting", weighting, "log_snr -> w")
    log_snr = lookup(schedule.log_snr, t)
    weight = weighting(log_snr)
    check_real("loss_weight (weighting)", result=weight)
    if jnp.shape(weight) not in ((), log_snr.shape):
        raise ValueError(
            f"loss_weight needs a weighting that returns log_snr's shape {log_snr.shape}, got "
            f"{describe(weight)}."
        )
    weight = jnp.broadcast_to(jnp.asarray(weight), log_snr.shape)
    if target == "x_0":
        return weight
    if target == "v":
        return weight * jax.nn.sigmoid(-log_snr)
    if target == "epsilon":
        return weight * jnp.exp(-log_snr)
    if target == "score":
        return weight * jnp.exp(-log_snr) * jax.nn.sigmoid(-log_snr)
    of_x_0, _ = posterior_coefficients(schedule, t, jnp.ndim(t))
    return weight / of_x_0**2


def bound_weight(
    schedule: NoiseSchedule, t: ArrayLike, *, target: Target, variance: Variance = "fixed_large"
) -> Array:
    """The bound's own weight of this target's squared error, of t's shape, in nats.

    For ε it is β_t²/(2σ_t² (1-β_t)(1-ᾱ_t)) (Ho et al. 2020, Eq. 12). Times the mean squared error
    per dimension it is the part of the step's KL that depends on the prediction, per dimension. At
    t = 0 it belongs to a decoder with a density instead of bins. Raises ValueError for a learned
    variance, which has no weight of its own: use `bound_loss`.

    Example:
        >>> w = dj.losses.bound_weight(dj.linear_schedule(1000), jnp.array([1]), target="epsilon")
        >>> w.round(3)
        Array([0.273], dtype=float32)
    """
    check_target("bound_weight", target)
    check_arguments("bound_weight", schedule=schedule, t=t)
    check_variance("bound_weight", variance, schedule.num_timesteps)
    if is_learned(variance):
        raise ValueError(
            f"bound_weight needs a fixed variance or a table, got {variance!r}. With a learned "
            "variance the bound is not a weighted squared error: use bound_loss."
        )
    t = jnp.asarray(t)
    of_x_0, _ = posterior_coefficients(schedule, t, t.ndim)
    _, log_variance = reverse_variance(schedule, t, t.shape, variance=variance)
    half_precision = 0.5 * jnp.exp(-log_variance)
    if target == "previous_mean":
        return half_precision
    return loss_weight(schedule, t, lambda _: of_x_0**2 * half_precision, target=target)
