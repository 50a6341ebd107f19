"""A denoiser that knows its process, so that a sampler's grid can be checked against it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.errors import TracerArrayConversionError

from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_batch, check_same_shape, check_steps
from ddpm_jax.types import Array, Denoised, Denoiser

# Respacing in float32 moves √ᾱ and √(1-ᾱ) by 1e-6, in bfloat16 by 4e-3; another process moves them
# by more.
_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class ScheduledDenoiser:
    """A denoiser and the schedule of its process, whose `timesteps` it accepts.

    Called as any `Denoiser`: `(x_t [B, ...], timesteps [B]) -> x̂_0`; one with self-conditioning
    with the earlier estimate as well. `denoise` gets one timestep per example; `maker` is the
    function that errors name.
    """

    schedule: NoiseSchedule
    denoise: Callable[..., Array | Denoised]
    maker: str = "ScheduledDenoiser"

    def __call__(self, x_t: Array, timesteps: Array, *estimate: Array) -> Array | Denoised:
        """Estimates x_0.

        Raises TypeError for x_t that is not floating-point and timesteps that are not integers, and
        ValueError for timesteps that are neither [] nor [B] and an estimate of another shape.
        """
        call = f"a denoiser ({self.maker})"
        (x_t,) = check_batch(call, x_t=x_t)
        for earlier in estimate:
            check_same_shape(call, x_t=x_t, estimate=earlier)
        check_steps(call, timesteps, None, x_t.shape[:1])
        timesteps = jnp.broadcast_to(jnp.asarray(timesteps), x_t.shape[:1])
        return self.denoise(x_t, timesteps, *estimate)


def check_denoiser(call: str, grid: NoiseSchedule, denoise: Denoiser) -> None:
    """Raises ValueError, in the name of the call, if denoiser and grid are of different processes.

    Checked for a `ScheduledDenoiser`; any other denoiser is taken as it is.
    """
    if isinstance(denoise, ScheduledDenoiser):
        check_process(call, grid, denoise.schedule, "the denoiser's process")


def check_process(call: str, grid: NoiseSchedule, process: NoiseSchedule, name: str) -> None:
    """Raises ValueError, in the name of the call, unless the grid visits steps of the process.

    Every timestep of the grid must be one of the process's, at the same noise level. Checked on the
    host where both are concrete, passed otherwise.
    """
    if process is grid:
        return
    try:
        known, wanted = np.asarray(process.timesteps), np.asarray(grid.timesteps)
        levels, at = (
            np.stack(
                [np.asarray(s.signal_scale, np.float64), np.asarray(s.noise_scale, np.float64)]
            )
            for s in (process, grid)
        )
    except (TracerArrayConversionError, RuntimeError):  # traced, or spread over processes
        return
    rows = rows_on_host(known, wanted)
    missing = rows == known.size
    if missing.any():
        raise ValueError(
            f"{call}: the grid has timestep {wanted[missing][0]}, which {name} of {known.size} "
            f"steps (up to {known[-1]}) does not have. Pass a schedule respaced from that process."
        )
    off = np.abs(levels[:, rows] - at).max(axis=0)
    worst = int(off.argmax())
    if off[worst] > _TOLERANCE:
        raise ValueError(
            f"{call}: at timestep {wanted[worst]} the grid has √ᾱ = {at[0, worst]:.4g}, {name} "
            f"{levels[0, rows[worst]]:.4g}. Pass a schedule respaced from that process."
        )


def rows_on_host(known: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
    """Where each timestep stands in the rising table `known`; the table's size if it does not."""
    near = np.searchsorted(known, timesteps).clip(max=known.size - 1)
    return np.where(known[near] == timesteps, near, known.size)
