"""Langevin dynamics: sampling a density from its score alone.

    x ← x + ½ε s(x) + √ε z,   z ~ N(0, I),   s = ∇ log p

is one step of size ε. After many steps with ε → 0, x has density p. At finite ε it has not quite:
for p = N(m, c²) the chain settles at variance ε/(1 - (1 - ε/(2c²))²) = c²/(1 - ε/(4c²)), and for
ε >= 4c² it diverges. `metropolis_adjusted_langevin` is exact at every ε, but also needs p up to a
factor. Neither crosses between distant modes in affordable time; `annealed_langevin_chains` does,
through a sequence of noise levels (Song, Ermon 2019, arXiv 1907.05600, Algorithm 1).

The literature also writes x + ε s + √(2ε) z (NCSNv2, arXiv 2006.09011): its ε is half of ours.

Chains are the rows of x [B, ...] and independent of one another. Example i draws from keys[i]
alone; its steps use the streams 1, 2, …, which leaves stream 0 for the start
(`initial_noise(keys, shape)`). Noise may be given instead, to replay a run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.checks import (
    check_batch,
    check_flag,
    check_function,
    check_real,
    check_whole,
    real_table,
)
from ddpm_jax.keys import check_keys, fold_in_each, normal_per_example, split_each
from ddpm_jax.types import (
    Array,
    ArrayLike,
    Key,
    LevelScore,
    bcast_right,
    per_example,
)


class Chains(NamedTuple):
    """The end of each chain, x [B, ...], and the states before, [N, B, ...] (None unless kept)."""

    x: Array
    trajectory: Any


class AdjustedChains(NamedTuple):
    """As Chains, and each chain's share of accepted proposals [B]."""

    x: Array
    acceptance_rate: Array
    trajectory: Any


def langevin_step(score: Array, x: Array, step_size: ArrayLike, noise: Array) -> Array:
    """x + ½ε s + √ε z for score, x, noise [B, ...] and step_size ε [] or [B], in x's dtype.

    Raises ValueError when score or noise is not of x's shape, or step_size neither [] nor [B].

    >>> x = jnp.ones((2, 3))
    >>> round(float(score.langevin_step(-x, x, 0.1, jnp.zeros((2, 3)))[0, 0]), 3)
    0.95
    """
    score, x, noise = check_batch("langevin_step", score=score, x=x, noise=noise)
    size = _step_size("langevin_step", step_size, x)
    return (x + 0.5 * size * score + jnp.sqrt(size) * noise).astype(x.dtype)


