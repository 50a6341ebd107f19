"""What a network predicts, and the reverse step p_θ(x_{t-1} | x_t) that follows from it.

With x_t = √ᾱ x_0 + √(1-ᾱ) ε, each target is one linear view of the same pair (x_0, ε):

    epsilon         ε                            (Ho et al. 2020, Eq. 12)
    x_0             x_0
    v               √ᾱ ε - √(1-ᾱ) x_0            (Salimans, Ho 2022, 2202.00512)
    previous_mean   μ̃_t(x_0, x_t)                (Ho et al. 2020, Eq. 8)
    score           ∇ log q(x_t | x_0) = -ε/√(1-ᾱ)   (Song, Ermon 2019, 1907.05600)

Given x_t, any of them fixes the others. x_0 and ε are each solved for directly, never one through
the other where a formula without a division by √ᾱ exists, so v and x_0 stay exact where ᾱ is 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp

from ddpm_jax.denoisers.thresholds import Clip, check_clip, threshold_x_0
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_choice, check_real, host_values
from ddpm_jax.forward.process import at_step, posterior_coefficients, posterior_mean, scales_at
from ddpm_jax.forward.schedule import check_arguments
from ddpm_jax.types import Array, ArrayLike, bcast_right, describe

Target = Literal["epsilon", "x_0", "v", "previous_mean", "score"]
VarianceKind = Literal["fixed_large", "fixed_small", "learned", "learned_range"]
Variance = VarianceKind | Array
"""A kind by its name, or a table of log σ_t² [T] (a log-variance for each step of the schedule)."""
TARGETS: tuple[Target, ...] = ("epsilon", "x_0", "v", "previous_mean", "score")
VARIANCES: tuple[VarianceKind, ...] = ("fixed_large", "fixed_small", "learned", "learned_range")


class ReverseStep(NamedTuple):
    """p_θ(x_{t-1} | x_t): a diagonal Gaussian, and the network's x̂_0, all [B, ...]."""

    mean: Array
    variance: Array
    log_variance: Array
    x_0_hat: Array


def check_target(call: str, target: str) -> None:
    """Raises ValueError, in the name of the call, unless `target` is one of TARGETS."""
    check_choice(call, "target", target, TARGETS)


def check_variance(call: str, variance: Variance, num_timesteps: int | None = None) -> None:
    """Raises ValueError, in the name of the call, unless `variance` is a kind or a table [T]."""
    if isinstance(variance, str):
        known = variance in VARIANCES
    else:
        known = hasattr(variance, "dtype") and jnp.issubdtype(variance.dtype, jnp.floating)
    if not known:
        raise ValueError(
            f"{call} knows the variances {VARIANCES}, or a table of log σ_t² [T]; got "
            f"{describe(variance)}."
        )
    if not isinstance(variance, str) and jnp.ndim(variance) != 1:
        raise ValueError(
            f"{call} needs a table of log-variances of shape [T], got shape "
            f"{jnp.shape(variance)}. `optimal_log_variance` makes one."
        )
    if not isinstance(variance, str) and num_timesteps not in (None, variance.shape[0]):
        raise ValueError(
            f"{call} got a table of log-variances for {variance.shape[0]} steps with a schedule of "
            f"{num_timesteps}. Make the table for this schedule."
        )


def is_learned(variance: Variance) -> bool:
    """Whether this kind of variance takes half of the network's output channels."""
    return isinstance(variance, str) and variance in ("learned", "learned_range")


def check_determined(call: str, schedule: NoiseSchedule, target: Target) -> None:
    """Raises ValueError where ε or the score cannot give x̂_0, because ᾱ_t is 0 at some step.

    Read from concrete schedules only: in a traced one x̂_0 is NaN at that step.
    """
    signal = host_values(schedule.signal_scale) if target in ("epsilon", "score") else None
    if signal is not None and (signal == 0).any():
        step = int((signal == 0).argmax())
        raise ValueError(
            f"{call} got target={target!r} with a schedule whose ᾱ is 0 at step {step}: x_t is "
            "pure noise there and does not determine x̂_0. Use a network that predicts 'v' or "
            f"'x_0', or leave that step out: respace(schedule, np.arange({step}))."
        )


