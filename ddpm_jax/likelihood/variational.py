"""The variational bound over a whole process, in bits per dimension, and what it says of coding.

    -log p(x_0) ≤ E_q[ L_T + Σ_t L_t ]          (Ho et al. 2020, Eq. 5; the terms are in `bound`)

Each L_t is evaluated at one draw x_t ~ q(x_t | x_0): the sum is an unbiased estimate of the bound
of an example, and its mean over a test set that of the bound of a model. A respaced schedule is a
process of its own, with a bound of its own, as a rule a higher one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ddpm_jax.denoisers.prediction import (
    Clip,
    Target,
    Variance,
    p_mean_variance,
    predict_epsilon,
    split_output,
)
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.process import q_sample
from ddpm_jax.keys import fold_in_each, normal_per_example
from ddpm_jax.likelihood.bound import bound_term, prior_term
from ddpm_jax.types import ApplyFn, Array, ArrayLike, Key, mean_per_example


class BoundTerms(NamedTuple):
    """Some steps of the bound.

    Attributes:
        steps: t, int32 [N], or [N, B] where every example has steps of its own.
        terms: L_t in bits/dim [N, B].
        x_0_mse: ‖x_0 - x̂_0‖²/d [N, B], x̂_0 as the reverse step uses it (clipped, if it is).
        epsilon_mse: ‖ε - ε̂‖²/d [N, B] of the network's own word, before any clipping: L_simple.
    """

    steps: Array
    terms: Array
    x_0_mse: Array
    epsilon_mse: Array


class VariationalBound(NamedTuple):
    """The bound of each example, and where it comes from; t counts the steps of the schedule.

    Attributes:
        prior: L_T in bits/dim [B].
        terms: L_t in bits/dim [T, B]; terms[0] is the decoder, the others are ≥ 0.
        total: prior + Σ_t terms[t], [B]: -log₂ p(x_0)/d is at most this, in expectation.
        x_0_mse: as in BoundTerms, [T, B]; its mean over examples is what `optimal_log_variance`
            asks for, where the schedule is the full process.
        epsilon_mse: as in BoundTerms, [T, B].
    """

    prior: Array
    terms: Array
    total: Array
    x_0_mse: Array
    epsilon_mse: Array


class RateDistortion(NamedTuple):
    """Progressive coding, step by step, averaged over examples (Ho et al. 2020, §4.3, Figure 5).

    Attributes:
        rate: bits/dim [T] received when x_t is known, from t = T-1 to t = 0; rising.
        distortion: RMSE [T] of the x̂_0 guessed from that x_t, in pixel levels of 0..255.
        rate_bits: [], L_T + Σ_{t≥1} L_t, the lossy part of the code; the last entry of `rate`.
        distortion_bits: [], L_0, what the decoder adds to make the code lossless.
    """

    rate: Array
    distortion: Array
    rate_bits: Array
    distortion_bits: Array


def _one_step(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    x_0: Array,
    t: Array,
    noise: Array,
    target: Target,
    variance: Variance,
    clip: Clip,
) -> tuple[Array, Array, Array]:
    """(L_t, ‖x_0 - x̂_0‖²/d, ‖ε - ε̂‖²/d), each [B], at steps t [B]."""
    x_t = q_sample(schedule, x_0, t, noise)
    # A bfloat16 output would round the log-variance, and the error it is meant to measure.
    output = apply_fn(x_t, jnp.asarray(schedule.timesteps)[t]).astype(x_t.dtype)
    reverse = p_mean_variance(schedule, output, x_t, t, target=target, variance=variance, clip=clip)
    prediction, _ = split_output(output, x_t, variance)
    epsilon_hat = predict_epsilon(schedule, prediction, x_t, t, target=target)
    return (
        bound_term(schedule, reverse, x_0, x_t, t),
        mean_per_example(jnp.square(x_0 - reverse.x_0_hat)),
        mean_per_example(jnp.square(noise - epsilon_hat)),
    )


def bound_terms(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    x_0: Array,
    keys: Key | None,
    steps: ArrayLike,
    *,
    target: Target = "epsilon",
    variance: Variance = "fixed_large",
    clip: Clip = True,
    noise: Array | None = None,
) -> BoundTerms:
    """The terms of the steps listed, by one scan: `variational_bound` in parts, for progress bars.

    Arguments as there, and

    Args:
        steps: steps t of the schedule, int [N], in any order.
        noise: [N, B, ...] instead of keys, one draw for each step listed.

    Raises ValueError unless exactly one of keys and noise is given, and for noise of another shape.
    """
    if (keys is None) == (noise is None):
        raise ValueError(
            "bound_terms draws one x_t a step: pass either keys [B] (one per example, see "
            "`example_keys`) or noise [num_steps, B, ...] to replay; got "
            f"{'neither' if keys is None else 'both'}."
        )
    steps = jnp.asarray(steps, jnp.int32)
    if noise is not None and jnp.shape(noise) != (*steps.shape, *x_0.shape):
        raise ValueError(
            f"bound_terms needs noise of shape [num_steps, *x_0.shape] = "
            f"{(*steps.shape, *x_0.shape)}, one draw per step in the order of the steps, got "
            f"{jnp.shape(noise)}."
        )

    def body(carry, inputs):
        t, drawn = inputs
        if keys is not None:
            # By the number of the full process: grids that share a step share its draw, and
            # differ by the grid alone.
            stream = fold_in_each(keys, jnp.asarray(schedule.timesteps)[t])
            drawn = normal_per_example(stream, x_0.shape[1:], x_0.dtype)
        t = jnp.full(x_0.shape[:1], t)
        return carry, _one_step(schedule, apply_fn, x_0, t, drawn, target, variance, clip)

    _, measured = jax.lax.scan(body, None, (steps, noise))
    return BoundTerms(steps, *measured)


def assemble_bound(
    schedule: NoiseSchedule, x_0: Array, parts: Sequence[BoundTerms]
) -> VariationalBound:
    """The bound from its parts, in whatever order their steps were taken.

    Raises ValueError unless the parts hold each step of the schedule once (under a trace, where the
    steps are not to be read: unless they hold T steps).
    """
    joined = BoundTerms(*(jnp.concatenate(leaves) for leaves in zip(*parts, strict=True)))
    T = schedule.num_timesteps
    count = joined.steps.shape[0]
    known = not isinstance(joined.steps, Tracer)
    if count != T or (known and not np.array_equal(np.sort(joined.steps), np.arange(T))):
        raise ValueError(
            f"assemble_bound needs each of the steps 0..{T - 1} once, got {count} steps"
            f"{'' if count != T else ', some of them twice'}. `estimate_bound` makes do with a few."
        )
    order = jnp.argsort(joined.steps)
    terms, x_0_mse, epsilon_mse = (table[order] for table in joined[1:])
    prior = prior_term(schedule, x_0)
    return VariationalBound(prior, terms, prior + jnp.sum(terms, axis=0), x_0_mse, epsilon_mse)


def variational_bound(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    x_0: Array,
    keys: Key | None = None,
    *,
    target: Target = "epsilon",
    variance: Variance = "fixed_large",
    clip: Clip = True,
    noise: Array | None = None,
) -> VariationalBound:
    """The bound in bits/dim, every step of the schedule evaluated once (Ho et al. 2020, Eq. 5).

    Costs T evaluations of the network, in one scan. Unbiased for each example; what is random in it
    is one draw of x_t a step.

    Args:
        schedule: the process, full or respaced; the network is fed `schedule.timesteps[t]`.
        apply_fn: the network with its parameters (and labels) bound.
        x_0: data [B, ...] on the grid of 256 levels, as `from_pixels` makes it.
        keys: one key per example [B]; an example's bound depends on its own alone.
        target: what the network predicts.
        variance: of the reverse steps: a kind, or log-variances [T] for this schedule.
        clip: of x̂_0; the authors' code clips here too.
        noise: [T, B, ...] instead of keys, entry t for step t, to replay a run.

    Raises ValueError as `bound_terms` and `p_mean_variance` do.
    """
    part = bound_terms(
        schedule,
        apply_fn,
        x_0,
        keys,
        jnp.arange(schedule.num_timesteps),
        target=target,
        variance=variance,
        clip=clip,
        noise=noise,
    )
    return assemble_bound(schedule, x_0, [part])


def estimate_bound(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    x_0: Array,
    t: ArrayLike,
    noise: Array,
    *,
    target: Target = "epsilon",
    variance: Variance = "fixed_large",
    clip: Clip = True,
) -> Array:
    """The bound [B] in bits/dim from a few steps: L_T + T · mean_k L_{t_k}, for curves in training.

    Unbiased for each example when its K steps are uniform, or one of each K-th part of the process;
    when they are stratified over the batch, the mean over the batch is. Its variance for an example
    is T² Var(L_t)/K with uniform steps, t and noise both random, and less with stratified ones. A
    few steps next to the data hold most of the bound, so with K ≪ T it is heavy-tailed: average
    over many examples, and report `variational_bound` in the end.

    Args:
        schedule, apply_fn, x_0, target, variance, clip: as for `variational_bound`.
        t: steps of the schedule, int [K, B].
        noise: ε ~ N(0, I) [K, B, ...].

    Raises ValueError unless t and noise have K rows of B examples each.
    """
    t = jnp.asarray(t)
    if t.ndim != 2 or jnp.shape(noise) != (t.shape[0], *x_0.shape) or t.shape[1] != x_0.shape[0]:
        raise ValueError(
            f"estimate_bound needs t [K, B] and noise [K, B, ...] for x_0 of shape {x_0.shape}, "
            f"got shapes {t.shape} and {jnp.shape(noise)}. For one step an example pass t[None] "
            "and noise[None]."
        )

    def body(carry, inputs):
        drawn_t, drawn = inputs
        term, *_ = _one_step(schedule, apply_fn, x_0, drawn_t, drawn, target, variance, clip)
        return carry, term

    _, terms = jax.lax.scan(body, None, (t, noise))
    return prior_term(schedule, x_0) + schedule.num_timesteps * jnp.mean(terms, axis=0)


def rate_distortion(bound: VariationalBound) -> RateDistortion:
    """Bits sent against error left, while x_0 is sent coarse to fine (Ho et al. 2020, §4.3).

    x_{T-1} costs L_T; every x_{t-1} after it L_t; x_0 at last, exactly, L_0 (the code's t). Whoever
    knows x_t has been sent L_T + Σ_{s>t} L_s and guesses x̂_0(x_t), with the error

        127.5 √(‖x_0 - x̂_0‖²/d)       [-1, 1] being 255 levels wide

    taken for each example, then averaged, as the rate is. All entries are means over examples, so
    equal batches may be averaged.
    """
    terms = jnp.mean(bound.terms, axis=1)[::-1]
    prior = jnp.mean(bound.prior)
    rate = prior + jnp.concatenate([jnp.zeros_like(terms[:1]), jnp.cumsum(terms[:-1])])
    distortion = 127.5 * jnp.mean(jnp.sqrt(bound.x_0_mse), axis=1)[::-1]
    return RateDistortion(rate, distortion, rate[-1], terms[-1])


def mean_and_standard_error(values: ArrayLike) -> tuple[float, float]:
    """Mean and standard error s/√N of values [N], in float64 on the host; s² has N-1 below.

    Raises ValueError for fewer than two values, which say nothing of their spread.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(
            "mean_and_standard_error needs one value per example, [N] with N of at least 2, got "
            f"shape {values.shape}."
        )
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))
