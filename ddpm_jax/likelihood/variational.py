"""The variational bound over a whole process, in bits per dimension.

    -log p(x_0) ≤ E_q[ L_T + Σ_t L_t ]          (Ho et al. 2020, Eq. 5; the terms are in `bound`)

Each L_t is evaluated at one draw x_t ~ q(x_t | x_0): the sum is an unbiased estimate of an
example's bound, and its mean over a test set estimates the model's. A respaced schedule is a
process of its own, with its own bound, usually a higher one. Data are images in [-1, 1] on the grid
of 256 levels, and x̂_0 is clipped there unless clip=False.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ddpm_jax.denoisers.prediction import (
    Target,
    Variance,
    check_determined,
    check_target,
    check_variance,
    is_learned,
    p_mean_variance,
    predict_epsilon,
    split_output,
)
from ddpm_jax.denoisers.thresholds import Clip, check_clip
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_draws, check_real, check_steps
from ddpm_jax.forward.process import q_sample
from ddpm_jax.forward.schedule import check_arguments, timesteps_at
from ddpm_jax.keys import fold_in_each, normal_per_example
from ddpm_jax.likelihood.bound import bound_term, prior_term
from ddpm_jax.types import ApplyFn, Array, ArrayLike, Key, mean_per_example


class BoundTerms(NamedTuple):
    """Some steps of the bound.

    Attributes:
        steps: t, int32 [N].
        terms: L_t in bits/dim [N, B]; for several variances a dict of them, by name.
        x_0_mse: ‖x_0 - x̂_0‖²/d [N, B], with the x̂_0 of the reverse step (clipped, if it is).
        epsilon_mse: ‖ε - ε̂‖²/d [N, B] of the raw network output, before clipping: L_simple.
    """

    steps: Array
    terms: Any
    x_0_mse: Array
    epsilon_mse: Array


class VariationalBound(NamedTuple):
    """The bound of each example and its parts; t counts the steps of the schedule.

    Attributes:
        prior: L_T in bits/dim [B].
        terms: L_t in bits/dim [T, B]; terms[0] is the decoder, the others are ≥ 0. For several
            variances a dict of them, by name, and so is `total`.
        total: prior + Σ_t terms[t], [B]: -log₂ p(x_0)/d is at most this, in expectation.
        x_0_mse: as in BoundTerms, [T, B]; its mean over examples is the input of
            `optimal_log_variance`, if the schedule is the full process.
        epsilon_mse: as in BoundTerms, [T, B].
    """

    prior: Array
    terms: Any
    total: Any
    x_0_mse: Array
    epsilon_mse: Array


def _check_call(call, schedule, apply_fn, x_0, target, variances, clip) -> None:
    check_arguments(call, schedule=schedule, apply_fn=apply_fn, x_0=x_0)
    if not jnp.ndim(x_0):
        raise ValueError(f"{call} needs a batch x_0 [B, ...], got a scalar.")
    check_target(call, target)
    if not variances:
        raise ValueError(f"{call} needs at least one variance, got an empty mapping.")
    for variance in variances.values():
        check_variance(call, variance, schedule.num_timesteps)
    check_clip(call, clip)
    check_determined(call, schedule, target)


def _named(variance: Variance | Mapping[str, Variance]) -> tuple[Mapping[str, Variance], bool]:
    """({name: variance}, whether only one was given)."""
    if isinstance(variance, Mapping):
        return variance, False
    return {"": variance}, True


def terms_of_step(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    x_0: Array,
    t: Array,
    noise: Array,
    target: Target,
    variances: Mapping[str, Variance],
    clip: Clip,
    own_variance: Variance | None = None,
) -> tuple[dict[str, Array], Array, Array]:
    """({name: L_t}, ‖x_0 - x̂_0‖²/d, ‖ε - ε̂‖²/d), each [B], at steps t [B].

    `own_variance` is the network's, by default the learned one among the variances, if any.
    """
    x_t = q_sample(schedule, x_0, t, noise)
    output = apply_fn(x_t, timesteps_at(schedule, t))
    check_real("the network (apply_fn)", output=output)
    # A bfloat16 output would round the log-variance, and the error it is meant to measure.
    output = output.astype(x_t.dtype)
    kinds: list[Any] = list(variances.values())
    own: Any = own_variance
    if own is None:
        own = next((kind for kind in kinds if is_learned(kind)), kinds[0])
    prediction, _ = split_output(output, x_t, own)
    terms, x_0_hat = {}, x_0
    for name, variance in variances.items():
        shown = output if is_learned(variance) else prediction
        reverse = p_mean_variance(
            schedule, shown, x_t, t, target=target, variance=variance, clip=clip
        )
        terms[name] = bound_term(schedule, reverse, x_0, x_t, t)
        x_0_hat = reverse.x_0_hat  # the same for every variance
    epsilon_hat = predict_epsilon(schedule, prediction, x_t, t, target=target)
    x_0_mse = mean_per_example(jnp.square(x_0 - x_0_hat))
    return terms, x_0_mse, mean_per_example(jnp.square(noise - epsilon_hat))


def bound_terms(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    x_0: Array,
    keys: Key | None,
    steps: ArrayLike,
    *,
    target: Target = "epsilon",
    variance: Variance | Mapping[str, Variance] = "fixed_large",
    clip: Clip = True,
    noise: Array | None = None,
) -> BoundTerms:
    """The terms of the steps listed, by one scan: `variational_bound` in parts, for progress bars.

    The other arguments are those of `variational_bound`.

    Args:
        steps: steps t of the schedule, int [N], in any order.
        variance: of the reverse steps, or several by name, measured on the same network output:
            if one of them is learned, the output has a variance half.
        noise: [N, B, ...] instead of keys, one draw for each step listed.

    Raises ValueError unless exactly one of keys and noise is given, and for noise of another shape.
    """
    options = (target, variance, clip, noise)
    return _bound_terms("bound_terms", schedule, apply_fn, x_0, keys, steps, *options)


def _bound_terms(
    call, schedule, apply_fn, x_0, keys, steps, target, variance, clip, noise
) -> BoundTerms:
    variances, single = _named(variance)
    _check_call(call, schedule, apply_fn, x_0, target, variances, clip)
    check_steps(call, steps, schedule.num_timesteps)
    if np.ndim(steps) != 1:
        raise ValueError(f"{call} needs steps [N], got shape {np.shape(steps)}.")
    steps = jnp.asarray(steps, jnp.int32)
    shape = *steps.shape, *x_0.shape
    check_draws(call, keys, noise, x_0.shape[0], shape, "[num_steps, *x_0.shape]")

    def body(carry, inputs):
        t, drawn = inputs
        if keys is not None:
            # Keyed by the step of the full process: grids that share a step share its draw, so
            # their bounds differ by the grid alone.
            stream = fold_in_each(keys, timesteps_at(schedule, t))
            drawn = normal_per_example(stream, x_0.shape[1:], x_0.dtype)
        t = jnp.full(x_0.shape[:1], t)
        return carry, terms_of_step(schedule, apply_fn, x_0, t, drawn, target, variances, clip)

    _, (terms, x_0_mse, epsilon_mse) = jax.lax.scan(body, None, (steps, noise))
    return BoundTerms(steps, terms[""] if single else terms, x_0_mse, epsilon_mse)


def assemble_bound(
    schedule: NoiseSchedule, x_0: Array, parts: Sequence[BoundTerms]
) -> VariationalBound:
    """The bound from its parts, in whatever order their steps were taken.

    Raises ValueError unless the parts hold each step of the schedule once (under a trace, where the
    steps cannot be read: unless they hold T steps).
    """
    check_arguments("assemble_bound", schedule=schedule, x_0=x_0)
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    T = schedule.num_timesteps
    count = joined.steps.shape[0]
    known = not isinstance(joined.steps, Tracer)
    if count != T or (known and not np.array_equal(np.sort(joined.steps), np.arange(T))):
        raise ValueError(
            f"assemble_bound needs each of the steps 0..{T - 1} once, got {count} steps"
            f"{'' if count != T else ', some of them twice'}. `estimate_bound` makes do with a few."
        )
    order = jnp.argsort(joined.steps)
    terms, x_0_mse, epsilon_mse = jax.tree.map(lambda table: table[order], tuple(joined[1:]))
    prior = prior_term(schedule, x_0)
    total = jax.tree.map(lambda table: prior + jnp.sum(table, axis=0), terms)
    return VariationalBound(prior, terms, total, x_0_mse, epsilon_mse)


def variational_bound(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    x_0: Array,
    keys: Key | None = None,
    *,
    target: Target = "epsilon",
    variance: Variance | Mapping[str, Variance] = "fixed_large",
    clip: Clip = True,
    noise: Array | None = None,
) -> VariationalBound:
    """The bound in bits/dim, every step of the schedule evaluated once (Ho et al. 2020, Eq. 5).

    Data are taken to lie in [-1, 1], and x̂_0 is clipped there unless clip=False. Costs T
    evaluations of the network, in one scan. Unbiased for each example; its randomness is one draw
    of x_t per step.

    Args:
        schedule: the process, full or respaced; the network receives `schedule.timesteps[t]`.
        apply_fn: the network with its parameters (and labels) bound.
        x_0: data [B, ...] on the grid of 256 levels, as `from_pixels` makes it.
        keys: one key per example [B]; an example's bound depends only on its own key.
        target: what the network predicts.
        variance: of the reverse steps: a kind, or log-variances [T] for this schedule; or several
            by name, measured on the same network outputs.
        clip: of x̂_0, as in `p_mean_variance`; the authors' code clips here too.
        noise: [T, B, ...] instead of keys, entry t for step t, to replay a run.

    Raises ValueError and TypeError as `p_mean_variance` does, and for keys or noise of another
    shape.

    Example:
        >>> x_0, keys = jnp.ones((2, 3)), dj.example_keys(jax.random.key(0), jnp.arange(2))
        >>> schedule = dj.cosine_schedule(4)
        >>> dj.variational_bound(schedule, lambda x_t, t: 0.0 * x_t, x_0, keys).terms.shape
        (4, 2)
    """
    call = "variational_bound"
    check_arguments(call, schedule=schedule, apply_fn=apply_fn, x_0=x_0)
    steps = jnp.arange(schedule.num_timesteps)
    options = (target, variance, clip, noise)
    part = _bound_terms(call, schedule, apply_fn, x_0, keys, steps, *options)
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
    """The bound [B] in bits/dim from a few steps: L_T + T · mean_k L_{t_k}, for training curves.

    Unbiased for each example if its K steps are uniform, or one from each K-th part of the process;
    if they are stratified over the batch, the mean over the batch is unbiased. Its variance for an
    example is T² Var(L_t)/K with uniform steps, t and noise both random, and less with stratified
    ones. A few steps next to the data hold most of the bound, so with K ≪ T it is heavy-tailed:
    average over many examples, and report `variational_bound` in the end.

    Args:
        schedule, apply_fn, x_0, target, variance, clip: as for `variational_bound`, one variance.
        t: steps of the schedule, int [K, B].
        noise: ε ~ N(0, I) [K, B, ...].

    Raises ValueError unless t and noise have K rows of B examples each, and as `variational_bound`.

    Example:
        >>> x_0, noise, t = jnp.ones((2, 3)), jnp.zeros((1, 2, 3)), jnp.array([[1, 3]])
        >>> dj.estimate_bound(dj.cosine_schedule(4), lambda x_t, t: 0.0 * x_t, x_0, t, noise).shape
        (2,)
    """
    call = "estimate_bound"
    _check_call(call, schedule, apply_fn, x_0, target, {"": variance}, clip)
    check_steps(call, t, schedule.num_timesteps)
    check_real(call, noise=noise)
    t = jnp.asarray(t)
    if t.ndim != 2 or jnp.shape(noise) != (t.shape[0], *x_0.shape) or t.shape[1] != x_0.shape[0]:
        raise ValueError(
            f"estimate_bound needs t [K, B] and noise [K, B, ...] for x_0 of shape {x_0.shape}, "
            f"got shapes {t.shape} and {jnp.shape(noise)}. For one step per example pass "
            "t[None] and noise[None]."
        )

    def body(carry, inputs):
        drawn_t, drawn = inputs
        named: Mapping[str, Variance] = {"": variance}
        terms, *_ = terms_of_step(schedule, apply_fn, x_0, drawn_t, drawn, target, named, clip)
        return carry, terms[""]

    _, terms = jax.lax.scan(body, None, (t, noise))
    return prior_term(schedule, x_0) + schedule.num_timesteps * jnp.mean(terms, axis=0)