def predict_x_0(
    schedule: NoiseSchedule, output: Array, x_t: Array, t: ArrayLike, *, target: Target
) -> Array:
    """x̂_0 [B, ...] from a network output of any target at x_t [B, ...], t [B].

    epsilon: (x_t - √(1-ᾱ) ε̂)/√ᾱ;  v: √ᾱ x_t - √(1-ᾱ) v̂;  score: (x_t + (1-ᾱ) ŝ)/√ᾱ;
    previous_mean: μ̃_t solved for x_0. Where ᾱ_t is 0, ε and the score leave x_0 undetermined: NaN.
    Raises ValueError for an unknown target and where output and x_t differ in shape.

    Example:
        >>> schedule, x_t = dj.linear_schedule(1000), jnp.ones((2, 3))
        >>> dj.predict_x_0(schedule, x_t, x_t, jnp.array([0, 999]), target="x_0")[0]
        Array([1., 1., 1.], dtype=float32)
    """
    check_target("predict_x_0", target)
    shape = check_arguments("predict_x_0", schedule=schedule, output=output, x_t=x_t, t=t)
    if target == "x_0":
        return output
    signal, noise = scales_at(schedule, t, len(shape))
    if target == "v":
        return signal * x_t - noise * output
    if target == "previous_mean":
        weight_x_0, weight_x_t = posterior_coefficients(schedule, t, len(shape))
        return (output - weight_x_t * x_t) / weight_x_0
    # NaN and not ±inf where ᾱ is 0, which clipping would turn into a credible ±1.
    divisor = jnp.where(signal == 0, jnp.nan, signal)
    if target == "epsilon":
        return (x_t - noise * output) / divisor
    return (x_t + noise**2 * output) / divisor


def predict_epsilon(
    schedule: NoiseSchedule, output: Array, x_t: Array, t: ArrayLike, *, target: Target
) -> Array:
    """ε̂ [B, ...] from a network output of any target at x_t [B, ...], t [B].

    x_0: (x_t - √ᾱ x̂_0)/√(1-ᾱ);  v: √(1-ᾱ) x_t + √ᾱ v̂;  score: -√(1-ᾱ) ŝ;  previous_mean: through
    x̂_0. Raises as `predict_x_0` does.

    Example:
        >>> schedule, x_t = dj.linear_schedule(1000), jnp.ones((2, 3))
        >>> dj.denoisers.predict_epsilon(schedule, x_t, x_t, 999, target="epsilon")[0]
        Array([1., 1., 1.], dtype=float32)
    """
    check_target("predict_epsilon", target)
    shape = check_arguments("predict_epsilon", schedule=schedule, output=output, x_t=x_t, t=t)
    if target == "epsilon":
        return output
    signal, noise = scales_at(schedule, t, len(shape))
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
    """Rewrites a network output [B, ...] of the kind `source` as the kind `target`, at x_t and t.

    Raises as `predict_x_0` does.

    Example:
        >>> schedule, x_t = dj.linear_schedule(1000), jnp.ones((2, 3))
        >>> v = dj.convert_prediction(schedule, 0.5 * x_t, x_t, 0, source="x_0", target="v")
        >>> dj.convert_prediction(schedule, v, x_t, 0, source="v", target="x_0")[0].round(3)
        Array([0.5, 0.5, 0.5], dtype=float32)
    """
    call = "convert_prediction"
    check_target(f"{call} (source)", source)
    check_target(f"{call} (target)", target)
    shape = check_arguments(call, schedule=schedule, output=output, x_t=x_t, t=t)
    if source == target:
        return output
    signal, noise = scales_at(schedule, t, len(shape))
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
    """The regression target [B, ...] of a network that predicts `target`, at x_t of x_0 and noise.

    x_t = √ᾱ_t x_0 + √(1-ᾱ_t) noise; the table of targets is in the module's docstring. Raises
    ValueError for an unknown target and where x_0 and noise differ in shape, TypeError for data
    that are not floating-point.

    Example:
        >>> x_0, noise = jnp.ones((2, 3)), jnp.zeros((2, 3))
        >>> dj.training_target(dj.linear_schedule(1000), x_0, 0, noise, target="v")[0]
        Array([-0.01, -0.01, -0.01], dtype=float32)
    """
    check_target("training_target", target)
    arguments = {"schedule": schedule, "x_0": x_0, "t": t, "noise": noise}
    ndim = len(check_arguments("training_target", **arguments))
    if target == "epsilon":
        return noise
    if target == "x_0":
        return x_0
    signal, sigma = scales_at(schedule, t, ndim)
    if target == "v":
        return signal * noise - sigma * x_0
    if target == "score":
        return -noise / sigma
    return posterior_mean(schedule, x_0, signal * x_0 + sigma * noise, t)


