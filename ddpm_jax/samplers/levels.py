"""The noise levels a sampler walks between: those of its grid, and the data itself."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp

from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.types import Array, bcast_right


class Level(NamedTuple):
    """√ᾱ, √(1-ᾱ) and λ = log(√ᾱ/√(1-ᾱ)) at one level, shaped to multiply events.

    The data is (1, 0, ∞). σ = √(1-ᾱ)/√ᾱ = e^{-λ} is left to the callers: it is infinite where ᾱ is
    0, and most formulas can do without it.
    """

    signal: Array
    noise: Array
    half_log_snr: Array


def level_at(schedule: NoiseSchedule, t: Array, ndim: int) -> Level:
    """The level of grid step t [B] for events with `ndim` axes; t = -1 is the data."""

    def read(table: Array, data: float) -> Array:
        table = jnp.concatenate([jnp.full((1,), data, table.dtype), table])
        return bcast_right(table[t + 1], ndim)

    return Level(
        read(schedule.signal_scale, 1.0),
        read(schedule.noise_scale, 0.0),
        read(0.5 * schedule.log_snr, math.inf),
    )
