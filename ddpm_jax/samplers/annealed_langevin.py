"""Annealed Langevin dynamics on a grid: how NCSN samples (Song, Ermon 2019, arXiv 1907.05600)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_flag, check_number, check_whole
from ddpm_jax.forward.schedule import timesteps_at
from ddpm_jax.samplers.base import Sampler, StepResult, check_schedule, level_at, no_state
from ddpm_jax.types import x_0_of


def annealed_langevin(
    schedule: NoiseSchedule,
    *,
    steps_per_level: int = 100,
    rate: float = 0.2,
    final_denoise: bool = True,
) -> Sampler:
    """K Langevin steps at every level, from the noisiest to the least noisy (NCSN Algorithm 1).

        y ← y + (ε_t/2) s(y, σ_t) + √ε_t z,    ε_t = ε σ_t²/σ_0²,    y = x/√ᾱ = x_0 + σ noise

    With s = (x̂_0 - y)/σ² and ε/σ_0² = `rate`, a number without a scale, this is

        x ← x + (rate/2) (√ᾱ_t x̂_0 - x) + √(rate (1-ᾱ_t)) z

    so it samples any denoiser of any process: NCSN's own, whose levels are
    `schedule_from_noise_levels(sigmas)`, or a DDPM on some of its steps. y is kept from one level
    to the next. At the end comes y + σ² s = x̂_0, which removes the last noise (NCSNv2, 2006.09011,
    §3.5), or y itself. Each grid step takes K draws and K + 1 evaluations, the last for x̂_0.

    Args:
        schedule: the levels, noisiest last. σ should fall by a steady factor: across a gap, noise
            of the level before is left over. `karras_timesteps` picks such steps of a DDPM.
        steps_per_level: K; NCSN uses 100 at each of 10 levels, NCSNv2 5 at each of 232.
        rate: ε/σ_0²; NCSN's is 2e-5/0.01² = 0.2, NCSNv2's 0.124 (its ε of 6.2e-6
            is half of this ε). Unstable from 4 on.
        final_denoise: return x̂_0.

    Raises ValueError for values outside these, TypeError for other kinds.

    >>> levels = dj.schedule_from_noise_levels(score.geometric_noise_levels(1.0, 0.01, 10))
    >>> dj.annealed_langevin(levels, steps_per_level=5).num_draws
    5
    """
    check_schedule("annealed_langevin", schedule)
    steps_per_level = check_whole("annealed_langevin", "steps_per_level", steps_per_level)
    check_flag("annealed_langevin", "final_denoise", final_denoise)
    check_number("annealed_langevin", "rate", rate, "NCSN uses 0.2.", within="(0, 4)")

    def step(denoise, x_t, t, noise, state):
        here, there = level_at(schedule, t, x_t.ndim), level_at(schedule, t - 1, x_t.ndim)

        def estimate(x):
            return x_0_of(denoise(x, timesteps_at(schedule, t)), x)

        def langevin(x, z):
            drift = 0.5 * rate * (here.signal * estimate(x) - x)
            return (x + drift + jnp.sqrt(rate) * here.noise * z).astype(x.dtype), None

        x, _ = jax.lax.scan(langevin, x_t, noise[None] if steps_per_level == 1 else noise)
        # One more evaluation per level, so that the trajectory's x̂_0 is that of the level's end.
        x_0_hat = estimate(x)
        # From ᾱ = 0, where y is infinite, the noise is scaled instead: DDIM's step.
        kept = there.signal / jnp.where(here.signal > 0, here.signal, 1.0) * x
        moved = jnp.where(here.signal > 0, kept, there.signal * x_0_hat + there.noise * x)
        if final_denoise:
            moved = jnp.where(there.noise > 0, moved, x_0_hat)
        return StepResult(moved, x_0_hat, state)

    return Sampler(schedule, no_state, step, num_draws=steps_per_level)
