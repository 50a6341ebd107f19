"""The one sampling loop, and what a sampler is: a step kernel over a grid of steps.

A sampler owns its (respaced) schedule of S steps and moves x from grid step t to t-1, t = S-1 … 0,
where "t-1 = -1" is the data. The denoiser belongs to the full process, so a sampler calls it with
`timesteps = schedule.timesteps[t]`, and the grid is checked against a denoiser that knows its
process.

Noise is keyed per example: example i draws from its own key, so neither the batch nor the number of
devices it is computed on changes a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ddpm_jax.denoisers.scheduled import check_denoiser
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_batch, check_draws, check_flag, check_function, check_kind
from ddpm_jax.keys import check_draw, check_keys, fold_in_each, normal_per_example
from ddpm_jax.types import Array, ArrayLike, Denoiser, Key, PyTree, as_array, bcast_right, describe


class Level(NamedTuple):
    """√ᾱ, √(1-ᾱ) and λ = log(√ᾱ/√(1-ᾱ)) at one level, shaped to multiply events.

    The data is (1, 0, ∞). σ = √(1-ᾱ)/√ᾱ = e^{-λ} is left to the callers: it is infinite where ᾱ is
    0, and most formulas can do without it.
    """

    signal: Array
    noise: Array
    half_log_snr: Array


def level_at(schedule: NoiseSchedule, t: Array, ndim: int) -> Level:
    """The level of grid step t [B] for events with `ndim` axes; t = -1 is the data."""

    def read(table: Array, data: float) -> Array:
        table = jnp.concatenate([jnp.full((1,), data, table.dtype), table])
        return bcast_right(table[t + 1], ndim)

    return Level(
        read(schedule.signal_scale, 1.0),
        read(schedule.noise_scale, 0.0),
        read(0.5 * schedule.log_snr, math.inf),
    )


class StepResult(NamedTuple):
    """What one step returns: x at the next (less noisy) grid step, its x̂_0, and the state."""

    x: Array
    x_0_hat: Array
    state: PyTree


class Sampler(NamedTuple):
    """A sampler: its grid, and pure functions that move x along it.

    Attributes:
        schedule: the grid of S steps, respaced or not.
        init: `init(x_T) -> state`, the memory of a multistep method; () for most. Every array in it
            is [B, ...], so that it can be split over devices with x.
        step: `step(denoise, x_t, t, noise, state) -> StepResult`, t int32 [B] on the sampler's
            grid; the denoiser is called with `schedule.timesteps[t]`.
        num_draws: number of independent standard normals per step. 0: noise is None; 1: noise has
            x_t's shape; n > 1: noise is [n, *x_t.shape].
    """

    schedule: NoiseSchedule
    init: Callable[[Array], PyTree]
    step: Callable[[Denoiser, Array, Array, Array | None, PyTree], StepResult]
    num_draws: int

    @property
    def num_steps(self) -> int:
        """S, the number of steps of the grid."""
        return self.schedule.num_timesteps

    @property
    def stochastic(self) -> bool:
        """Whether a step needs fresh noise."""
        return self.num_draws > 0


class Trajectory(NamedTuple):
    """x_t from x_T to the sample [S+1, B, ...], and the x̂_0 of each step [S, B, ...]."""

    x: Array
    x_0_hat: Array


def no_state(x_T: Array) -> PyTree:
    """The `init` of samplers without memory."""
    return ()


def initial_noise(keys: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """x_T ~ N(0, I): [B, *shape], row i from keys[i], in a stream apart from the steps' noise.

    `shape` is one event's. Raises ValueError or TypeError for keys that are not [B] typed keys and
    for a shape or dtype that `normal_per_example` refuses.

    >>> keys = dj.example_keys(jax.random.key(0), jnp.arange(4))
    >>> dj.initial_noise(keys, (32, 32, 3)).shape
    (4, 32, 32, 3)
    """
    shape = check_draw("initial_noise", keys, shape, dtype)
    return normal_per_example(fold_in_each(keys, 0), shape, dtype)


def step_noise(keys: Key, t: Array, x: Array, num_draws: int = 1) -> Array:
    """The noise of grid step t [] for x [B, ...], row i from keys[i]; see `Sampler.num_draws`."""
    check_keys("step_noise", keys, x.shape[0])
    step_keys = fold_in_each(keys, t + 1)
    if num_draws == 1:
        return normal_per_example(step_keys, x.shape[1:], x.dtype)

    # One traced draw for all: resampled inpainting needs dozens.
    def draw(index):
        return normal_per_example(fold_in_each(step_keys, index), x.shape[1:], x.dtype)

    return jax.vmap(draw)(jnp.arange(num_draws))


def split_draws(noise: Any, num_draws: int, first: int, count: int) -> Any:
    """Draws first … first+count-1 of a step's `num_draws`, laid out for a kernel of `count` draws.

    For samplers made of others: the parts share one step's noise.
    """
    if count == 0 or noise is None:
        return None
    stacked = noise[None] if num_draws == 1 else noise
    return stacked[first] if count == 1 else stacked[first : first + count]


def skip_at_last_step(t: Array, x: PyTree, move: Callable[[PyTree], PyTree]) -> PyTree:
    """`move(x)` in rows with grid step t > 0 [B]; x in rows whose step has reached the data.

    For work done after a step, such as a corrector. `move` and its networks are not run at the last
    step, where all rows have t = 0. It must keep every shape and dtype; x's arrays are [B, ...].
    """

    def select(new, old):
        return jnp.where(bcast_right(t > 0, old.ndim), new, old)

    if isinstance(t, jax.core.Tracer):
        moved = jax.lax.cond(jnp.any(t > 0), move, lambda unmoved: unmoved, x)
    else:
        # Outside a trace a cond would compile the networks in `move` anew at every step.
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
    """Runs the grid steps listed in `steps` [N], each one below the last: (x, state, kept).

    This is `sample` in parts, for callers who show progress or keep frames, start from a step of
    their own choice, or stop before the data. `noise` [N, B, ...], for samplers of n > 1 draws
    [N, n, B, ...], replays given noise; otherwise it is drawn from `keys` [B]. With keep, `kept` is
    (x after each step, x̂_0 of each step), else None. Raises as `sample` does, and ValueError for
    steps that do not fall one by one within the grid.

    >>> sampler, x = dj.ddim(dj.linear_schedule(10)), jnp.ones((2, 3))
    >>> first_half, denoise = jnp.arange(9, 4, -1), lambda x, t: 0.5 * x
    >>> x, state, _ = dj.samplers.advance(sampler, denoise, x, sampler.init(x), first_half)
    """
    check_sampler("advance", sampler)
    steps = check_steps("advance", sampler, steps)
    check_flag("advance", "keep", keep)
    x = _check_call("advance", sampler, denoise, x, keys, noise, steps.shape)
    wanted = jax.eval_shape(sampler.init, x)
    if jax.tree.structure(state) != jax.tree.structure(wanted) or any(
        jnp.shape(have) != want.shape
        for have, want in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True)
    ):
        raise ValueError(
            "advance needs the sampler's state: sampler.init(x), or what advance returned; got "
            f"{describe(state)}."
        )
    return _scan(sampler, denoise, x, state, steps, keys, noise, keep)


def grid_steps(sampler: Sampler) -> Array:
    """The grid steps in the order they are taken: S-1, …, 0.

    >>> dj.samplers.grid_steps(dj.ddim(dj.linear_schedule(3)))
    Array([2, 1, 0], dtype=int32)
    """
    check_sampler("grid_steps", sampler)
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
        sampler: `ancestral(schedule)`, `ddim(schedule)`, …
        denoise: `(x_t, timesteps) -> x̂_0`, as `make_denoiser` builds it.
        x_T: the start, floating point, usually `initial_noise(keys, shape)`.
        keys: one typed key per example [B], for stochastic samplers.
        noise: [S, B, ...], or [S, n, B, ...] for a sampler of n > 1 draws, instead of keys; first
            entry for the first (noisiest) step, to replay a run.

    Raises TypeError for arguments of another kind (a sampler's maker that was not called, integer
    x_T, untyped keys), and ValueError for keys or noise of another shape, for both or neither of
    them, for an x̂_0 that is not of x_t's shape, and for a denoiser of another process than the
    sampler's grid (where both are concrete).

    >>> keys = dj.example_keys(jax.random.key(0), jnp.arange(4))
    >>> x_T = dj.initial_noise(keys, (3,))
    >>> dj.sample(dj.ancestral(dj.linear_schedule(10)), lambda x, t: 0.5 * x, x_T, keys=keys).shape
    (4, 3)
    """
    x = _check_call("sample", sampler, denoise, x_T, keys, noise)
    return _scan(sampler, denoise, x, sampler.init(x), grid_steps(sampler), keys, noise)[0]


