"""The one sampling loop, and what a sampler is: a step kernel over a grid of steps.

A sampler owns its (respaced) schedule of S steps and moves x from grid step t to t-1, t = S-1 … 0,
where "t-1 = -1" is the data. The denoiser belongs to the full process, so a sampler calls it with
`schedule.timesteps[t]`: a denoiser can never be paired with the wrong grid.

Noise is keyed by example: example i draws from its own key, so neither the batch nor the number of
devices it is computed on changes a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from ddpm_jax.keys import fold_in_each, normal_per_example
from ddpm_jax.types import Array, Denoiser, Key, PyTree, bcast_right


class StepResult(NamedTuple):
    """What one step returns: x at the next (less noisy) grid step, its x̂_0, and the state."""

    x: Array
    x_0_hat: Array
    state: PyTree


class Sampler(NamedTuple):
    """A sampler as pure functions.

    Attributes:
        init: `init(x_T) -> state`, the memory of a multistep method; () for most. Every array in it
            is [B, ...], so that it can be split over devices with x.
        step: `step(denoise, x_t, t, noise, state) -> StepResult`, t int32 [B] on the sampler's
            grid.
        num_steps: how many steps the grid has.
        draws: how many independent standard normals a step needs. 0: noise is None; 1: noise has
            x_t's shape; n > 1: noise is [n, *x_t.shape].
    """

    init: Callable[[Array], PyTree]
    step: Callable[[Denoiser, Array, Array, Array | None, PyTree], StepResult]
    num_steps: int
    draws: int

    @property
    def stochastic(self) -> bool:
        """Whether a step needs fresh noise."""
        return self.draws > 0


class Trajectory(NamedTuple):
    """x_t from x_T to the sample [S+1, B, ...], and the x̂_0 of each step [S, B, ...]."""

    x: Array
    x_0_hat: Array


def no_state(x_T: Array) -> PyTree:
    """The `init` of samplers without memory."""
    del x_T
    return ()


def x_0_of(denoised: Any) -> Array:
    """The x̂_0 in what a denoiser returned, whether or not a variance came with it."""
    return denoised[0] if isinstance(denoised, tuple) else denoised


def initial_noise(keys: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """x_T ~ N(0, I): [B, *shape], row i from keys[i], in a stream apart from the steps' noise."""
    return normal_per_example(fold_in_each(keys, 0), shape, dtype)


def step_noise(keys: Key, t: Array, x: Array, draws: int = 1) -> Array:
    """The noise of grid step t [] for x [B, ...], row i from keys[i]; see `Sampler.draws`."""
    step_keys = fold_in_each(keys, t + 1)
    if draws == 1:
        return normal_per_example(step_keys, x.shape[1:], x.dtype)

    # One traced draw for all: resampled inpainting needs dozens.
    def draw(index):
        return normal_per_example(fold_in_each(step_keys, index), x.shape[1:], x.dtype)

    return jax.vmap(draw)(jnp.arange(draws))


def take_draws(noise: Any, draws: int, first: int, count: int) -> Any:
    """Draws first … first+count-1 of a step's `draws`, as a kernel of `count` draws receives them.

    For samplers made of others: the parts share one step's noise.
    """
    if count == 0 or noise is None:
        return None
    stacked = noise[None] if draws == 1 else noise
    return stacked[first] if count == 1 else stacked[first : first + count]


def unless_data(t: Array, x: PyTree, move: Callable[[PyTree], PyTree]) -> PyTree:
    """`move(x)` where grid step t [B] leads to another grid step; x where it led to the data (t =
    0).

    For what a sampler adds behind a step. At the last step, where all rows have t = 0, `move` and
    the networks in it are not run. `move` must keep every shape and dtype; x's arrays are [B, ...].
    """

    def select(new, old):
        return jnp.where(bcast_right(t > 0, old.ndim), new, old)

    if isinstance(t, jax.core.Tracer):
        moved = jax.lax.cond(jnp.any(t > 0), move, lambda unmoved: unmoved, x)
    else:
        # Outside of a trace a cond would compile the networks in `move` anew at every step.
        moved = move(x) if bool(jnp.any(t > 0)) else x
    return jax.tree.map(select, moved, x)


