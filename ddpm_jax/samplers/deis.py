"""DEIS: polynomials of ε̂ in time, integrated exactly (Zhang, Chen 2022, arXiv 2204.13902).

With ρ = √(1-ᾱ)/√ᾱ and y = x/√ᾱ the probability-flow ODE is dy/dρ = ε̂. tAB-DEIS extrapolates ε̂
by the polynomial in time τ through its last k values (their Eq. 14 and 15 in these variables),

    y_s = y_t + Σ_j C_j ε̂_j,   C_j = ∫_{ρ_t}^{ρ_s} Π_{i≠j} (τ(ρ) - τ_i)/(τ_j - τ_i) dρ,

j = 0 for x_t itself, j > 0 for the steps before. As Σ_j C_j = ρ_s - ρ_t, this is a step of DDIM and

    x_s = √ᾱ_s x̂_0 + √(1-ᾱ_s) ε̂ + √ᾱ_s Σ_{j>0} C_j (ε̂_j - ε̂),

which stays finite where ᾱ_t is 0. τ is the network's timestep.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ddpm_jax.denoisers.scheduled import check_process, rows_on_host
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_whole
from ddpm_jax.forward.schedule import timesteps_at
from ddpm_jax.samplers.base import Sampler, StepResult, check_schedule, level_at
from ddpm_jax.types import Array, bcast_right, host_array, x_0_of


class PastNoise(NamedTuple):
    """The ε̂ [B, ...] of the steps before, the last one first, and how many are known [B]."""

    epsilon_hats: tuple[Array, ...]
    known: Array


def deis(
    schedule: NoiseSchedule, *, order: int = 3, process: NoiseSchedule | None = None
) -> Sampler:
    """tAB-DEIS of order 1 to 4, with one network evaluation per step.

    `order` k is the number of ε̂ in the polynomial (the paper's tAB-(k-1)); order=1 is `ddim`. The
    first steps, wherever sampling starts, have the orders 1, 2, … The last, to the data, returns
    x̂_0.

    Args:
        schedule: the grid; concrete, for the coefficients are computed on the host in float64.
        order: k, 1 to 4.
        process: the schedule that the grid was respaced from. Between its steps log ρ is linear in
            τ. Without it that holds between the grid's steps, and an order above 2 is not reached.

    Raises ValueError for any other order and for a process without the grid's steps; TypeError for
    traced schedules.

    >>> process = dj.linear_schedule()
    >>> grid = dj.respace(process, dj.spaced_timesteps(1000, 10))
    >>> sampler = dj.deis(grid, process=process)
    >>> dj.sample(sampler, lambda x, t: 0.5 * x, jnp.ones((4, 3))).shape
    (4, 3)
    """
    check_schedule("deis", schedule)
    remedy = "Order 1 is ddim; the paper's best, tAB-3, is order 4."
    order = check_whole("deis", "order", order, most=4, remedy=remedy)
    table = jnp.asarray(_coefficients(schedule, process, order), schedule.beta.dtype)

    def init(x_T):
        known = jnp.zeros(x_T.shape[:1], jnp.int32)
        return PastNoise((jnp.zeros_like(x_T),) * (order - 1), known)

    def step(denoise, x_t, t, noise, state):
        here, there = level_at(schedule, t, x_t.ndim), level_at(schedule, t - 1, x_t.ndim)
        x_0_hat = x_0_of(denoise(x_t, timesteps_at(schedule, t)), x_t)
        epsilon_hat = (x_t - here.signal * x_0_hat) / here.noise
        x_s = there.signal * x_0_hat + there.noise * epsilon_hat
        for j, past in enumerate(state.epsilon_hats):
            coefficient = bcast_right(table[state.known, t, j], x_t.ndim)
            x_s = x_s + there.signal * coefficient * (past - epsilon_hat)
        past = (epsilon_hat.astype(x_t.dtype), *state.epsilon_hats)[: order - 1]
        return StepResult(x_s, x_0_hat, PastNoise(past, jnp.minimum(state.known + 1, order - 1)))

    return Sampler(schedule, init, step, num_draws=0)


def _coefficients(schedule: NoiseSchedule, process: NoiseSchedule | None, order: int) -> np.ndarray:
    """C_{j+1} [known, S, j] with `known` past values in use; 0 for the step to the data."""
    process = schedule if process is None else process
    check_schedule("deis", process, "process")
    check_process("deis", schedule, process, "its process")
    tau, levels, log_snr = (
        host_array("deis", name, table, np.float64)
        for name, table in (
            ("the schedule", schedule.timesteps),
            ("process", process.timesteps),
            ("process", process.log_snr),
        )
    )
    log_rho = -0.5 * log_snr
    row = rows_on_host(levels, tau)
    points, weights = np.polynomial.legendre.leggauss(8)
    table = np.zeros((order, tau.size, order - 1))
    for t in range(1, tau.size - 1):  # the first step of all knows no past, the last needs none
        low, high = levels[row[t - 1] : row[t]], levels[row[t - 1] + 1 : row[t] + 1]
        # ∫ f(τ) dρ from ρ_t down to ρ_s, by Gauss-Legendre on every interval of the process.
        at = ((low + high)[:, None] + (high - low)[:, None] * points) / 2.0
        slope = np.diff(log_rho[row[t - 1] : row[t] + 1])[:, None] / 2.0
        measure = -np.exp(np.interp(at, levels, log_rho)) * slope * weights
        for known in range(1, min(order - 1, tau.size - 1 - t) + 1):
            nodes = tau[t : t + known + 1]
            for j in range(1, known + 1):
                others = np.delete(nodes, j)
                basis = np.prod((at[..., None] - others) / (nodes[j] - others), axis=-1)
                table[known, t, j - 1] = np.sum(basis * measure)
    return table
