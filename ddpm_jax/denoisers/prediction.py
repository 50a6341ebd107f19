"""What a network predicts, and the reverse step p_θ(x_{t-1} | x_t) that follows from it.

With x_t = √ᾱ x_0 + √(1-ᾱ) ε, each target is one linear view of the same pair (x_0, ε):

    epsilon         ε                            (Ho et al. 2020, Eq. 12)
    x_0             x_0
    v               √ᾱ ε - √(1-ᾱ) x_0            (Salimans, Ho 2022, 2202.00512)
    previous_mean   μ̃_t(x_0, x_t)                (Ho et al. 2020, Eq. 8)
    score           ∇ log q(x_t | x_0) = -ε/√(1-ᾱ)   (Song, Ermon 2019, 1907.05600)

Given x_t, any of them fixes the others. x_0 and ε are each solved for directly, never one through
the other where a formula without a division by √ᾱ exists, so v and x_0 stay exact where ᾱ reaches
0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp

from ddpm_jax.denoisers.scheduled import ScheduledDenoiser
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.process import at_step, posterior_coefficients, posterior_mean
from ddpm_jax.types import ApplyFn, Array, ArrayLike, Denoised, bcast_right

Target = Literal["epsilon", "x_0", "v", "previous_mean", "score"]
VarianceKind = Literal["fixed_large", "fixed_small", "learned", "learned_range"]
Variance = VarianceKind | Array
"""A kind by its name, or a table of log σ_t² [T] (a log-variance for each step of the schedule)."""
Threshold = Callable[[Array], Array]
Clip = bool | Threshold
"""What is done to x̂_0 [B, ...]: True clips to [-1, 1], False nothing, a function anything else."""
TARGETS: tuple[Target, ...] = ("epsilon", "x_0", "v", "previous_mean", "score")
VARIANCES: tuple[VarianceKind, ...] = ("fixed_large", "fixed_small", "learned", "learned_range")


class ReverseStep(NamedTuple):
    """p_θ(x_{t-1} | x_t): a diagonal Gaussian, and the x̂_0 it was made from, all [B, ...]."""

    mean: Array
    variance: Array
    log_variance: Array
    x_0_hat: Array


def check_target(name: str, target: str) -> None:
    """Raises ValueError, in the name of the call, unless `target` is one of TARGETS."""
    if target not in TARGETS:
        raise ValueError(f"{name} knows the targets {TARGETS}, got {target!r}.")


def check_variance(name: str, variance: Variance) -> None:
    """Raises ValueError, in the name of the call, unless `variance` is a kind or a table."""
    if not isinstance(variance, str):
        if jnp.ndim(variance) != 1:
            raise ValueError(
                f"{name} needs a table of log-variances of shape [T], got shape "
                f"{jnp.shape(variance)}. `optimal_log_variance` makes one."
            )
    elif variance not in VARIANCES:
        raise ValueError(
            f"{name} knows the variances {VARIANCES}, or a table of log σ_t² [T]; got {variance!r}."
        )


def is_learned(variance: Variance) -> bool:
    """Whether this kind of variance takes half of the network's output channels."""
    return isinstance(variance, str) and variance in ("learned", "learned_range")


def threshold_x_0(x_0_hat: Array, clip: Clip) -> Array:
    """x̂_0 [B, ...] clipped to [-1, 1], left as it is, or passed through a function."""
    if callable(clip):
        return clip(x_0_hat)
    return jnp.clip(x_0_hat, -1.0, 1.0) if clip else x_0_hat


def dynamic_threshold(percentile: float = 99.5) -> Threshold:
    """x̂_0 → clip(x̂_0, -s, s)/s, s the larger of 1 and the percentile of |x̂_0| in each example.

    Strong guidance pushes x̂_0 out of [-1, 1]; this pulls it back without saturating whole regions
    (Saharia et al. 2022, 2205.11487, §2.3). Raises ValueError unless 0 < percentile <= 100.
    """
    if not 0.0 < percentile <= 100.0:
        raise ValueError(
            f"dynamic_threshold needs 0 < percentile <= 100, got {percentile}. Imagen uses 99.5."
        )

    def threshold(x_0_hat: Array) -> Array:
        size = jnp.abs(x_0_hat).reshape(x_0_hat.shape[0], -1)
        limit = bcast_right(
            jnp.maximum(jnp.percentile(size, percentile, axis=1), 1.0), x_0_hat.ndim
        )
        return jnp.clip(x_0_hat, -limit, limit) / limit

    return threshold


