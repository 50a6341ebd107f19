"""Guidance: steering a sampler towards a class, by two networks' difference or by a classifier.

Both change what the sampler takes for the network's word, so every sampler can be guided.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from ddpm_jax.denoisers.prediction import (
    Clip,
    Target,
    Variance,
    check_target,
    check_variance,
    predict_x_0,
    schedule_rows,
    split_output,
    threshold_x_0,
)
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.process import at_step
from ddpm_jax.types import ApplyFn, Array, Denoiser


class LogProbability(Protocol):
    """A noise-aware classifier, for the wanted class: `(x_t, timesteps) -> log p(y | x_t)` [B]."""

    def __call__(self, x_t: Array, timesteps: Array, /) -> Array:
        """Evaluates the classifier."""
        ...


def classifier_free(
    conditional: ApplyFn,
    unconditional: ApplyFn,
    scale: float,
    *,
    variance: Variance = "fixed_large",
) -> ApplyFn:
    """out = out_u + s (out_c - out_u): away from the unlabelled prediction (Ho, Salimans 2022).

    Every target (ε, x_0, v, the previous mean, the score) is affine in x̂_0 with the same
    coefficients in both networks, so one formula guides all of them. s = 0 is unconditional, s = 1
    conditional; the paper's w (2207.12598, Eq. 6) is s - 1. A learned variance is the conditional
    network's.

    Args:
        conditional, unconditional: as a rule one network with the labels bound, and with the label
            that stands for none, which training with label dropout has taught it.
        scale: s; above 1 it trades variety for typicality.
        variance: the kind the network was trained with; says whether half its output is variance.
    """
    check_variance("classifier_free", variance)

    def apply_fn(x_t: Array, timesteps: Array) -> Array:
        labelled, spread = split_output(conditional(x_t, timesteps), x_t, variance)
        plain, _ = split_output(unconditional(x_t, timesteps), x_t, variance)
        guided = plain + scale * (labelled - plain)
        return guided if spread is None else jnp.concatenate([guided, spread], axis=-1)

    return apply_fn


def classifier_guided(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    log_probability: LogProbability,
    scale: float = 1.0,
    *,
    target: Target = "epsilon",
    variance: Variance = "fixed_large",
    clip: Clip = True,
) -> Denoiser:
    """x̂_0 + s (1-ᾱ_t)/√ᾱ_t ∇ log p(y | x_t): a denoiser of the score plus the classifier's.

    The same as ε̂ - s √(1-ᾱ_t) ∇ log p(y | x_t) (Dhariwal, Nichol 2021, 2105.05233, Alg. 2), for
    any target; with an exact classifier and s = 1 it is E[x_0 | x_t, y]. Clipping comes last. Where
    ᾱ_t is 0 a classifier of x_t knows nothing, and x̂_0 stays as it is.

    Args:
        schedule: the full process the network was trained on.
        apply_fn: the unconditional network.
        log_probability: log p(y | x_t) [B] for the wanted classes, of a classifier trained on x_t.
        scale: s.
        target, variance, clip: as for `make_denoiser`.
    """
    check_target("classifier_guided", target)
    check_variance("classifier_guided", variance)

    def denoise(x_t: Array, t: Array):
        row = schedule_rows(schedule, t)
        prediction, spread = split_output(apply_fn(x_t, t), x_t, variance)
        x_0_hat = predict_x_0(schedule, prediction, x_t, row, target=target)
        gradient = jax.grad(lambda x: jnp.sum(log_probability(x, t)))(x_t)
        signal = at_step(schedule.signal_scale, row, x_t.ndim)
        noise = at_step(schedule.noise_scale, row, x_t.ndim)
        # At ᾱ = 0 the classifier's gradient is 0, and of 0/0 nothing can be learnt: no guidance.
        gone = signal == 0
        step = jnp.where(gone, 0.0, noise**2 / jnp.where(gone, 1.0, signal))
        x_0_hat = threshold_x_0(x_0_hat + scale * step * gradient, clip)
        return x_0_hat if spread is None else (x_0_hat, spread)

    return denoise
