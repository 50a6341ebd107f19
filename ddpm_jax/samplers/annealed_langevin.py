"""Annealed Langevin dynamics on a grid: how NCSN samples (Song, Ermon 2019, arXiv 1907.05600)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.process import at_step
from ddpm_jax.samplers.base import Sampler, StepResult, no_state, x_0_of
from ddpm_jax.samplers.levels import level_at


def annealed_langevin(
    schedule: NoiseSchedule,
    *,
    steps_per_level: int = 100,
    rate: float = 0.2,
    final_denoise: bool = True,
) -> Sampler:
    """K Langevin steps at every level, from the noisiest to the least (NCSN Algorithm 1).

        y ← y + (ε_t/2) s(y, σ_t) + √ε_t z,    ε_t = ε σ_t²/σ_0²,    y = x/√ᾱ = x_0 + σ noise

    With s = (x̂_0 - y)/σ² and ε/σ_0² = `rate`, a number without a scale, that is

        x ← x + (rate/2) (√ᾱ_t x̂_0 - x) + √(rate (1-ᾱ_t)) z

    so any denoiser of any process is sampled by it: NCSN's own, whose levels are
    `schedule_from_noise_levels(sigmas)`, and a DDPM on some of its steps. Between levels y stays
    what it is. At the end comes y + σ² s = x̂_0, which takes out the last noise (NCSNv2, 2006.09011,
    §3.5), or y itself. A step of the grid takes K draws and K + 1 evaluations, the last for x̂_0.

    Args:
        schedule: the levels, noisiest last. σ should fall by a steady factor: across a gap the
            noise of the level before is left over. `karras_timesteps` picks such steps of a DDPM.
        steps_per_level: K; NCSN uses 100 at each of 10 levels, NCSNv2 5 at each of 232.
        rate: ε/σ_0²; NCSN's is 2e-5/0.01² = 0.2, NCSNv2's 0.124 (its ε of 6.2e-6
            is half of this ε). Unstable from 4 on.
        final_denoise: return x̂_0.

    Raises ValueError for values outside these.
    """
    if steps_per_level < 1 or not 0.0 < rate < 4.0:
        raise ValueError(
            f"annealed_langevin needs steps_per_level >= 1 and 0 < rate < 4, got "
            f"{steps_per_level=}, {rate=}. NCSN uses 100 and 0.2."
        )

    def step(denoise, x_t, t, noise, state):
        ndim = x_t.ndim
        signal = at_step(schedule.signal_scale, t, ndim)
        sigma = at_step(schedule.noise_scale, t, ndim)

        def langevin(x, z):
            x_0_hat = x_0_of(denoise(x, schedule.timesteps[t]))
            moved = x + 0.5 * rate * (signal * x_0_hat - x) + jnp.sqrt(rate) * sigma * z
            return moved.astype(x.dtype), None

        x, _ = jax.lax.scan(langevin, x_t, noise[None] if steps_per_level == 1 else noise)
        there = level_at(schedule, t - 1, ndim)
        # One more evaluation a level, so that the trajectory's x̂_0 is that of the level's end.
        x_0_hat = x_0_of(denoise(x, schedule.timesteps[t]))
        # From ᾱ = 0, where y is infinite, the noise is scaled instead: DDIM's step.
        kept = there.signal / jnp.where(signal > 0, signal, 1.0) * x
        moved = jnp.where(signal > 0, kept, there.signal * x_0_hat + there.noise * x)
        if final_denoise:
            moved = jnp.where(there.noise > 0, moved, x_0_hat)
        return StepResult(moved, x_0_hat, state)

    return Sampler(no_state, step, schedule.num_timesteps, draws=steps_per_level)