def predict_x_0(
    schedule: NoiseSchedule, output: Array, x_t: Array, t: ArrayLike, *, target: Target
) -> Array:
    """x̂_0 [B, ...] from a network output of any target at x_t [B, ...], t [B].

    epsilon: (x_t - √(1-ᾱ) ε̂)/√ᾱ;  v: √ᾱ x_t - √(1-ᾱ) v̂;  score: (x_t + (1-ᾱ) ŝ)/√ᾱ;
    previous_mean: μ̃_t solved for x_0. Where ᾱ_t is 0, ε and the score leave x_0 undetermined (inf
        or NaN).
    """
    check_target("predict_x_0", target)
    signal = at_step(schedule.signal_scale, t, jnp.ndim(x_t))
    noise = at_step(schedule.noise_scale, t, jnp.ndim(x_t))
    if target == "epsilon":
        return (x_t - noise * output) / signal
    if target == "x_0":
        return output
    if target == "v":
        return signal * x_t - noise * output
    if target == "score":
        return (x_t + noise**2 * output) / signal
    weight_x_0, weight_x_t = posterior_coefficients(schedule, t, jnp.ndim(x_t))
    return (output - weight_x_t * x_t) / weight_x_0


def predict_epsilon(
    schedule: NoiseSchedule, output: Array, x_t: Array, t: ArrayLike, *, target: Target
) -> Array:
    """ε̂ [B, ...] from a network output of any target at x_t [B, ...], t [B].

    x_0: (x_t - √ᾱ x̂_0)/√(1-ᾱ);  v: √(1-ᾱ) x_t + √ᾱ v̂;  score: -√(1-ᾱ) ŝ;  previous_mean: through
        x̂_0.
    """
    check_target("predict_epsilon", target)
    signal = at_step(schedule.signal_scale, t, jnp.ndim(x_t))
    noise = at_step(schedule.noise_scale, t, jnp.ndim(x_t))
    if target == "epsilon":
        return output
    if target == "v":
        return noise * x_t + signal * output
    if target == "score":
        return -noise * output
    x_0_hat = predict_x_0(schedule, output, x_t, t, target=target)
    return (x_t - signal * x_0_hat) / noise


def convert_prediction(
    schedule: NoiseSchedule,
    output: Array,
    x_t: Array,
    t: ArrayLike,
    *,
    source: Target,
    target: Target,
) -> Array:
    """Rewrites a network output [B, ...] of the kind `source` as the kind `target`, at the same x_t
    and t."""
    check_target("convert_prediction (source)", source)
    check_target("convert_prediction (target)", target)
    if source == target:
        return output
    signal = at_step(schedule.signal_scale, t, jnp.ndim(x_t))
    noise = at_step(schedule.noise_scale, t, jnp.ndim(x_t))
    if target == "epsilon":
        return predict_epsilon(schedule, output, x_t, t, target=source)
    if target == "score":
        return -predict_epsilon(schedule, output, x_t, t, target=source) / noise
    x_0_hat = predict_x_0(schedule, output, x_t, t, target=source)
    if target == "x_0":
        return x_0_hat
    if target == "v":
        return signal * predict_epsilon(schedule, output, x_t, t, target=source) - noise * x_0_hat
    return posterior_mean(schedule, x_0_hat, x_t, t)


def training_target(
    schedule: NoiseSchedule, x_0: Array, t: ArrayLike, noise: Array, *, target: Target
) -> Array:
    """What a network of this target should have said about x_t = √ᾱ_t x_0 + √(1-ᾱ_t) noise: [B,
    ...]."""
    check_target("training_target", target)
    if target == "epsilon":
        return noise
    if target == "x_0":
        return x_0
    signal = at_step(schedule.signal_scale, t, jnp.ndim(x_0))
    sigma = at_step(schedule.noise_scale, t, jnp.ndim(x_0))
    if target == "v":
        return signal * noise - sigma * x_0
    if target == "score":
        return -noise / sigma
    return posterior_mean(schedule, x_0, signal * x_0 + sigma * noise, t)


def split_output(output: Array, x_t: Array, variance: Variance) -> tuple[Array, Array | None]:
    """Splits a network output into (prediction, variance output); the second is None for a fixed
    variance.

    A learned variance doubles the last axis: [..., 2C] against x_t's [..., C].
    """
    check_variance("split_output", variance)
    expected = jnp.shape(x_t)
    if is_learned(variance):
        if not expected:
            raise ValueError(
                f"variance={variance!r} needs events with a channel axis, got a scalar."
            )
        expected = (*expected[:-1], 2 * expected[-1])
    if jnp.shape(output) != expected:
        raise ValueError(
            f"with variance={variance!r} and x_t of shape {jnp.shape(x_t)} the network's output "
            f"must have shape {expected}, got {jnp.shape(output)}. A learned variance doubles the "
            "output channels (out_channels = 2C); a fixed one does not."
        )
    if not is_learned(variance):
        return output, None
    prediction, variance_output = jnp.split(output, 2, axis=-1)
    return prediction, variance_output


