"""Heun's method in the noise level, with optional churn: EDM's sampler (Karras et al. 2022, arXiv
2206.00364).

With σ = √((1-ᾱ)/ᾱ) and y = x/√ᾱ the probability-flow ODE is dy/dσ = ε̂ = (y - x̂_0)/σ. The steps
are taken in x, where they stay finite at any ᾱ.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.samplers.base import Sampler, StepResult, no_state, unless_data, x_0_of
from ddpm_jax.samplers.levels import level_at
from ddpm_jax.types import Array, bcast_right


class _Raised(NamedTuple):
    """Where churn lifts each grid step to, [S]: level, what the network is fed, noise to add."""

    signal: Array
    noise: Array
    fed: Array
    added: Array


def heun(
    schedule: NoiseSchedule,
    *,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, math.inf),
    churn_noise: float = 1.0,
    process: NoiseSchedule | None = None,
) -> Sampler:
    """Second order in σ, two network evaluations a step but one at the last (EDM Algorithm 2).

        σ̂ = σ_t (1+γ),  ŷ = y_t + √(σ̂² - σ_t²) S_noise z,  d = ε̂(ŷ, σ̂)
        y_s = ŷ + (σ_s - σ̂) d,  then, unless σ_s = 0,  y_s = ŷ + (σ_s - σ̂) (d + ε̂(y_s, σ_s))/2

    where γ = min(S_churn/S, √2-1) if σ_t lies in churn_range, else 0. `karras_timesteps` chooses
    EDM's grid. On a step from ᾱ = 0 (σ = ∞), where a mean of slopes has no meaning, Euler is used;
    from a σ of thousands, where the cosine schedule ends, the mean is finite but poor: leave such
    steps out of the grid (`karras_timesteps(..., sigma_max=80)`).

    Args:
        schedule: the grid.
        churn: S_churn; 0 is deterministic, otherwise every step draws noise.
        churn_range: (S_tmin, S_tmax).
        churn_noise: S_noise.
        process: the full process, needed with churn: the network only knows its steps, so σ̂ is
            rounded to the nearest of its σ not below σ_t. Churn smaller than half the distance
            between the process's own levels is therefore lost. It must be concrete, not traced.

    Raises ValueError for churn below 0, and for churn without a process that has the grid's steps.
    """
    if not churn >= 0:
        raise ValueError(f"heun needs churn >= 0, got {churn}. 0 is deterministic; EDM uses 0…80.")
    raised = None
    if churn > 0:
        if process is None:
            raise ValueError(
                f"heun with {churn=} raises the noise between grid steps, and the network must be "
                "fed a step it knows: pass process=, the schedule that the grid was respaced from."
            )
        raised = _raise_levels(schedule, process, churn, churn_range, churn_noise)

    def step(denoise, x_t, t, noise, state):
        ndim = x_t.ndim
        here, there = level_at(schedule, t, ndim), level_at(schedule, t - 1, ndim)
        x_hat, signal, sigma, fed = x_t, here.signal, here.noise, schedule.timesteps[t]
        if raised is not None:
            signal, sigma = bcast_right(raised.signal[t], ndim), bcast_right(raised.noise[t], ndim)
            up = jnp.where(signal == here.signal, 1.0, signal / here.signal)
            x_hat, fed = up * x_t + bcast_right(raised.added[t], ndim) * noise, raised.fed[t]
        x_0_hat = x_0_of(denoise(x_hat, fed))
        epsilon_hat = (x_hat - signal * x_0_hat) / sigma
        euler = (there.signal * x_0_hat + there.noise * epsilon_hat).astype(x_t.dtype)

        def corrected(euler):
            x_0_there = x_0_of(denoise(euler, schedule.timesteps[jnp.maximum(t - 1, 0)]))
            epsilon_there = (euler - there.signal * x_0_there) / jnp.where(
                there.noise > 0, there.noise, 1.0
            )
            # √ᾱ_s (σ_s - σ̂); none where σ̂ is infinite.
            length = there.noise - there.signal * sigma / jnp.where(signal > 0, signal, 1.0)
            length = jnp.where(signal > 0, length, 0.0)
            return (euler + 0.5 * length * (epsilon_there - epsilon_hat)).astype(x_t.dtype)

        return StepResult(unless_data(t, euler, corrected), x_0_hat, state)

    return Sampler(no_state, step, schedule.num_timesteps, draws=int(churn > 0))


def karras_timesteps(
    schedule: NoiseSchedule, num_steps: int, rho: float = 7.0, *, sigma_max: float = math.inf
) -> np.ndarray:
    """EDM's grid on a discrete process: strictly rising int32 [num_steps], on the host.

    σ_i = (σ_max^{1/ρ} + i/(S-1) (σ_min^{1/ρ} - σ_max^{1/ρ}))^ρ, i = 0 … S-1 (EDM Eq. 5), each
    replaced by the step of nearest σ; where two fall on one step, later ones move up by one. σ_min
    is the schedule's, σ_max its largest that is finite and at most `sigma_max` (EDM uses 80).
    Raises ValueError when that leaves fewer than num_steps steps, and for rho <= 0.
    """
    sigma = np.exp(-0.5 * np.asarray(schedule.log_snr, np.float64))
    sigma = sigma[np.isfinite(sigma) & (sigma <= sigma_max)]
    T, S = sigma.size, num_steps
    if not 1 <= S <= T or not rho > 0:
        raise ValueError(
            f"karras_timesteps needs 1 <= num_steps <= {T}, the number of steps with a finite "
            f"σ <= {sigma_max}, and rho > 0, got {num_steps=}, {rho=}. EDM uses rho=7."
        )
    root = np.linspace(sigma[0] ** (1 / rho), sigma[-1] ** (1 / rho), S) if S > 1 else None
    wanted = sigma[-1:] if root is None else root**rho
    index = np.arange(S)
    steps = np.abs(sigma[None, :] - wanted[:, None]).argmin(axis=1)
    steps = np.maximum.accumulate(steps - index) + index
    return np.minimum(steps, T - S + index).astype(np.int32)


def _raise_levels(
    schedule: NoiseSchedule,
    process: NoiseSchedule,
    churn: float,
    churn_range: tuple[float, float],
    churn_noise: float,
) -> _Raised:
    """Rounds σ_t (1+γ) to levels of the process, in float64 on the host."""
    fed, known = np.asarray(schedule.timesteps), np.asarray(process.timesteps)
    row = np.searchsorted(known, fed).clip(max=known.size - 1)
    if (known[row] != fed).any():
        raise ValueError(
            "heun's process must have every step of the grid, but does not have "
            f"{fed[known[row] != fed][0]}. Pass the schedule that the grid was respaced from."
        )
    half_log_snr = 0.5 * np.asarray(process.log_snr, np.float64)
    sigma = np.exp(-half_log_snr)
    last = np.flatnonzero(np.isfinite(sigma))[-1]
    gamma = min(churn / fed.size, math.sqrt(2.0) - 1.0)
    to = row.copy()
    for i, r in enumerate(row):
        if r < last and churn_range[0] <= sigma[r] <= churn_range[1]:
            above = sigma[r : last + 1]
            to[i] = r + np.abs(above - sigma[r] * (1.0 + gamma)).argmin()
    signal = np.asarray(process.signal_scale, np.float64)
    noise = np.asarray(process.noise_scale, np.float64)
    # √ᾱ̂ √(σ̂² - σ²), with the difference taken of the logarithms.
    kept = np.ones(fed.size)  # σ²/σ̂²
    lifted = to > row
    kept[lifted] = np.exp(2.0 * (half_log_snr[to[lifted]] - half_log_snr[row[lifted]]))
    dtype = schedule.beta.dtype
    return _Raised(
        jnp.asarray(signal[to], dtype),
        jnp.asarray(noise[to], dtype),
        jnp.asarray(known[to], jnp.int32),
        jnp.asarray(churn_noise * noise[to] * np.sqrt(1.0 - kept), dtype),
    )