def langevin(
    score_fn: Callable[[Array], Array],
    x: Array,
    step_size: ArrayLike,
    *,
    num_steps: int,
    keys: Key | None = None,
    noise: Array | None = None,
    keep: bool = False,
) -> Chains:
    """Runs `num_steps` unadjusted Langevin steps x ← x + ½ε s(x) + √ε z from x [B, ...].

    The module's docstring gives the error of a finite step size, and the size beyond which chains
    diverge.

    Args:
        score_fn: `s(x) -> [B, ...]`.
        x: where the chains start, floating point.
        step_size: ε, [] or [B].
        num_steps: N.
        keys: one typed key per chain [B], see `example_keys`.
        noise: [N, *x.shape] instead of keys.
        keep: also return x after every step [N, B, ...].

    Raises ValueError unless exactly one of keys and noise is given, for keys, noise or step_size of
    another shape, and if step_size is a Python number <= 0; TypeError for x that is not floating
    point and for untyped keys.

    >>> keys = dj.example_keys(jax.random.key(0), jnp.arange(4))
    >>> score.langevin(lambda x: -x, jnp.zeros((4, 2)), 0.1, num_steps=100, keys=keys).x.shape
    (4, 2)
    """
    check_function("langevin", "score_fn", score_fn, "(x) -> s")
    check_flag("langevin", "keep", keep)
    num_steps = check_whole("langevin", "num_steps", num_steps)
    x = _check_call("langevin", x, step_size, keys, noise, (num_steps,), "[num_steps, *x.shape]")

    def body(x, inputs):
        step, z = inputs
        if z is None:
            z = _draw(keys, step, x)
        s = score_fn(x)
        check_batch("langevin", score=s, x=x)
        x = langevin_step(s, x, step_size, z)
        return x, (x if keep else None)

    steps = jnp.arange(1, num_steps + 1)
    return Chains(*jax.lax.scan(body, x, (steps, noise), length=num_steps))


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
    x = _check_call(call, x, step_size, keys, noise, (num_steps,), "[num_steps, *x.shape]")
    if uniform is not None:
        check_real(call, uniform=uniform)
    expected = None if noise is None else (num_steps, *x.shape[:1])
    if (None if uniform is None else jnp.shape(uniform)) != expected:
        raise ValueError(
            f"{call} needs uniform [num_steps, B] with noise, and none with keys: expected "
            f"{expected}, got {None if uniform is None else jnp.shape(uniform)}."
        )
    size = _step_size(call, step_size, x)

    def evaluate(x):
        if score_fn is not None:
            s = score_fn(x)
            check_batch(call, score=s, x=x)
            return _per_chain(call, log_density(x), x), s.astype(x.dtype)

        def total(x):
            log_p = _per_chain(call, log_density(x), x)
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
        log_back = -0.5 * jnp.sum(delta * (2.0 * z + delta), axis=tuple(range(1, x.ndim)))
        accept = jnp.log(u) < log_p_new - log_p + log_back

        def select(new, old):
            return jnp.where(bcast_right(accept, old.ndim), new, old)

        moved = select(proposal, x), select(log_p_new, log_p), select(score_new, score)
        return (*moved, accepted + accept), (moved[0] if keep else None)

    start = (x, *evaluate(x), jnp.zeros(x.shape[:1], jnp.int32))
    inputs = (jnp.arange(1, num_steps + 1), noise, uniform)
    (x, _, _, accepted), trajectory = jax.lax.scan(body, start, inputs, length=num_steps)
    return AdjustedChains(x, accepted / num_steps, trajectory)


def annealed_langevin_chains(
    score_fn: LevelScore,
    x: Array,
    sigmas: ArrayLike,
    *,
    step_size: ArrayLike,
    steps_per_level: int,
    keys: Key | None = None,
    noise: Array | None = None,
    final_denoise: bool = True,
    keep: bool = False,
) -> Chains:
    """K Langevin steps at each level σ_1 > … > σ_L, of size ε_i = ε σ_i²/σ_L²  (NCSN, Alg. 1).

    The density of level i is the data's, blurred by N(0, σ_i² I). While the blur joins the modes,
    chains reach each in its right proportion, and keep it as the blur shrinks. For a denoiser
    instead of a score there is the sampler `annealed_langevin`.

    Args:
        score_fn: `(x, level) -> s` [B, ...], level int32 [B], 0 for sigmas[0].
        x: where the chains start [B, ...], usually noise as wide as σ_1 or uniform.
        sigmas: [L], falling.
        step_size: ε, that of the last level, [] or [B]; `langevin_step_size` picks one.
        steps_per_level: K.
        keys: one typed key per chain [B], see `example_keys`.
        noise: [L, K, *x.shape] instead of keys, first entry for the first (noisiest) level.
        final_denoise: end with x + σ_L² s(x), the mean of the clean x given the last (NCSNv2), to
            remove the remaining noise of σ_L.
        keep: also return x after every level [L, B, ...], before the last denoising.

    Raises as `langevin` does, and ValueError for sigmas that are not positive and falling.

    Example:
        >>> sigmas = score.geometric_noise_levels(1.0, 0.1, 5)
        >>> keys, x = dj.example_keys(jax.random.key(0), jnp.arange(4)), jnp.zeros((4, 2))
        >>> score_fn = lambda x, level: -x / (1 + sigmas[level][:, None] ** 2)
        >>> score.annealed_langevin_chains(
        ...     score_fn, x, sigmas, step_size=0.001, steps_per_level=10, keys=keys
        ... ).x.shape
        (4, 2)
    """
    call = "annealed_langevin_chains"
    check_function(call, "score_fn", score_fn, "(x, level) -> s")
    check_flag(call, "final_denoise", final_denoise)
    check_flag(call, "keep", keep)
    host = real_table(call, "sigmas", sigmas)
    if isinstance(host, np.ndarray) and not ((host > 0).all() and (np.diff(host) < 0).all()):
        raise ValueError(
            f"{call} needs sigmas [L], positive and falling, got {host[0]} to {host[-1]}. "
            "geometric_noise_levels makes them."
        )
    num_levels = host.shape[0]
    steps_per_level = check_whole(call, "steps_per_level", steps_per_level)
    layout = "[num_levels, steps_per_level, *x.shape]"
    x = _check_call(call, x, step_size, keys, noise, (num_levels, steps_per_level), layout)
    sigmas = jnp.asarray(host, x.dtype)
    step_size = per_example(call, "step_size", jnp.asarray(step_size, x.dtype), x)

    def at_level(level):
        def score(x):
            s = score_fn(x, jnp.full(x.shape[:1], level, jnp.int32))
            check_batch(call, score=s, x=x)
            return s

        return score

    def body(x, inputs):
        level, z = inputs
        x, _ = langevin(
            at_level(level),
            x,
            step_size * jnp.square(sigmas[level] / sigmas[-1]),
            num_steps=steps_per_level,
            keys=None if keys is None else fold_in_each(keys, level + 1),
            noise=z,
        )
        return x, (x if keep else None)

    levels = jnp.arange(num_levels, dtype=jnp.int32)
    x, trajectory = jax.lax.scan(body, x, (levels, noise), length=num_levels)
    if final_denoise:
        x = (x + jnp.square(sigmas[-1]) * at_level(levels[-1])(x)).astype(x.dtype)
    return Chains(x, trajectory)