def reverse_variance(
    schedule: NoiseSchedule,
    t: ArrayLike,
    shape: tuple[int, ...],
    *,
    variance: Variance,
    variance_output: Array | None = None,
) -> tuple[Array, Array]:
    """The variance and log-variance of p_θ(x_{t-1} | x_t), broadcast to `shape` [B, ...].

    fixed_large    β_t, the first entry replaced by β̃_1 for the decoder's sake   (Ho et al. 2020,
    §3.2)
    fixed_small    β̃_t; 0 at t = 0, its logarithm there that of β̃_1              (Ho et al. 2020,
    §3.2)
    learned        exp(variance_output)
    learned_range  exp(f log β_t + (1-f) log β̃_t), f = (variance_output + 1)/2    (iDDPM Eq. 15)
    a table [T]    exp(table[t]): log-variances, one for each step of this schedule
    """
    check_variance("reverse_variance", variance)
    ndim = len(shape)
    if not isinstance(variance, str):
        if jnp.shape(variance) != (schedule.num_timesteps,):
            raise ValueError(
                f"reverse_variance got a table of log-variances for {jnp.shape(variance)[0]} steps "
                f"with a schedule of {schedule.num_timesteps}. Make the table for this schedule."
            )
        log_variance = jnp.broadcast_to(at_step(variance, t, ndim), shape)
        return jnp.exp(log_variance), log_variance
    if is_learned(variance):
        if variance_output is None:
            raise ValueError(
                f"reverse_variance with variance={variance!r} needs variance_output, the half of "
                "the network's output that speaks of the variance; got None."
            )
        log_variance = variance_output
        if variance == "learned_range":
            low = at_step(schedule.posterior_log_variance, t, ndim)
            high = jnp.log(at_step(schedule.beta, t, ndim))
            fraction = (variance_output + 1.0) / 2.0
            log_variance = fraction * high + (1.0 - fraction) * low
        return jnp.exp(log_variance), log_variance
    if variance == "fixed_large":
        first = bcast_right(jnp.asarray(t) == 0, ndim)
        beta_log = jnp.log(at_step(schedule.beta, t, ndim))
        log_variance = jnp.where(first, at_step(schedule.posterior_log_variance, t, ndim), beta_log)
        value = jnp.where(first, jnp.exp(log_variance), at_step(schedule.beta, t, ndim))
    else:
        value = at_step(schedule.posterior_variance, t, ndim)
        log_variance = at_step(schedule.posterior_log_variance, t, ndim)
    return jnp.broadcast_to(value, shape), jnp.broadcast_to(log_variance, shape)


def p_mean_variance(
    schedule: NoiseSchedule,
    output: Array,
    x_t: Array,
    t: ArrayLike,
    *,
    target: Target = "epsilon",
    variance: Variance = "fixed_large",
    clip: Clip = True,
) -> ReverseStep:
    """p_θ(x_{t-1} | x_t) from a network's output at x_t [B, ...], t [B]  (Ho et al. 2020, Eqs. 7,
    11).

    The mean is μ̃_t(x̂_0, x_t), with x̂_0 clipped to [-1, 1] when `clip` is True (the authors' code
    does; the paper does not say), or passed through `clip` when that is a function. For a learned
    variance the last axis of `output` holds prediction and variance, [..., 2C]. Raises ValueError
    for unknown kinds and for an output of the wrong shape.
    """
    prediction, variance_output = split_output(output, x_t, variance)
    x_0_hat = predict_x_0(schedule, prediction, x_t, t, target=target)
    if target == "previous_mean" and clip is False:
        mean = prediction
    else:
        x_0_hat = threshold_x_0(x_0_hat, clip)
        mean = posterior_mean(schedule, x_0_hat, x_t, t)
    value, log_variance = reverse_variance(
        schedule, t, mean.shape, variance=variance, variance_output=variance_output
    )
    return ReverseStep(mean, value, log_variance, x_0_hat)


def schedule_rows(schedule: NoiseSchedule, timesteps: ArrayLike) -> Array:
    """Index of each network timestep in `schedule.timesteps`; T (out of range) if absent."""
    known = jnp.asarray(schedule.timesteps)
    near = jnp.minimum(jnp.searchsorted(known, timesteps), known.size - 1)
    return jnp.where(known[near] == timesteps, near, known.size)


def make_denoiser(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    *,
    target: Target = "epsilon",
    variance: Variance = "fixed_large",
    clip: Clip = True,
) -> ScheduledDenoiser:
    """Turns a network into a denoiser: `(x_t, timesteps) -> x̂_0`.

    `timesteps` [B] are numbers of `schedule.timesteps`, for a full process its steps 0..T-1.
    Samplers on a subset of the steps call with those numbers, so the full schedule serves every
    grid. A number that the schedule does not have gives NaN. With a learned variance the denoiser
    returns `Denoised(x_0, variance_output)`. Samplers check their grid against `schedule`.

    >>> schedule = dj.linear_schedule()
    >>> denoise = dj.make_denoiser(schedule, lambda x, t: 0.1 * x)
    >>> denoise(jnp.ones((2, 3)), jnp.array([10, 500])).shape
    (2, 3)
    """
    check_target("make_denoiser", target)
    check_variance("make_denoiser", variance)

    def denoise(x_t: Array, timesteps: Array):
        row = schedule_rows(schedule, timesteps)
        output = apply_fn(x_t, jnp.asarray(timesteps))
        prediction, variance_output = split_output(output, x_t, variance)
        x_0_hat = predict_x_0(schedule, prediction, x_t, row, target=target)
        x_0_hat = threshold_x_0(x_0_hat, clip)
        return x_0_hat if variance_output is None else Denoised(x_0_hat, variance_output)

    return ScheduledDenoiser(schedule, denoise)
