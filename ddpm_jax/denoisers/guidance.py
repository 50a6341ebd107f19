"""Guidance: steering a sampler towards a class, with two networks or with a classifier.

Both kinds return a network `(x_t, timesteps) -> output` in the place of the unguided one, so they
combine with every denoiser and sampler, and with each other. Their scales are numbers, shared or
one per example, or functions of the timesteps, as `guidance_interval` makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from ddpm_jax.denoisers.prediction import (
    Target,
    Variance,
    check_target,
    check_variance,
    split_output,
)
from ddpm_jax.forward import NoiseSchedule, lookup
from ddpm_jax.forward.checks import (
    check_batch,
    check_finite,
    check_function,
    check_number,
    check_per_example,
    check_real,
    check_steps,
    is_number,
)
from ddpm_jax.forward.process import posterior_coefficients, scales_at
from ddpm_jax.forward.schedule import check_arguments, rows_of_timesteps
from ddpm_jax.types import ApplyFn, Array, ArrayLike, bcast_right, per_example


class LogProbability(Protocol):
    """A noise-aware classifier, for the wanted class: `(x_t, timesteps) -> log p(y | x_t)` [B]."""

    def __call__(self, x_t: Array, timesteps: Array, /) -> Array:
        """Evaluates the classifier."""
        ...


Scale = ArrayLike | Callable[[Array], ArrayLike]
"""s, [] or [B], or a function of the timesteps [B] that returns it, for a scale per step."""


def guidance_interval(
    schedule: NoiseSchedule, scale: ArrayLike, sigma_low: float, sigma_high: float
) -> Callable[[Array], Array]:
    """The scale s where σ_low < σ <= σ_high, σ = √((1-ᾱ)/ᾱ), and 1, no guidance, elsewhere.

    High noise levels lose variety to guidance, low ones gain nothing from it (Kynkäänniemi et al.
    2024, arXiv 2404.07724, Eq. 5; σ in (0.28, 2.9] for EDM2-S on ImageNet-512). `scale` is [] or
    [B]. For classifier guidance, where no guidance is 0, subtract 1. Raises ValueError unless
    0 <= sigma_low < sigma_high.

    >>> scale = dj.denoisers.guidance_interval(dj.linear_schedule(), 3.0, 0.3, 3.0)
    >>> scale(jnp.array([0, 300, 999]))
    Array([1., 3., 1.], dtype=float32)
    """
    check_arguments("guidance_interval", schedule=schedule)
    check_real("guidance_interval", scale=scale)
    check_scale("guidance_interval", scale)
    call, remedy = "guidance_interval", "noise_levels(schedule) lists a schedule's σ."
    low = check_number(call, "sigma_low", sigma_low, remedy, within="[0, inf)")
    high = check_number(call, "sigma_high", sigma_high, remedy, within=f"(sigma_low={low}, inf]")

    def scale_at(timesteps: Array) -> Array:
        log_snr = lookup(schedule.log_snr, rows_of_timesteps(schedule, timesteps))
        sigma = jnp.exp(-0.5 * log_snr)
        s = jnp.asarray(scale, sigma.dtype)
        if s.shape not in ((), sigma.shape):
            raise ValueError(
                "guidance_interval needs one scale per example, [B], or [] for one shared by all; "
                f"got timesteps of shape {sigma.shape} and scale of shape {s.shape}."
            )
        return jnp.where((sigma > low) & (sigma <= high), s, 1.0)

    return scale_at


def classifier_free(
    conditional: ApplyFn,
    unconditional: ApplyFn,
    scale: Scale,
    *,
    variance: Variance = "fixed_large",
    rescale: float = 0.0,
) -> ApplyFn:
    """out = out_u + s (out_c - out_u): away from the unlabelled prediction (Ho, Salimans 2022).

    Every target (ε, x_0, v, the previous mean, the score) is affine in x̂_0 with the same
    coefficients in both networks, so one formula guides all of them. s = 0 is unconditional, s = 1
    conditional; the paper's w (arXiv 2207.12598, Eq. 6) is s - 1. A learned variance is the
    conditional network's.

    Autoguidance (Karras et al. 2024, arXiv 2406.02507, Eq. 3) is the same formula with a weaker
    model, smaller or trained less and with the same labels, as `unconditional`.

    rescale φ restores the spread of each example's output to that of the conditional network:
    out ← φ out std(out_c)/std(out) + (1-φ) out (Lin et al. 2023, arXiv 2305.08891, Eqs. 15, 16).
    Unlike the guidance itself, this depends on the target; the paper uses v.

    Args:
        conditional, unconditional: usually one network with the labels bound, and with the label
            that stands for none, which it learned from label dropout.
        scale: s, [] or one per example [B], or a function of the timesteps [B] that returns it;
            above 1 it trades variety for typicality.
        variance: the kind the network was trained with; says whether half its output is variance.
        rescale: φ in [0, 1]; the paper uses 0.7.

    Raises ValueError for an unknown variance, a scale that is not finite, and a rescale outside
    [0, 1]. The guided network raises ValueError for a scale that is neither [] nor [B] and for
    outputs of another shape than x_t's.

    >>> guided = dj.classifier_free(lambda x, t: x, lambda x, t: 0.0 * x, jnp.array([1.0, 3.0]))
    >>> guided(jnp.ones((2, 1)), jnp.zeros(2, int)).ravel()
    Array([1., 3.], dtype=float32)
    """
    for name, network in {"conditional": conditional, "unconditional": unconditional}.items():
        check_function("classifier_free", name, network, "(x_t, timesteps) -> output")
    check_scale("classifier_free", scale)
    check_variance("classifier_free", variance)
    remedy = "0 leaves the output as it is, and Lin et al. (2023) use 0.7."
    check_number("classifier_free", "rescale", rescale, remedy, within="[0, 1]")

    def apply_fn(x_t: Array, timesteps: Array) -> Array:
        (x_t,) = check_batch("classifier_free", x_t=x_t)
        labelled, variance_output = split_output(conditional(x_t, timesteps), x_t, variance)
        plain, _ = split_output(unconditional(x_t, timesteps), x_t, variance)
        s = _scale("classifier_free", scale, x_t, timesteps)
        guided = plain + s * (labelled - plain)
        if rescale > 0:
            axes = tuple(range(1, x_t.ndim))
            wanted, found = (jnp.var(out, axis=axes, keepdims=True) for out in (labelled, guided))
            # √ has no derivative at 0: outputs without any spread, of which a ratio says nothing.
            spread = (wanted > 0) & (found > 0)
            ratio = jnp.where(spread, wanted, 1.0) / jnp.where(spread, found, 1.0)
            ratio = jnp.where((wanted == 0) & (found > 0), 0.0, jnp.sqrt(ratio))
            guided = (rescale * ratio + 1.0 - rescale) * guided
        return _joined(guided, variance_output)

    return apply_fn


def classifier_guided(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    log_probability: LogProbability,
    scale: Scale = 1.0,
    *,
    target: Target = "epsilon",
    variance: Variance = "fixed_large",
) -> ApplyFn:
    """ε̂ - s √(1-ᾱ_t) ∇ log p(y | x_t), and the same for every other target.

    In terms of x̂_0 this adds s (1-ᾱ_t)/√ᾱ_t ∇ log p(y | x_t); with an exact classifier and s = 1
    the guided network stands for E[x_0 | x_t, y]. Clipping, as `make_denoiser` does it, comes last.
    Where ᾱ_t is 0 a classifier of x_t knows nothing, and the output stays as it is. A learned
    variance stays the network's. Dhariwal, Nichol 2021 (arXiv 2105.05233), Algorithm 2.

    Args:
        schedule: the full process the network was trained on.
        apply_fn: the unconditional network.
        log_probability: log p(y | x_t) [B] for the wanted classes, of a classifier trained on x_t.
        scale: s, [] or one per example [B], or a function of the timesteps [B] that returns it.
        target, variance: as for `make_denoiser`, which turns the guided network into a denoiser.

    Raises ValueError for unknown kinds and a scale that is not finite. The guided network raises
    ValueError for a scale that is neither [] nor [B] and for log-probabilities that are not [B].

    >>> schedule, log_p = dj.linear_schedule(), lambda x, t: -0.5 * jnp.sum(x**2, -1)
    >>> guided = dj.classifier_guided(schedule, lambda x, t: 0.1 * x, log_p, 2.0)
    >>> dj.make_denoiser(schedule, guided)(jnp.ones((2, 3)), jnp.array([10, 500])).shape
    (2, 3)
    """
    check_arguments("classifier_guided", schedule=schedule, apply_fn=apply_fn)
    check_function(
        "classifier_guided", "log_probability", log_probability, "(x_t, timesteps) -> log p"
    )
    check_scale("classifier_guided", scale)
    check_target("classifier_guided", target)
    check_variance("classifier_guided", variance)

    def guided(x_t: Array, timesteps: Array) -> Array:
        (x_t,) = check_batch("classifier_guided", x_t=x_t)
        check_steps("classifier_guided", timesteps, None, x_t.shape[:1])
        timesteps = jnp.broadcast_to(jnp.asarray(timesteps), x_t.shape[:1])
        prediction, variance_output = split_output(apply_fn(x_t, timesteps), x_t, variance)

        def total(x: Array) -> Array:
            log_p = log_probability(x, timesteps)
            remedy = "Pick each example's class from log-probabilities [B, K] first."
            check_per_example("classifier_guided", "log_probability", log_p, x, remedy)
            return jnp.sum(log_p)

        row = rows_of_timesteps(schedule, timesteps)
        push = _scale("classifier_guided", scale, x_t, timesteps) * jax.grad(total)(x_t)
        return _joined(prediction + _gain(schedule, row, x_t.ndim, target) * push, variance_output)

    return guided


def _gain(schedule: NoiseSchedule, row: Array, ndim: int, target: Target) -> Array:
    """How a target moves with ∇ log p(y | x_t), the score's own gain being 1; 0 where ᾱ is 0."""
    signal, noise = scales_at(schedule, row, ndim)
    gone = signal == 0
    finite = jnp.where(gone, 1.0, signal)
    gains = {
        "epsilon": -noise,
        "x_0": noise**2 / finite,
        "v": -noise / finite,
        "previous_mean": posterior_coefficients(schedule, row, ndim)[0] * noise**2 / finite,
        "score": jnp.ones_like(noise),
    }
    return jnp.where(gone, 0.0, gains[target])


def _scale(call: str, scale: Scale, x_t: Array, timesteps: Array) -> Array:
    if callable(scale):
        scale = scale(timesteps)
        check_scale(call, scale)
    return bcast_right(per_example(call, "scale", scale, x_t), x_t.ndim)


def check_scale(call: str, scale: Scale) -> None:
    """Raises TypeError unless the scale is real, ValueError unless concrete values are finite.

    The values of a function of the timesteps are checked when it is called.
    """
    if callable(scale):
        return
    if not is_number(scale):
        check_real(call, scale=scale)
    check_finite(call, scale=scale)


def _joined(prediction: Array, variance_output: Array | None) -> Array:
    if variance_output is None:
        return prediction
    return jnp.concatenate([prediction, variance_output], axis=-1)