def _draw(keys: Any, step: Array, x: Array) -> Array:
    """The noise of step `step` [], row i from keys[i]."""
    return normal_per_example(fold_in_each(keys, step), x.shape[1:], x.dtype)


def _draw_with_uniform(keys: Any, step: Array, x: Array) -> tuple[Array, Array]:
    """The noise of a proposal and the uniform number that accepts it, from two streams."""
    proposal_keys, accept_keys = split_each(fold_in_each(keys, step), 2)
    z = normal_per_example(proposal_keys, x.shape[1:], x.dtype)
    return z, jax.vmap(jax.random.uniform)(accept_keys)


def _per_chain(call: str, log_p: Array, x: Array) -> Array:
    check_real(call, log_density=log_p)
    if jnp.shape(log_p) != x.shape[:1]:
        raise ValueError(
            f"{call} needs a log_density [B], one number per chain: x has shape {x.shape}, "
            f"log_density {jnp.shape(log_p)}. Sum over the event's axes, not over the batch."
        )
    return log_p


def _check_call(
    call: str,
    x: Array,
    step_size: ArrayLike,
    keys: Key | None,
    noise: Array | None,
    steps: tuple[int, ...],
    layout: str,
) -> Array:
    """x as an array. Raises, in the name of the call, for what none of the samplers can run on."""
    (x,) = check_batch(call, x=x)
    _step_size(call, step_size, x)
    expected = (*steps, *x.shape)
    if (keys is None) == (noise is None):
        raise ValueError(
            f"{call} draws noise: pass either keys [B] (one per chain, see `example_keys`) or "
            f"noise {layout} = {expected} to replay; got "
            f"{'neither' if keys is None else 'both'}."
        )
    if noise is not None:
        check_real(call, noise=noise)
    if noise is not None and jnp.shape(noise) != expected:
        raise ValueError(f"{call} needs noise {layout} = {expected}, got shape {jnp.shape(noise)}.")
    if keys is not None:
        check_keys(call, keys, x.shape[0])
    return x


def _step_size(call: str, step_size: ArrayLike, x: Array) -> Array:
    """ε [] or [B] in x's dtype, shaped to multiply x."""
    check_real(call, step_size=step_size)
    if isinstance(step_size, int | float) and not step_size > 0:
        raise ValueError(f"{call} needs step_size > 0, got {step_size}.")
    size = per_example(call, "step_size", jnp.asarray(step_size, x.dtype), x)
    return bcast_right(size, x.ndim)
