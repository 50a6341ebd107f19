"""Training objectives, per example: the caller takes the mean over the batch.

    L_simple = mean_d ‖ε - ε̂(√ᾱ_t x_0 + √(1-ᾱ_t) ε, t)‖²,  t uniform        (Ho et al. 2020, Eq. 14)
    L_t      = one term of the variational bound, in bits/dim                (Ho et al. 2020, Eq. 5)
    L_hybrid = L_simple + 0.001 · T · L_t, the mean's gradient stopped in L_t (iDDPM Eq. 16)

L_simple is the bound with its weight β_t²/(2σ_t² (1-β_t)(1-ᾱ_t)) dropped, and denoising score
matching with weight 1-ᾱ_t (Vincent 2011): the score is -ε̂/√(1-ᾱ_t). Other weights: `weightings`.

Each takes one step t [B] per example, so it is one sample of an expectation over t; T · mean L_t
estimates the whole bound without its constant prior term. Data are floats, images in [-1, 1].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ddpm_jax.denoisers.prediction import (
    Target,
    Variance,
    check_target,
    check_variance,
    is_learned,
    p_mean_variance,
    split_output,
    training_target,
)
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_number, check_real
from ddpm_jax.forward.process import q_sample
from ddpm_jax.forward.schedule import check_arguments, timesteps_at
from ddpm_jax.likelihood.bound import bound_term
from ddpm_jax.types import ApplyFn, Array, ArrayLike, mean_per_example


def simple_loss(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    x_0: Array,
    t: ArrayLike,
    noise: Array,
    *,
    target: Target = "epsilon",
) -> Array:
    """The unweighted mean squared error of the network's prediction, per example: [B].

    Args:
        schedule: the process; the network receives `schedule.timesteps[t]`.
        apply_fn: `(x_t [B, ...], timesteps [B]) -> output [B, ...]`.
        x_0: clean data [B, ...], images in [-1, 1].
        t: steps, int32 [B], or [] for one step shared by all.
        noise: ε ~ N(0, I) of x_0's shape.
        target: what the network predicts; "epsilon" is L_simple of Ho et al. 2020, Eq. 14.

    Raises ValueError for shapes that differ, of noise or of the output, and for an unknown target;
    TypeError for data that are not floating-point.

    Example:
        >>> x_0, noise, t = jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.array([0, 999])
        >>> dj.simple_loss(dj.linear_schedule(1000), lambda x_t, t: 0.0 * x_t, x_0, t, noise)
        Array([0., 0.], dtype=float32)
    """
    check_target("simple_loss", target)
    t, x_t, output = _evaluate("simple_loss", schedule, apply_fn, x_0, t, noise)
    if jnp.shape(output) != jnp.shape(x_0):
        raise ValueError(
            f"simple_loss: the network returned shape {jnp.shape(output)} for inputs of shape "
            f"{jnp.shape(x_0)}. L_simple trains the prediction alone; train learned variances with "
            "hybrid_loss or bound_loss."
        )
    return _squared_error(schedule, output, x_0, x_t, t, noise, target)


def bound_loss(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    x_0: Array,
    t: ArrayLike,
    noise: Array,
    *,
    target: Target = "epsilon",
    variance: Variance = "fixed_large",
) -> Array:
    """L_t, one term of the variational bound per example: [B], in bits/dim.

    The KL of the reverse step for t ≥ 1, and the code length of the discretised decoder at t = 0
    (Ho et al. 2020, Eqs. 5 and 13): the "L" rows of the paper's Table 2, with a fixed isotropic or
    a learned diagonal variance. x̂_0 is not clipped, which would stop its gradient. With t uniform,
    T · mean L_t estimates the bound without its prior term.

    Arguments and errors are those of `simple_loss`; `variance` may also be a table of
    log-variances. With a learned one the output's last axis holds prediction and variance,
    [..., 2C]. Raises ValueError for ε or the score where ᾱ is 0.

    Example:
        >>> x_0, noise, t = jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.array([1, 999])
        >>> dj.bound_loss(dj.linear_schedule(1000), lambda x_t, t: 0.0 * x_t, x_0, t, noise) >= 0
        Array([ True,  True], dtype=bool)
    """
    check_target("bound_loss", target)
    t, x_t, output = _evaluate("bound_loss", schedule, apply_fn, x_0, t, noise)
    check_variance("bound_loss", variance, schedule.num_timesteps)
    return _bound(schedule, output, x_0, x_t, t, target, variance)


def hybrid_loss(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    x_0: Array,
    t: ArrayLike,
    noise: Array,
    *,
    target: Target = "epsilon",
    variance: Variance = "learned_range",
    bound_scale: float = 1e-3,
) -> Array:
    """L_simple + bound_scale · T · L_t per example: [B], for a learned variance (iDDPM Eq. 16).

    L_simple trains the prediction; L_t, in bits/dim, gets the prediction with its gradient stopped
    and trains the variance alone. With t uniform, T · L_t estimates the whole bound, so that
    1e-3 is the paper's λ and the factor is T/1000.

    Arguments and errors are those of `bound_loss`. Raises ValueError for a variance that is not
    learned.

    Example:
        >>> x_0, noise, t = jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.array([0, 999])
        >>> network = lambda x_t, t: jnp.zeros((2, 6))
        >>> dj.hybrid_loss(dj.linear_schedule(1000), network, x_0, t, noise).shape
        (2,)
    """
    check_target("hybrid_loss", target)
    check_variance("hybrid_loss", variance)
    remedy = "iDDPM's λ is 1e-3."
    check_number("hybrid_loss", "bound_scale", bound_scale, remedy, within="(-inf, inf)")
    if not is_learned(variance):
        raise ValueError(
            "hybrid_loss trains a learned variance, got another one. Use 'learned' or "
            "'learned_range', or simple_loss where the variance is fixed."
        )
    t, x_t, output = _evaluate("hybrid_loss", schedule, apply_fn, x_0, t, noise)
    prediction, _ = split_output(output, x_t, variance, call="hybrid_loss (apply_fn)")
    variance_output = output[..., prediction.shape[-1] :]
    frozen = jnp.concatenate([jax.lax.stop_gradient(prediction), variance_output], axis=-1)
    bound = _bound(schedule, frozen, x_0, x_t, t, target, variance)
    simple = _squared_error(schedule, prediction, x_0, x_t, t, noise, target)
    return simple + bound_scale * schedule.num_timesteps * bound


def _evaluate(call, schedule, apply_fn, x_0, t, noise) -> tuple[Array, Array, Array]:
    """(t [B], x_t, the network's output), every argument checked in the name of the call."""
    arguments = {"schedule": schedule, "apply_fn": apply_fn, "x_0": x_0, "t": t, "noise": noise}
    shape = check_arguments(call, **arguments)
    t = jnp.broadcast_to(jnp.asarray(t), shape[:1])
    x_t = q_sample(schedule, x_0, t, noise)
    output = apply_fn(x_t, timesteps_at(schedule, t))
    check_real(f"{call} (apply_fn)", output=output)
    return t, x_t, output


def _squared_error(schedule, prediction, x_0, x_t, t, noise, target) -> Array:
    expected = training_target(schedule, x_0, t, noise, target=target)
    # float32 before the difference: a bfloat16 output would round the error it is meant to measure.
    return mean_per_example(jnp.square(prediction.astype(x_t.dtype) - expected))


def _bound(schedule, output, x_0, x_t, t, target, variance) -> Array:
    split_output(output, x_t, variance)  # names apply_fn where the shape is wrong
    reverse = p_mean_variance(
        schedule, output.astype(x_t.dtype), x_t, t, target=target, variance=variance, clip=False
    )
    return bound_term(schedule, reverse, x_0, x_t, t)
