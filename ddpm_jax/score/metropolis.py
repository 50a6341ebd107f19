"""Langevin proposals under the rule of Metropolis and Hastings: exact at every step size.

See `score.langevin` for the proposal, the chains and their streams of random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.forward.checks import (
    check_batch,
    check_flag,
    check_function,
    check_per_example,
    check_real,
    check_whole,
)
from ddpm_jax.keys import fold_in_each, normal_per_example, split_each
from ddpm_jax.score.langevin import check_chains, langevin_step, positive_of
from ddpm_jax.types import Array, ArrayLike, Key, bcast_right, sum_per_example


class AdjustedChains(NamedTuple):
    """As Chains, and each chain's share of accepted proposals [B]."""

    x: Array
    acceptance_rate: Array
    trajectory: Any


def metropolis_adjusted_langevin(
    log_density: Callable[[Array], Array],
    x: Array,
    step_size: ArrayLike,
    *,
    num_steps: int,
    score_fn: Callable[[Array], Array] | None = None,
    keys: Key | None = None,
    noise: Array | None = None,
    uniform: Array | None = None,
    keep: bool = False,
) -> AdjustedChains:
    """Langevin steps accepted or rejected so that p is invariant at any step size (MALA).

    A step from x proposes x' = x + ½ε s(x) + √ε z and moves there with probability

        min(1, p(x') q(x | x') / (p(x) q(x' | x))),   q(y | x) = N(y; x + ½ε s(x), ε I).

    The step size decides only how fast chains mix: an acceptance of about 0.57 is best in many
    dimensions (Roberts, Rosenthal 1998). A proposal whose density or score is NaN is rejected.

    Args:
        log_density: `log p(x) + constant`, [B]; of an energy f, `lambda x: -f(x)`.
        x: where the chains start [B, ...], floating point; p > 0 there.
        step_size: ε, [] or [B].
        num_steps: N.
        score_fn: `∇ log p`, by default the gradient of log_density. Chains stay exact with any
            other function of x alone (a learned score), only slower.
        keys: one typed key per chain [B], see `example_keys`.
        noise: z of the proposals [N, *x.shape], together with `uniform` instead of keys.
        uniform: draws from [0, 1) that decide acceptance [N, B].
        keep: also return x after every step [N, B, ...].

    Raises as `langevin` does, and ValueError for `uniform` without `noise` and for a log_density
    that is not [B].

    >>> keys = dj.example_keys(jax.random.key(0), jnp.arange(4))
    >>> log_p, x = lambda x: -0.5 * jnp.sum(x**2, axis=-1), jnp.zeros((4, 2))
    >>> chains = score.metropolis_adjusted_langevin(log_p, x, 0.5, num_steps=100, keys=keys)
    >>> chains.acceptance_rate.shape
    (4,)
    """
    call = "metropolis_adjusted_langevin"
    check_function(call, "log_density", log_density, "(x) -> log p")
    if score_fn is not None:
        check_function(call, "score_fn", score_fn, "(x) -> s")
    check_flag(call, "keep", keep)
    num_steps = check_whole(call, "num_steps", num_steps)
    x = check_chains(call, x, step_size, keys, noise, (num_steps,), "[num_steps, *x.shape]")
    if uniform is not None:
        check_real(call, uniform=uniform)
    expected = None if noise is None else (num_steps, *x.shape[:1])
    if (None if uniform is None else jnp.shape(uniform)) != expected:
        raise ValueError(
            f"{call} needs uniform [num_steps, B] with noise, and none with keys: expected "
            f"{expected}, got {None if uniform is None else jnp.shape(uniform)}."
        )
    size = positive_of(call, "step_size", step_size, x)

    def evaluate(x):
        if score_fn is not None:
            s, log_p = score_fn(x), log_density(x)
            check_batch(call, score=s, x=x)
            check_per_example(call, "log_density", log_p, x)
            return log_p, s.astype(x.dtype)

        def total(x):
            log_p = log_density(x)
            check_per_example(call, "log_density", log_p, x)
            return jnp.sum(log_p), log_p

        score, log_p = jax.grad(total, has_aux=True)(x)
        return log_p, score

    def body(carry, inputs):
        x, log_p, score, accepted = carry
        step, z, u = inputs
        if z is None:
            z, u = _draw_with_uniform(keys, step, x)
        proposal = langevin_step(score, x, step_size, z)
        log_p_new, score_new = evaluate(proposal)
        # The noise of the reverse move is -(z + δ), δ = ½√ε (s + s'). log q(x|x') - log q(x'|x) is
        # then ½(‖z‖² - ‖z + δ‖²) = -½ δᵀ(2z + δ): squares of large numbers need not cancel.
        delta = 0.5 * jnp.sqrt(size) * (score + score_new)
        log_back = -0.5 * sum_per_example(delta * (2.0 * z + delta))
        accept = jnp.log(u) < log_p_new - log_p + log_back

        def select(new, old):
            return jnp.where(bcast_right(accept, old.ndim), new, old)

        moved = select(proposal, x), select(log_p_new, log_p), select(score_new, score)
        return (*moved, accepted + accept), (moved[0] if keep else None)

    start = (x, *evaluate(x), jnp.zeros(x.shape[:1], jnp.int32))
    inputs = (jnp.arange(1, num_steps + 1), noise, uniform)
    (x, _, _, accepted), trajectory = jax.lax.scan(body, start, inputs, length=num_steps)
    return AdjustedChains(x, accepted / num_steps, trajectory)


def _draw_with_uniform(keys: Any, step: Array, x: Array) -> tuple[Array, Array]:
    """The noise of a proposal and the uniform number that accepts it, from two streams."""
    proposal_keys, accept_keys = split_each(fold_in_each(keys, step), 2)
    z = normal_per_example(proposal_keys, x.shape[1:], x.dtype)
    return z, jax.vmap(jax.random.uniform)(accept_keys)
