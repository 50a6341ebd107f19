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
    check_draws,
    check_flag,
    check_function,
    check_real,
    check_whole,
    real_table,
)
from ddpm_jax.keys import fold_in_each, normal_per_example
from ddpm_jax.types import Array, ArrayLike, Key, LevelScore, bcast_right, per_example


class Chains(NamedTuple):
    """The end of each chain, x [B, ...], and the states before, [N, B, ...] (None unless kept)."""

    x: Array
    trajectory: Any


def langevin_step(score: Array, x: Array, step_size: ArrayLike, noise: Array) -> Array:
    """x + ½ε s + √ε z for score, x, noise [B, ...] and step_size ε [] or [B], in x's dtype.

    Raises ValueError when score or noise is not of x's shape, or step_size neither [] nor [B].

    >>> x = jnp.ones((2, 3))
    >>> round(float(score.langevin_step(-x, x, 0.1, jnp.zeros((2, 3)))[0, 0]), 3)
    0.95
    """
    score, x, noise = check_batch("langevin_step", score=score, x=x, noise=noise)
    size = positive_of("langevin_step", "step_size", step_size, x)
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
    x = check_chains("langevin", x, step_size, keys, noise, (num_steps,), "[num_steps, *x.shape]")

    def body(x, inputs):
        step, z = inputs
        if z is None:
            step_keys = fold_in_each(keys, step)  # type: ignore[arg-type]
            z = normal_per_example(step_keys, x.shape[1:], x.dtype)
        s = score_fn(x)
        check_batch("langevin", score=s, x=x)
        x = langevin_step(s, x, step_size, z)
        return x, (x if keep else None)

    steps = jnp.arange(1, num_steps + 1)
    return Chains(*jax.lax.scan(body, x, (steps, noise), length=num_steps))


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
    x = check_chains(call, x, step_size, keys, noise, (num_levels, steps_per_level), layout)
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


def check_chains(
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
    positive_of(call, "step_size", step_size, x)
    check_draws(call, keys, noise, x.shape[0], (*steps, *x.shape), layout)
    return x


def positive_of(call: str, name: str, value: ArrayLike, x: Array) -> Array:
    """A number above 0, [] or [B], in x's dtype and shaped to multiply x."""
    check_real(call, **{name: value})
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"{call} needs {name} > 0, got {value}.")
    return bcast_right(per_example(call, name, jnp.asarray(value, x.dtype), x), x.ndim)