def advance(
    sampler: Sampler,
    denoise: Denoiser,
    x: Array,
    state: PyTree,
    steps: Array,
    *,
    keys: Key | None = None,
    noise: Array | None = None,
    keep: bool = False,
) -> tuple[Array, PyTree, Any]:
    """Runs the grid steps listed in `steps` [N], falling, by one scan: (x, state, kept).

    This is `sample` in parts, for callers who show progress or keep frames, start from a step of
    their own choice, or stop before the data. `noise` [N, B, ...], for samplers of n > 1 draws
    [N, n, B, ...], replays given noise; else it is drawn from `keys` [B]. With keep, `kept` is
    (x after each step, x̂_0 of each step).
    """
    draws = (sampler.draws,) if sampler.draws > 1 else ()
    expected = (*jnp.shape(steps), *draws, *x.shape)
    layout = "[num_steps, draws, *x.shape]" if draws else "[num_steps, *x.shape]"
    if sampler.stochastic and (keys is None) == (noise is None):
        raise ValueError(
            "this sampler draws noise: pass either keys [B] (one per example, see `example_keys`) "
            f"or noise {layout} = {expected} to replay; got "
            f"{'both' if keys is not None else 'neither'}."
        )
    if noise is not None and jnp.shape(noise) != expected:
        raise ValueError(
            f"noise must have shape {layout} = {expected}, {max(sampler.draws, 1)} per step in the "
            f"order of the steps, got {jnp.shape(noise)}."
        )

    def body(carry, inputs):
        x, state = carry
        t, drawn = inputs
        if sampler.stochastic and drawn is None and keys is not None:
            drawn = step_noise(keys, t, x, sampler.draws)
        result = sampler.step(denoise, x, jnp.full(x.shape[:1], t), drawn, state)
        # A float64 table or a bfloat16 network must not change the type of what is carried.
        out = result.x.astype(x.dtype)
        return (out, result.state), ((out, result.x_0_hat) if keep else None)

    steps = jnp.asarray(steps, jnp.int32)
    (x, state), kept = jax.lax.scan(body, (x, state), (steps, noise))
    return x, state, kept


def grid_steps(sampler: Sampler) -> Array:
    """The grid steps in the order they are taken: S-1, …, 0."""
    return jnp.arange(sampler.num_steps - 1, -1, -1, dtype=jnp.int32)


def sample(
    sampler: Sampler,
    denoise: Denoiser,
    x_T: Array,
    *,
    keys: Key | None = None,
    noise: Array | None = None,
) -> Array:
    """Samples x_0 [B, ...] from x_T [B, ...] over the sampler's whole grid.

    Args:
        sampler: `ancestral(...)`, `ddim(...)`, …
        denoise: `(x_t, t) -> x̂_0`, as `make_denoiser` builds it.
        x_T: the start, usually `initial_noise(keys, shape)`.
        keys: one typed key per example [B], for stochastic samplers.
        noise: [S, B, ...], or [S, n, B, ...] for a sampler of n > 1 draws, instead of keys; first
            entry for the first (noisiest) step, to replay a run.
    """
    x, _, _ = advance(
        sampler, denoise, x_T, sampler.init(x_T), grid_steps(sampler), keys=keys, noise=noise
    )
    return x


def sample_trajectory(
    sampler: Sampler,
    denoise: Denoiser,
    x_T: Array,
    *,
    keys: Key | None = None,
    noise: Array | None = None,
) -> tuple[Array, Trajectory]:
    """As `sample`, and also every x_t and x̂_0 on the way: (x_0, Trajectory)."""
    x, _, (xs, x_0_hats) = advance(
        sampler,
        denoise,
        x_T,
        sampler.init(x_T),
        grid_steps(sampler),
        keys=keys,
        noise=noise,
        keep=True,
    )
    return x, Trajectory(jnp.concatenate([x_T[None], xs]), x_0_hats)
