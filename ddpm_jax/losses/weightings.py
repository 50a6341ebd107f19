"""Weights of the squared error over the noise levels.

A weighting is a function of the log-SNR λ = log ᾱ - log(1-ᾱ) that says how much an error of x̂_0
counts, w(λ) ‖x_0 - x̂_0‖². Said of x_0 it means the same whatever the network predicts: an error of
ε is one of x_0 times √SNR, of v times √(SNR+1), of the score times √SNR/√(1-ᾱ), of the previous
mean times √ᾱ_{t-1} β_t/(1-ᾱ_t). `loss_weight` divides by the square of that, and the product with
`simple_loss` of the same target is the weighted loss:

    simple_loss(schedule, apply_fn, x_0, t, noise, target=target)
        * loss_weight(schedule, t, min_snr_weighting(5.0), target=target)

Any function of λ [B] serves as a weighting.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.denoisers.prediction import (
    Target,
    Variance,
    check_target,
    is_learned,
    reverse_variance,
)
from ddpm_jax.forward import NoiseSchedule, lookup
from ddpm_jax.forward.process import posterior_coefficients
from ddpm_jax.types import Array, ArrayLike

Weighting = Callable[[Array], Array]
"""`weighting(log_snr [B]) -> w [B]`, the weight of ‖x_0 - x̂_0‖²."""


def snr_weighting(log_snr: Array) -> Array:
    """w = SNR: the plain ε loss, L_simple, for every target."""
    return jnp.exp(log_snr)


def snr_plus_one_weighting(log_snr: Array) -> Array:
    """w = SNR + 1: the plain v loss, for every target (Salimans, Ho 2022, 2202.00512, §4)."""
    return jnp.exp(log_snr) + 1.0


def truncated_snr_weighting(log_snr: Array) -> Array:
    """w = max(SNR, 1): L_simple, but x_0 counts in full where there is more noise than signal.

    Salimans, Ho 2022, 2202.00512, §4.
    """
    return jnp.maximum(jnp.exp(log_snr), 1.0)


def min_snr_weighting(gamma: float = 5.0) -> Weighting:
    """w = min(SNR, γ) (Hang et al. 2023, 2303.09556, §3.4).

    As the weight of a target's own loss: min(SNR, γ)/SNR for ε, min(SNR, γ) for x_0 and
    min(SNR, γ)/(SNR+1) for v. Raises ValueError unless γ > 0.
    """
    if not gamma > 0:
        raise ValueError(f"min_snr_weighting needs gamma > 0, got {gamma}. The paper uses 5.")
    return lambda log_snr: jnp.minimum(jnp.exp(log_snr), gamma)


def p2_weighting(k: float = 1.0, gamma: float = 1.0) -> Weighting:
    """w = SNR/(k + SNR)^γ: L_simple with less weight on nearly clean images (P2).

    Choi et al. 2022, 2204.00227, Eq. 8; γ = 0 is L_simple, they use γ of 0.5 and 1. Raises
    ValueError unless k > 0 and γ ≥ 0.
    """
    if not (k > 0 and gamma >= 0):
        raise ValueError(
            f"p2_weighting needs k > 0 and gamma >= 0, got {k=}, {gamma=}. The paper uses k = 1 "
            "and γ of 0.5 or 1."
        )
    return lambda log_snr: jnp.exp(log_snr - gamma * jnp.logaddexp(jnp.log(k), log_snr))


def loss_weight(
    schedule: NoiseSchedule, t: ArrayLike, weighting: Weighting, *, target: Target
) -> Array:
    """w(λ_t) as the weight of this target's own squared error, of t's shape.

    x_0: w;  ε: w/SNR;  v: w/(SNR+1);  score: w (1-ᾱ)/SNR;  previous mean: w over the square of
    √ᾱ_{t-1} β_t/(1-ᾱ_t). Where ᾱ_t is 0 only x_0 and v have a weight; ε and the score get inf or
    NaN there. Raises ValueError for an unknown target.
    """
    check_target("loss_weight", target)
    log_snr = lookup(schedule.log_snr, t)
    weight = weighting(log_snr)
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
    a dimension it is that part of the step's KL that the prediction decides, also a dimension. At
    t = 0 it stands for a decoder with a density instead of bins. Raises ValueError for a learned
    variance, which has no weight of its own: use `bound_loss`.
    """
    check_target("bound_weight", target)
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
