"""UniPC: a predictor and a corrector that share their evaluations (Zhao et al. 2023, 2302.04867).

In the variables of `exponential`, for x̂_0 as the paper's x_θ and B(h) = e^h - 1 ("bh2"):

    UniP-p   x̃_s = √(1-ᾱ_s)/√(1-ᾱ_t) x_t + √ᾱ_s ∫ P,   P through x̂_0 at t and at p-1 steps before
    UniC-p   x_s  = the same, with P through x̂_0(x̃_s) as well

x̂_0(x̃_s) is what the next step begins with, so the corrector costs no evaluation of its own. The
polynomials are integrated exactly, which solves the paper's Eq. 5 for any B(h); lines, whose
coefficient it leaves free, get its a_1 = 1/2.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_whole
from ddpm_jax.forward.schedule import timesteps_at
from ddpm_jax.samplers.base import Sampler, StepResult, check_schedule
from ddpm_jax.samplers.exponential import (
    History,
    exponential_integral,
    interval,
    no_history,
    nodes_before,
    remember,
)
from ddpm_jax.types import Array, bcast_right, x_0_of


class Memory(NamedTuple):
    """The x̂_0 of the steps before, and ∫ P [B, ...] of the predictor that led to x_t."""

    history: History
    predicted: Array


def unipc(schedule: NoiseSchedule, *, order: int = 3) -> Sampler:
    """UniPC of order 1, 2 or 3, with one network evaluation per step.

    Step t first corrects x_t by UniC-p, adding √ᾱ_t (∫ P_corrector - ∫ P_predictor), and then
    predicts x_{t-1} by UniP-p. UniP-p with UniC-p converges at order p+1. The first steps, wherever
    sampling starts, have the orders 1, 2, … The last, to the data (h = ∞), returns x̂_0. x of a
    trajectory is not corrected yet. The paper uses order 3 without guidance, and 2 with it.

    Where ᾱ_T is 0 (λ = -∞) the first step is x_s = √ᾱ_s x̂_0 + √(1-ᾱ_s) x_T, is not corrected, and
    the next one counts as the first. The denoiser must then predict x_0 or v.

    Grids even in λ suit it best. Raises ValueError for any other order.

    >>> grid = dj.respace(dj.linear_schedule(), dj.spaced_timesteps(1000, 10))
    >>> dj.sample(dj.unipc(grid), lambda x, t: 0.5 * x, jnp.ones((4, 3))).shape
    (4, 3)
    """
    check_schedule("unipc", schedule)
    remedy = "The paper uses 3 without guidance and 2 with it."
    order = check_whole("unipc", "order", order, most=3, remedy=remedy)

    def init(x_T):
        return Memory(no_history(x_T, order), jnp.zeros_like(x_T))

    def step(denoise, x_t, t, noise, state):
        x_0_hat = x_0_of(denoise(x_t, timesteps_at(schedule, t)), x_t)
        (past, known), ndim = state.history, x_t.ndim
        # UniC: P from t+1 to t, its nodes x̂_0 at t+1, at t (r = 1), and at the steps before.
        came = interval(schedule, jnp.minimum(t + 1, schedule.num_timesteps - 1), ndim)
        nodes = [
            0.0,
            jnp.ones_like(came.h),
            *nodes_before(schedule, t + 1, came, known - 1, order - 1),
        ]
        values = [past[0], x_0_hat, *past[1:]]
        corrected = exponential_integral(came, nodes, values, known + 1)
        change = jnp.where(bcast_right(known > 0, ndim), corrected - state.predicted, 0.0)
        # UniP: P from t to t-1, its nodes x̂_0 at t and at the steps before.
        move = interval(schedule, t, ndim)
        here, there = move.here, move.there
        x_t = x_t + here.signal * change
        nodes = [0.0, *nodes_before(schedule, t, move, known, order - 1)]
        values, count = [x_0_hat, *past[:-1]], jnp.minimum(known + 1, order)
        predicted = exponential_integral(move, nodes, values, count)
        x_s = there.noise / here.noise * x_t + there.signal * predicted
        # Exactly x̂_0 at the data, where β_0/(1-ᾱ_0) is 1 only up to rounding.
        x_s = jnp.where(bcast_right(t > 0, ndim), x_s, x_0_hat)
        state = Memory(
            remember(state.history, x_0_hat, here), predicted.astype(state.predicted.dtype)
        )
        return StepResult(x_s, x_0_hat, state)

    return Sampler(schedule, init, step, num_draws=0)