def split_output(
    output: Array, x_t: Array, variance: Variance, *, call: str = "apply_fn"
) -> tuple[Array, Array | None]:
    """Splits a network output into (prediction, variance output).

    A learned variance doubles the last axis: [..., 2C] for x_t's [..., C]. With a fixed variance
    the second is None. Raises ValueError for an output of another shape, TypeError unless it is a
    floating-point array.
    """
    check_variance(call, variance)
    check_real(call, output=output)
    expected = jnp.shape(x_t)
    if is_learned(variance):
        if not expected:
            raise ValueError(
                f"{call}: variance={variance!r} needs events with a channel axis, got a scalar."
            )
        expected = (*expected[:-1], 2 * expected[-1])
    if jnp.shape(output) != expected:
        raise ValueError(
            f"{call}: with variance={describe(variance)} and x_t of shape {jnp.shape(x_t)} the "
            f"network's output must have shape {expected}, got {jnp.shape(output)}. A learned "
            "variance doubles the output channels (out_channels = 2C); a fixed one does not."
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

    fixed_large    β_t, the first entry replaced by β̃_1 for the decoder       (Ho et al. 2020, §3.2)
    fixed_small    β̃_t; 0 at t = 0, its logarithm there that of β̃_1           (Ho et al. 2020, §3.2)
    learned        exp(variance_output)
    learned_range  exp(f log β_t + (1-f) log β̃_t), f = (variance_output + 1)/2    (iDDPM Eq. 15)
    a table [T]    exp(table[t]): log-variances, one for each step of this schedule
    """
    check_variance("reverse_variance", variance, schedule.num_timesteps)
    ndim = len(shape)
    if not isinstance(variance, str):
        log_variance = jnp.broadcast_to(at_step(variance, t, ndim), shape)
        return jnp.exp(log_variance), log_variance
    if is_learned(variance):
        if variance_output is None:
            raise ValueError(
                f"reverse_variance with variance={variance!r} needs variance_output, the half of "
                "the network's output that describes the variance; got None."
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
    """p_θ(x_{t-1} | x_t) from a network's output at x_t [B, ...], t [B]  (Ho et al. 2020, Eq. 11).

    Data are taken to lie in [-1, 1], as images do: x̂_0 is clipped there unless clip=False. The
    authors' code clips as well; the paper does not mention it.

    Args:
        schedule: the process, respaced or not; t counts its steps.
        output: of the network, [B, ...]; for a learned variance its last axis holds prediction and
            variance, [..., 2C].
        x_t: the noisy data.
        t: steps, int32 [B], or [] shared by all.
        target: what the network predicts.
        variance: of the reverse step, see `reverse_variance`.
        clip: what is done to x̂_0. True: [-1, 1]; a number b: [-b, b]; a pair (low, high); False or
            None: nothing; a function of x̂_0 such as `dynamic_threshold()`.

    The mean is μ̃_t(x̂_0, x_t) with the clipped x̂_0. With target "previous_mean" it is the network's
    output itself and only the reported x̂_0 is clipped, as in the codes of Ho et al. and of
    Dhariwal and Nichol. Raises ValueError for unknown kinds, for other shapes, and for ε or the
    score where ᾱ is 0.

    Example:
        >>> schedule, x_t = dj.linear_schedule(1000), jnp.ones((2, 3))
        >>> dj.p_mean_variance(schedule, 0.1 * x_t, x_t, 500).x_0_hat[0]
        Array([1., 1., 1.], dtype=float32)
    """
    call = "p_mean_variance"
    check_arguments(call, schedule=schedule, x_t=x_t, t=t)  # of the output: split_output
    check_target(call, target)
    check_variance(call, variance, schedule.num_timesteps)
    check_clip(call, clip)
    check_determined(call, schedule, target)
    prediction, variance_output = split_output(output, x_t, variance, call=call)
    x_0_hat = predict_x_0(schedule, prediction, x_t, t, target=target)
    x_0_hat = threshold_x_0(x_0_hat, clip)
    if target == "previous_mean":
        mean = prediction
    else:
        mean = posterior_mean(schedule, x_0_hat, x_t, t)
    value, log_variance = reverse_variance(
        schedule, t, mean.shape, variance=variance, variance_output=variance_output
    )
    return ReverseStep(mean, value, log_variance, x_0_hat)
