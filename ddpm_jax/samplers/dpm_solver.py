"""DPM-Solver++: exponential integrators in the half log-SNR (Lu et al. 2022, arXiv 2211.01095).

With λ = log(√ᾱ/√(1-ᾱ)) the probability-flow ODE and the reverse SDE are linear in x except for x̂_0.
Over a step from λ_t to λ_s, h = λ_s - λ_t, the linear part is solved exactly and x̂_0 is replaced by
a polynomial P in r = (λ - λ_t)/h, or by one value D:

    ODE   x_s = √(1-ᾱ_s)/√(1-ᾱ_t) x_t + √ᾱ_s ∫_0^1 P(r) h e^{h(r-1)} dr
    SDE   x_s = √(1-ᾱ_s)/√(1-ᾱ_t) e^{-h} x_t + √ᾱ_s (1-e^{-2h}) D + √(1-ᾱ_s) √(1-e^{-2h}) z

    order 1   D = x̂_0(x_t),                  ∫ = (1-e^{-h}) D
    order 2   D = x̂_0(x_t) + (h/2h') (x̂_0(x_t) - x̂_0(x_t')), from the step before, of length h'
    order 3   P = the parabola through the last three x̂_0, integrated exactly

Steps of order 2 with an evaluation between their ends ("singlestep", Algorithm 1) join two steps of
the grid, from t by way of u to s:

    x_u as in order 1,   x_s = √(1-ᾱ_s)/√(1-ᾱ_t) x_t + √ᾱ_s (1-e^{-h}) D,
    D = x̂_0(x_t) + (1/2r) (x̂_0(x_u) - x̂_0(x_t)),   r = (λ_u - λ_t)/h
"""

from __future__ import annotations

import jax.numpy as jnp

from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_flag, check_whole
from ddpm_jax.forward.schedule import timesteps_at
from ddpm_jax.samplers.base import Sampler, StepResult, check_schedule, no_state
from ddpm_jax.samplers.exponential import (
    exponential_integral,
    interval,
    no_history,
    nodes_before,
    remember,
)
from ddpm_jax.types import bcast_right, x_0_of


def dpm_solver_pp(
    schedule: NoiseSchedule, *, order: int = 2, sde: bool = False, singlestep: bool = False
) -> Sampler:
    """DPM-Solver++ of order 1, 2 or 3, with one network evaluation per step of the grid.

    order=1 is `ddim(eta=0)`, with sde=True `ddim(eta=1)`. order=2 is "2M" (multistep, Algorithm 2),
    with sde=True its SDE form (§5), which draws noise. order=3 is of third order from the third
    step on; the first steps, wherever sampling starts, are of order 1 and 2. singlestep=True is
    "2S": pairs of grid steps, the first of a pair of order 1; an odd number of steps makes whole
    pairs. The last step, to the data (h = ∞), returns x̂_0.

    Where ᾱ_T is 0 (λ = -∞) the first step is x_s = √ᾱ_s x̂_0 + √(1-ᾱ_s) x_T, and the next one counts
    as the first: no slope in λ reaches back to -∞. The denoiser must then predict x_0 or v.

    Grids even in λ suit it best. Raises ValueError for any other order, sde with order 3, and
    singlestep with sde or another order than 2.

    >>> grid = dj.respace(dj.linear_schedule(), dj.spaced_timesteps(1000, 20))
    >>> dj.sample(dj.dpm_solver_pp(grid), lambda x, t: 0.5 * x, jnp.ones((4, 3))).shape
    (4, 3)
    """
    check_schedule("dpm_solver_pp", schedule)
    call, remedy = "dpm_solver_pp", "Order 2 is the authors' choice; order 1 is ddim."
    order = check_whole(call, "order", order, most=3, remedy=remedy)
    check_flag(call, "sde", sde)
    check_flag(call, "singlestep", singlestep)
    if (sde and order == 3) or (singlestep and (sde or order != 2)):
        raise ValueError(
            f"{call} has sde=True for the orders 1 and 2, and singlestep=True for order 2 "
            f"without sde; got {order=}, {sde=}, {singlestep=}."
        )

    def step(denoise, x_t, t, noise, state):
        x_0_hat = x_0_of(denoise(x_t, timesteps_at(schedule, t)), x_t)
        move = interval(schedule, t, x_t.ndim)
        here, there = move.here, move.there
        integral = move.lost * x_0_hat
        if order > 1:
            nodes = nodes_before(schedule, t, move, state.known, order - 1)
            if singlestep:
                (old,), r = state.x_0_hats, -nodes[0]  # r = h'/h, both halves of the pair
                whole = -jnp.expm1(-move.h * (1.0 + r)) * (1.0 + r) / (2.0 * r)
                second = bcast_right(state.known == 1, x_t.ndim)
                joined = move.lost * old + whole * (x_0_hat - old)
                integral = jnp.where(second, joined, integral)
            else:
                values = [x_0_hat, *state.x_0_hats]
                integral = exponential_integral(move, [0.0, *nodes], values, state.known + 1)
            after = remember(state, x_0_hat, here)
            if singlestep:
                after = after._replace(known=jnp.where(state.known == 1, 0, after.known))
            state = after
        if sde:
            target = integral / move.lost
            x_s = (
                there.noise / here.noise * move.kept * x_t + there.signal * move.lost_twice * target
            )
            x_s = x_s + there.noise * jnp.sqrt(move.lost_twice) * noise
        else:
            x_s = there.noise / here.noise * x_t + there.signal * integral
        # Exactly x̂_0 at the data, where β_0/(1-ᾱ_0) is 1 only up to rounding.
        x_s = jnp.where(bcast_right(t > 0, x_t.ndim), x_s, x_0_hat)
        return StepResult(x_s, x_0_hat, state)

    def init(x_T):
        return no_history(x_T, order - 1) if order > 1 else no_state(x_T)

    return Sampler(schedule, init, step, num_draws=int(sde))
