"""DPM-Solver++: exponential integrators in the half log-SNR (Lu et al. 2022, arXiv 2211.01095).

With λ = log(√ᾱ/√(1-ᾱ)) the probability-flow ODE and the reverse SDE are linear in x except for x̂_0.
Over a step from λ_t to λ_s, h = λ_s - λ_t, the linear part is solved exactly and x̂_0 is held at one
value D:

    ODE   x_s = √(1-ᾱ_s)/√(1-ᾱ_t) x_t + √ᾱ_s (1-e^{-h}) D
    SDE   x_s = √(1-ᾱ_s)/√(1-ᾱ_t) e^{-h} x_t + √ᾱ_s (1-e^{-2h}) D + √(1-ᾱ_s) √(1-e^{-2h}) z

    order 1   D = x̂_0(x_t)
    order 2   D = x̂_0(x_t) + (h/2h') (x̂_0(x_t) - x̂_0(x_t')), from the step before, of length h'
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.process import at_step
from ddpm_jax.samplers.base import Sampler, StepResult, check_schedule, level_at, no_state
from ddpm_jax.types import Array, bcast_right, x_0_of


class Previous(NamedTuple):
    """The x̂_0 [B, ...] of the step before, and whether there was such a step [B]."""

    x_0_hat: Array
    known: Array


def dpm_solver_pp(schedule: NoiseSchedule, *, order: int = 2, sde: bool = False) -> Sampler:
    """DPM-Solver++ of order 1, or 2 ("2M", multistep), with one network evaluation per step.

    order=1 is `ddim(eta=0)`, with sde=True `ddim(eta=1)`. order=2 is Algorithm 2 of the paper; with
    sde=True its SDE form (§5), which draws noise. Wherever sampling starts, the first step is of
    order 1. The last, to the data (h = ∞), returns x̂_0.

    Where ᾱ_T is 0 (λ = -∞) the first step is x_s = √ᾱ_s x̂_0 + √(1-ᾱ_s) x_T, and the second is of
    order 1 too: no slope in λ reaches back to -∞. The denoiser must then predict x_0 or v.

    Grids even in λ suit it best. Raises ValueError for any other order.

    >>> grid = dj.respace(dj.linear_schedule(), dj.spaced_timesteps(1000, 20))
    >>> dj.sample(dj.dpm_solver_pp(grid), lambda x, t: 0.5 * x, jnp.ones((4, 3))).shape
    (4, 3)
    """
    check_schedule("dpm_solver_pp", schedule)
    if order not in (1, 2):
        raise ValueError(
            f"dpm_solver_pp knows the orders 1 and 2, got {order}. Order 2 is the authors' choice; "
            "order 1 is ddim."
        )

    def init(x_T):
        return Previous(jnp.zeros_like(x_T), jnp.zeros(x_T.shape[:1], bool))

    def step(denoise, x_t, t, noise, state):
        x_0_hat = x_0_of(denoise(x_t, schedule.timesteps[t]), x_t)
        ndim = x_t.ndim
        here, there = level_at(schedule, t, ndim), level_at(schedule, t - 1, ndim)
        kept = here.signal / there.signal * there.noise / here.noise  # e^{-h}, also for h = ∞
        # 1-e^{-2h} is β_t/(1-ᾱ_t): no subtraction of two numbers close to 1.
        lost_twice = jnp.minimum(at_step(schedule.beta, t, ndim) / here.noise**2, 1.0)
        lost = lost_twice / (1.0 + kept)  # 1-e^{-h}
        target = x_0_hat
        if order == 2:
            before = level_at(schedule, jnp.minimum(t + 1, schedule.num_timesteps - 1), ndim)
            h = there.half_log_snr - here.half_log_snr
            h_before = here.half_log_snr - before.half_log_snr
            usable = bcast_right(state.known & (t > 0), ndim)
            ratio = jnp.where(usable, h / h_before, 0.0)
            target = x_0_hat + 0.5 * ratio * (x_0_hat - state.x_0_hat)
            state = Previous(x_0_hat.astype(x_t.dtype), jnp.ones_like(state.known))
        if sde:
            x_s = there.noise / here.noise * kept * x_t + there.signal * lost_twice * target
            x_s = x_s + there.noise * jnp.sqrt(lost_twice) * noise
        else:
            x_s = there.noise / here.noise * x_t + there.signal * lost * target
        # Exactly x̂_0 at the data, where β_0/(1-ᾱ_0) is 1 only up to rounding.
        x_s = jnp.where(bcast_right(t > 0, ndim), x_s, x_0_hat)
        return StepResult(x_s, x_0_hat, state)

    return Sampler(schedule, init if order == 2 else no_state, step, num_draws=int(sde))
