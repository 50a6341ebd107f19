"""DDIM: the non-Markovian family with DDPM's marginals, and its inversion.

Song, Meng, Ermon 2020 (arXiv 2010.02502).

With σ = √(1-ᾱ)/√ᾱ and y = x/√ᾱ, DDIM is Euler's scheme of dy/dσ = ε̂ (their Eq. 14): falling σ
decodes noise to data, rising σ encodes data to noise.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from ddpm_jax.denoisers.scheduled import check_denoiser
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import (
    check_batch,
    check_choice,
    check_function,
    check_number,
    check_whole,
)
from ddpm_jax.forward.process import at_step
from ddpm_jax.forward.schedule import timesteps_at
from ddpm_jax.samplers.base import Sampler, StepResult, check_schedule, level_at, no_state
from ddpm_jax.types import Array, Denoiser, x_0_of

Convention = Literal["euler", "fed_next", "data_is_step_0"]


def ddim(schedule: NoiseSchedule, *, eta: float = 0.0) -> Sampler:
    """x_{t-1} = √ᾱ_{t-1} x̂_0 + √(1-ᾱ_{t-1}-σ_t²) ε̂ + σ_t z,  σ_t = η √β̃_t  (DDIM Eqs. 12, 16).

    η = 0 is deterministic, the Euler scheme of the probability-flow ODE in √(1-ᾱ)/√ᾱ; η = 1 equals
    ancestral sampling with fixed_small. ε̂ is recomputed from the (clipped) x̂_0. Raises ValueError
    unless 0 <= eta <= 1.

    >>> grid = dj.respace(dj.linear_schedule(), dj.spaced_timesteps(1000, 50))
    >>> dj.sample(dj.ddim(grid), lambda x, t: 0.5 * x, jnp.ones((4, 3))).shape
    (4, 3)
    """
    check_schedule("ddim", schedule)
    remedy = "0 is deterministic; 1 has DDPM's posterior variance."
    check_number("ddim", "eta", eta, remedy, within="[0, 1]")

    def step(denoise, x_t, t, noise, state):
        here, there = level_at(schedule, t, x_t.ndim), level_at(schedule, t - 1, x_t.ndim)
        x_0_hat = x_0_of(denoise(x_t, timesteps_at(schedule, t)), x_t)
        epsilon_hat = (x_t - here.signal * x_0_hat) / here.noise
        variance = eta**2 * at_step(schedule.posterior_variance, t, x_t.ndim)
        # Zero at the last step, where the square root has no gradient: keep it away from 0.
        left = there.noise**2 - variance
        direction = jnp.where(left > 0, jnp.sqrt(jnp.where(left > 0, left, 1.0)), 0.0)
        x_s = there.signal * x_0_hat + direction * epsilon_hat
        if eta > 0:
            x_s = x_s + jnp.sqrt(variance) * noise
        return StepResult(x_s, x_0_hat, state)

    return Sampler(schedule, no_state, step, num_draws=int(eta > 0))


def ddim_encode(
    schedule: NoiseSchedule,
    denoise: Denoiser,
    x_0: Array,
    *,
    last_step: int | None = None,
    corrections: int = 0,
    convention: Convention = "euler",
) -> Array:
    """Encodes x_0 [B, ...] as x at grid step `last_step`: DDIM backwards, the ODE in rising σ.

        y_t = y_{t-1} + (σ_t - σ_{t-1}) ε̂(x_{t-1}, t-1)   (DDIM Eq. 14 reversed)

    Euler at the current point. A function rather than a `Sampler`: its steps rise, it starts from
    the data, and it draws nothing. Decode with `sample(ddim(...))`,
    or from a lower step with `advance(ddim(...), denoise, x, (), jnp.arange(last_step, -1, -1))`.
    Encoding and then decoding returns x_0 up to an error of first order in the step size.

    Each of `corrections` then solves once more for the x_t that DDIM decodes to x_{t-1},

        y_t ← y_{t-1} + (σ_t - σ_{t-1}) ε̂(x_t, t),

    so that decoding becomes exact in the limit, wherever the iteration contracts (steps short
    against 1/|∂ε̂/∂y|: coarse grids near σ = 0 may not). Costs 1 + corrections evaluations per step.

    The denoiser must not clip (`make_denoiser(..., clip=False)`): a clipped x̂_0 loses part of x_t
    for good. Where ᾱ_T is 0 the last step's x_T = ε̂ loses x_0 too.

    Args:
        schedule: the grid, respaced or not.
        denoise: `(x_t, timesteps) -> x̂_0`.
        x_0: the data, floating point.
        last_step: the grid step to stop at, 0..S-1; the grid's last when None.
        corrections: fixed-point iterations per step.
        convention: where ε̂ is evaluated before any correction. "euler": at the current point and
            its own step; for the data, at σ = 0, at the grid's first step. "fed_next": at the
            current point, but at the step it moves to (diffusers' DDIMInverseScheduler).
            "data_is_step_0": as "euler", but x_0 is taken to be at grid step 0 already
            (guided-diffusion's ddim_reverse_sample, which goes one more step, to ᾱ = 0).

    Raises ValueError for a last_step off the grid, negative corrections, an unknown convention and
    a denoiser of another process; TypeError for x_0 that is not floating point.

    >>> grid = dj.respace(dj.linear_schedule(), dj.spaced_timesteps(1000, 50))
    >>> dj.ddim_encode(grid, lambda x, t: 0.5 * x, jnp.ones((4, 3))).shape
    (4, 3)
    """
    return _encode("ddim_encode", schedule, denoise, x_0, last_step, corrections, convention)[0]


def ddim_encode_trajectory(
    schedule: NoiseSchedule,
    denoise: Denoiser,
    x_0: Array,
    *,
    last_step: int | None = None,
    corrections: int = 0,
    convention: Convention = "euler",
) -> tuple[Array, Array]:
    """As `ddim_encode`, and also x at every grid step on the way: (x, [last_step+1, B, ...]).

    Row t is x at grid step t, so one call serves every depth of encoding.

    >>> grid = dj.respace(dj.linear_schedule(), dj.spaced_timesteps(1000, 50))
    >>> x, xs = samplers.ddim_encode_trajectory(grid, lambda x, t: 0.5 * x, jnp.ones((4, 3)))
    >>> xs.shape
    (50, 4, 3)
    """
    return _encode(
        "ddim_encode_trajectory",
        schedule,
        denoise,
        x_0,
        last_step,
        corrections,
        convention,
        keep=True,
    )


def _encode(
    call: str,
    schedule: NoiseSchedule,
    denoise: Denoiser,
    x_0: Array,
    last_step: int | None,
    corrections: int,
    convention: str,
    keep: bool = False,
) -> tuple[Array, Any]:
    check_schedule(call, schedule)
    check_function(call, "a denoiser", denoise, "(x_t, timesteps) -> x̂_0")
    (x_0,) = check_batch(call, x_0=x_0)
    check_denoiser(call, schedule, denoise)
    size = schedule.num_timesteps
    last_step = size - 1 if last_step is None else last_step
    remedy = "Steps count on the grid, not on the full process."
    last_step = check_whole(call, "last_step", last_step, least=0, most=size - 1, remedy=remedy)
    corrections = check_whole(call, "corrections", corrections, least=0)
    check_choice(call, "convention", convention, get_args(Convention))

    def epsilon_hat(x, t):
        x_0_hat = x_0_of(denoise(x, jnp.full(x.shape[:1], timesteps_at(schedule, t))), x)
        here = level_at(schedule, t, 0)
        return (x - here.signal * x_0_hat) / here.noise

    def move(x, t):
        source, target = level_at(schedule, t - 1, 0), level_at(schedule, t, 0)

        def go(epsilon):
            x_t = target.signal * (x - source.noise * epsilon) / source.signal
            return (x_t + target.noise * epsilon).astype(x.dtype)

        x_t = go(epsilon_hat(x, t if convention == "fed_next" else jnp.maximum(t - 1, 0)))
        if convention == "data_is_step_0":
            x_t = jnp.where(t == 0, x, x_t)
        if corrections:
            x_t = jax.lax.fori_loop(0, corrections, lambda _, at: go(epsilon_hat(at, t)), x_t)
        return x_t, x_t if keep else None

    return jax.lax.scan(move, x_0, jnp.arange(last_step + 1, dtype=jnp.int32))
