"""Solvers in the time of a continuous process: of its reverse SDE and its probability flow.

    flow          dx/dt = s' x̂_0 + n' ε̂,   ε̂ = (x - s x̂_0)/n            (Song et al. 2021, Eq. 13)
    reverse SDE   dx = (flow + ½ g² ε̂/n) dt + g dw̄                      (Song et al. 2021, Eq. 6)

A step is taken in the process's own scale and clock; that is what sets these solvers apart from
`ddim`, `heun` and `dpm_solver_pp`, which run on any process's schedule, too. Outside of a step x is
scaled to variance one, as that schedule has it, so that the loop, the keys and the denoisers are
those of all samplers. The flow's right side is finite at t = 1 of the straight path. The last step
goes from times[0] to the data and returns x̂_0, which Euler's step reaches for the flow process.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.continuous import ContinuousProcess, grid_tables
from ddpm_jax.forward.schedule import timesteps_at
from ddpm_jax.samplers.base import Sampler, StepResult, no_state, skip_at_last_step
from ddpm_jax.types import Array, ArrayLike, bcast_right, x_0_of


def probability_flow_euler(process: ContinuousProcess, times: ArrayLike) -> Sampler:
    """Euler's method for the probability flow in t: first order, one evaluation per step.

    `times` [S] rise strictly from t_min or above; x_T belongs to the last, the data come after the
    first. Raises ValueError for other times, TypeError for anything but a ContinuousProcess.

    Example:
        >>> flow, times = dj.forward.flow_process(), [0.25, 0.5, 0.75, 1.0]
        >>> denoise = dj.denoisers.denoiser_from_process(
        ...     flow, times, lambda x, t: x, target="velocity")
        >>> sampler = dj.samplers.probability_flow_euler(flow, times)
        >>> dj.sample(sampler, denoise, jnp.ones((1, 2))).round(3)  # dx/dt = x: (1-Δt)⁴
        Array([[0.316, 0.316]], dtype=float32)
    """
    return _flow("probability_flow_euler", process, times, second_order=False)


def probability_flow_heun(process: ContinuousProcess, times: ArrayLike) -> Sampler:
    """Heun's method for the probability flow in t: second order, two evaluations per step.

    The last step takes one. For the EDM process this is EDM's deterministic sampler (Karras et al.
    2022, Algorithm 1). Arguments and errors are those of `probability_flow_euler`.

    Example:
        >>> sampler = dj.samplers.probability_flow_heun(dj.forward.edm_process(), [0.1, 1.0, 80.0])
        >>> dj.sample(sampler, lambda x, t: 0.5 * x, jnp.ones((2, 3))).shape
        (2, 3)
    """
    return _flow("probability_flow_heun", process, times, second_order=True)


def euler_maruyama(process: ContinuousProcess, times: ArrayLike) -> Sampler:
    """The Euler–Maruyama method for the reverse SDE in t, Song et al.'s predictor (2021, §4.2).

    First order in distribution; one evaluation and one draw per step. Raises ValueError where g is
    infinite (the flow process at t = 1: end its times before, or use the probability flow), and as
    `probability_flow_euler`.

    Example:
        >>> sampler = dj.samplers.euler_maruyama(dj.forward.vp_process(), [0.25, 0.5, 0.75, 1.0])
        >>> sampler.num_steps, sampler.num_draws
        (4, 1)
    """
    call = "euler_maruyama"
    table, schedule, grid = grid_tables(call, process, times)
    with np.errstate(divide="ignore"):
        g = process.diffusion(table)
    if not np.isfinite(g).all():
        raise ValueError(
            f"{call} needs times at which the diffusion g is finite, got t = {table[-1]} of "
            f"{process.name}. Let them end before (0.99, say), or use probability_flow_heun, which "
            "is finite there."
        )
    diffusion = jnp.asarray(g, grid.dtype)

    def step(denoise, x_t, t, noise, state):
        x, x_0_hat, epsilon_hat, slope = _evaluate(process, grid, denoise, schedule, x_t, t)
        g = bcast_right(diffusion[t], x.ndim)
        here, there = (bcast_right(grid[0, i], x.ndim) for i in (t, jnp.maximum(t - 1, 0)))
        dt = there - here
        slope = slope + 0.5 * g**2 * epsilon_hat / bcast_right(
            process.noise_scale(grid[0, t]), x.ndim
        )
        x_s = x + dt * slope + g * jnp.sqrt(-dt) * noise
        return StepResult(_finish(grid, x_s, x_0_hat, t, x_t), x_0_hat, state)

    return Sampler(schedule, no_state, step, num_draws=1)


def _flow(call: str, process: ContinuousProcess, times: ArrayLike, second_order: bool) -> Sampler:
    _, schedule, grid = grid_tables(call, process, times)

    def step(denoise, x_t, t, noise, state):
        x, x_0_hat, _, slope = _evaluate(process, grid, denoise, schedule, x_t, t)
        s = jnp.maximum(t - 1, 0)
        dt = bcast_right(grid[0, s] - grid[0, t], x.ndim)
        x_s = _finish(grid, x + dt * slope, x_0_hat, t, x_t)

        def corrected(euler: Array) -> Array:
            *_, slope_there = _evaluate(process, grid, denoise, schedule, euler, s)
            return _finish(grid, x + 0.5 * dt * (slope + slope_there), x_0_hat, t, x_t)

        x_s = skip_at_last_step(t, x_s, corrected) if second_order else x_s
        return StepResult(x_s, x_0_hat, state)

    return Sampler(schedule, no_state, step, num_draws=0)


def _evaluate(process, grid, denoise, schedule, x_t, t):
    """(x in the process's scale, x̂_0, ε̂, dx/dt) at grid step t [B] for x_t of variance one."""
    x_0_hat = x_0_of(denoise(x_t, timesteps_at(schedule, t)), x_t)
    time = grid[0, t]
    signal, noise, signal_rate, noise_rate = (
        bcast_right(value, x_t.ndim)
        for value in (process.signal_scale(time), process.noise_scale(time), *process.rates(time))
    )
    x = bcast_right(grid[1, t], x_t.ndim) * x_t
    epsilon_hat = (x - signal * x_0_hat) / noise
    return x, x_0_hat, epsilon_hat, signal_rate * x_0_hat + noise_rate * epsilon_hat


def _finish(grid: Array, x_s: Array, x_0_hat: Array, t: Array, like: Array) -> Array:
    """x at the step below t, of variance one; the data after t = 0."""
    scale = bcast_right(grid[1, jnp.maximum(t - 1, 0)], x_s.ndim)
    return jnp.where(bcast_right(t > 0, x_s.ndim), x_s / scale, x_0_hat).astype(like.dtype)
