"""DDIM: the non-Markovian family with DDPM's marginals, and its inversion (Song, Meng, Ermon 2020,
arXiv 2010.02502).

With σ = √(1-ᾱ)/√ᾱ and y = x/√ᾱ, DDIM is Euler's scheme of dy/dσ = ε̂ (their Eq. 14): falling σ
decodes noise to data, rising σ encodes data to noise.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.process import at_step
from ddpm_jax.samplers.base import Sampler, StepResult, no_state, x_0_of
from ddpm_jax.samplers.levels import level_at
from ddpm_jax.types import Array, Denoiser

Convention = Literal["euler", "fed_next", "data_is_step_0"]


def ddim(schedule: NoiseSchedule, *, eta: float = 0.0) -> Sampler:
    """x_{t-1} = √ᾱ_{t-1} x̂_0 + √(1-ᾱ_{t-1}-σ_t²) ε̂ + σ_t z,  σ_t = η √β̃_t  (DDIM Eqs. 12, 16).

    η = 0 is deterministic, the Euler scheme of the probability-flow ODE in √(1-ᾱ)/√ᾱ; η = 1 equals
    ancestral sampling with fixed_small. ε̂ is recomputed from the (clipped) x̂_0. Raises ValueError
    unless 0 <= η <= 1.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(
            f"ddim needs 0 <= eta <= 1, got {eta}. 0 is deterministic; 1 has DDPM's posterior "
            "variance."
        )

    def step(denoise, x_t, t, noise, state):
        x_0_hat = x_0_of(denoise(x_t, schedule.timesteps[t]))
        ndim = x_t.ndim
        noise_scale = at_step(schedule.noise_scale, t, ndim)
        epsilon_hat = (x_t - at_step(schedule.signal_scale, t, ndim) * x_0_hat) / noise_scale
        variance = at_step(schedule.posterior_variance, t, ndim)
        # 1-ᾱ_{t-1} as β̃_t (1-ᾱ_t)/β_t: no subtraction from 1.
        previous_noise_variance = variance * noise_scale**2 / at_step(schedule.beta, t, ndim)
        left = previous_noise_variance - eta**2 * variance
        # Zero at the last step, where the square root has no gradient: keep it away from 0.
        direction = jnp.where(left > 0, jnp.sqrt(jnp.where(left > 0, left, 1.0)), 0.0)
        x_s = (
            jnp.sqrt(at_step(schedule.alpha_bar_prev, t, ndim)) * x_0_hat + direction * epsilon_hat
        )
        if eta > 0:
            x_s = x_s + eta * jnp.sqrt(variance) * noise
        return StepResult(x_s, x_0_hat, state)

    return Sampler(no_state, step, schedule.num_timesteps, draws=int(eta > 0))


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

    Euler at the current point: a function rather than a `Sampler`, for it rises where samplers
    fall, starts from the data where they end, and draws nothing. Decode with `sample(ddim(...))`,
    or from a lower step with `advance(ddim(...), denoise, x, (), jnp.arange(last_step, -1, -1))`.
    Encoding and then decoding returns x_0 up to an error of first order in the step size.

    Each of `corrections` then solves once more for the x_t that DDIM decodes to x_{t-1},

        y_t ← y_{t-1} + (σ_t - σ_{t-1}) ε̂(x_t, t),

    so that decoding becomes exact in the limit, wherever the iteration contracts (steps short
    against 1/|∂ε̂/∂y|: coarse grids near σ = 0 may not). Costs 1 + corrections evaluations a step.

    The denoiser must not clip (`make_denoiser(..., clip=False)`): a clipped x̂_0 forgets part of
    x_t, and nothing can bring it back. Where ᾱ_T is 0 the last step's x_T = ε̂ forgets x_0 too.

    Args:
        schedule: the grid, respaced or not.
        denoise: `(x_t, t) -> x̂_0`.
        x_0: the data.
        last_step: the grid step to stop at, 0..S-1; the grid's last when None.
        corrections: fixed-point iterations a step.
        convention: where ε̂ is evaluated before any correction. "euler": at the current point and
            its own step; the data, at σ = 0, is fed the grid's first step. "fed_next": at the
            current point, but fed the step gone to (diffusers' DDIMInverseScheduler).
            "data_is_step_0": as "euler", but x_0 is taken to be at grid step 0 already
            (guided-diffusion's ddim_reverse_sample, which goes one more step, to ᾱ = 0).

    Raises ValueError for a last_step off the grid, negative corrections, an unknown convention.
    """
    return _encode(schedule, denoise, x_0, last_step, corrections, convention)[0]


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
    """
    return _encode(schedule, denoise, x_0, last_step, corrections, convention, keep=True)


def _encode(
    schedule: NoiseSchedule,
    denoise: Denoiser,
    x_0: Array,
    last_step: int | None,
    corrections: int,
    convention: str,
    keep: bool = False,
) -> tuple[Array, Any]:
    size = schedule.num_timesteps
    last_step = size - 1 if last_step is None else last_step
    if not 0 <= last_step < size or corrections < 0:
        raise ValueError(
            f"ddim_encode needs last_step in 0..{size - 1} and corrections >= 0, got "
            f"{last_step=}, {corrections=}. Steps count on the grid, not on the full process."
        )
    if convention not in ("euler", "fed_next", "data_is_step_0"):
        raise ValueError(
            "ddim_encode knows the conventions 'euler', 'fed_next' and 'data_is_step_0', got "
            f"{convention!r}."
        )

    def epsilon_hat(x, t):
        x_0_hat = x_0_of(denoise(x, jnp.full(x.shape[:1], schedule.timesteps[t])))
        return (x - schedule.signal_scale[t] * x_0_hat) / schedule.noise_scale[t]

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