def sample_trajectory(
    sampler: Sampler,
    denoise: Denoiser,
    x_T: Array,
    *,
    keys: Key | None = None,
    noise: Array | None = None,
) -> tuple[Array, Trajectory]:
    """As `sample`, and also every x_t and x̂_0 on the way: (x_0, Trajectory).

    >>> sampler, x_T = dj.ddim(dj.linear_schedule(10)), jnp.ones((4, 3))
    >>> x_0, way = dj.sample_trajectory(sampler, lambda x, t: 0.5 * x, x_T)
    >>> way.x.shape, way.x_0_hat.shape
    ((11, 4, 3), (10, 4, 3))
    """
    x_T = _check_call("sample_trajectory", sampler, denoise, x_T, keys, noise)
    steps, state = grid_steps(sampler), sampler.init(x_T)
    x, _, (xs, x_0_hats) = _scan(sampler, denoise, x_T, state, steps, keys, noise, keep=True)
    return x, Trajectory(jnp.concatenate([x_T[None], xs]), x_0_hats)


def _scan(sampler, denoise, x, state, steps, keys, noise, keep=False) -> tuple[Array, PyTree, Any]:
    def body(carry, inputs):
        x, state = carry
        t, drawn = inputs
        if sampler.stochastic and drawn is None:
            drawn = step_noise(keys, t, x, sampler.num_draws)
        result = sampler.step(denoise, x, jnp.full(x.shape[:1], t), drawn, state)
        # A float64 table or a bfloat16 network must not change the type of what is carried.
        out = result.x.astype(x.dtype)
        return (out, result.state), ((out, result.x_0_hat) if keep else None)

    steps = jnp.asarray(steps, jnp.int32)
    (x, state), kept = jax.lax.scan(body, (x, state), (steps, noise))
    return x, state, kept


def check_sampler(call: str, sampler: Sampler) -> None:
    """Raises TypeError, in the name of the call, unless its first argument is a Sampler."""
    check_kind(call, "sampler", sampler, Sampler, "such as ddim(schedule), already called")


def check_schedule(call: str, schedule: NoiseSchedule, name: str = "schedule") -> None:
    """Raises TypeError, in the name of the call, unless `schedule` is a NoiseSchedule."""
    source = "such as linear_schedule() or respace(schedule, steps)"
    check_kind(call, name, schedule, NoiseSchedule, source)


def check_steps(call: str, sampler: Sampler, steps: ArrayLike) -> Array:
    """The steps [N] as an array. Raises ValueError unless they fall one by one on the grid.

    A traced `steps` is checked for its shape and type only.
    """
    size = sampler.num_steps
    steps = as_array(call, "grid steps", steps)
    fit = steps.ndim == 1 and jnp.issubdtype(steps.dtype, jnp.integer)
    if fit and not isinstance(steps, jax.core.Tracer):
        host = np.asarray(steps).astype(np.int64)  # differences of unsigned numbers wrap round
        fit = not host.size or (0 <= host[-1] <= host[0] < size and (np.diff(host) == -1).all())
    if not fit:
        raise ValueError(
            f"{call} needs grid steps [N] within 0..{size - 1}, each one below the last, got "
            f"{steps}. They count the sampler's grid, not the full process: grid_steps(sampler) "
            "lists them; to leave steps out, respace the schedule."
        )
    return steps


def _check_call(
    call: str,
    sampler: Sampler,
    denoise: Denoiser,
    x: Array,
    keys: Key | None,
    noise: Array | None,
    steps_shape: tuple[int, ...] | None = None,
) -> Array:
    """Raises, in the name of the call, for what no sampler can run on; returns x as an array."""
    check_sampler(call, sampler)
    check_function(call, "a denoiser", denoise, "(x_t, timesteps) -> x̂_0")
    (x,) = check_batch(call, x=x)
    draws = (sampler.num_draws,) if sampler.num_draws > 1 else ()
    expected = (*((sampler.num_steps,) if steps_shape is None else steps_shape), *draws, *x.shape)
    layout = "[num_steps, num_draws, *x.shape]" if draws else "[num_steps, *x.shape]"
    if sampler.stochastic or noise is not None:
        keys_or_noise = keys if sampler.stochastic else None, noise
        check_draws(call, *keys_or_noise, x.shape[0], expected, layout)
    if keys is not None:
        check_keys(call, keys, x.shape[0])
    check_denoiser(call, sampler.schedule, denoise)
    return x
