"""The denoiser of a network: `(x_t, timesteps) -> x̂_0`, which every sampler takes."""

from __future__ import annotations

import jax.numpy as jnp

from ddpm_jax.denoisers.prediction import (
    Target,
    Variance,
    check_determined,
    check_target,
    check_variance,
    predict_x_0,
    split_output,
)
from ddpm_jax.denoisers.scheduled import ScheduledDenoiser
from ddpm_jax.denoisers.thresholds import Clip, check_clip, threshold_x_0
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.schedule import check_arguments, rows_of_timesteps
from ddpm_jax.types import ApplyFn, Array, Denoised, bcast_right


def make_denoiser(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    *,
    target: Target = "epsilon",
    variance: Variance = "fixed_large",
    clip: Clip = True,
) -> ScheduledDenoiser:
    """Turns a network into a denoiser: `(x_t, timesteps) -> x̂_0` [B, ...].

    Data are taken to lie in [-1, 1], as images do: x̂_0 is clipped there unless clip=False.

    `timesteps` [B], or [] shared by all, are numbers of `schedule.timesteps`, for a full process
    its steps 0..T-1. Samplers on a subset of the steps call with those numbers, so the full
    schedule serves every grid. A number that the schedule does not have gives NaN. With a learned
    variance the denoiser returns `Denoised(x_0, variance_output)`. Samplers check their grid
    against `schedule`.

    Args:
        schedule: the full process that the network was trained on.
        apply_fn: `(x_t [B, ...], timesteps [B]) -> output`, the network with its parameters bound.
        target: what the network predicts. Samplers make their mean from x̂_0; to keep that of a
            network that predicts "previous_mean", pass clip=False.
        variance: of the reverse step; a learned one doubles the output's channels.
        clip: as in `p_mean_variance`.

    Raises ValueError for unknown kinds, and for ε or the score where ᾱ is 0; the denoiser raises
    ValueError for outputs of another shape and TypeError for timesteps that are not integers.

    Example:
        >>> denoise = dj.make_denoiser(dj.linear_schedule(1000), lambda x_t, t: 0.1 * x_t)
        >>> denoise(jnp.ones((2, 3)), jnp.array([0, 999])).shape
        (2, 3)
    """
    call = "make_denoiser"
    check_arguments(call, schedule=schedule, apply_fn=apply_fn)
    check_target(call, target)
    check_variance(call, variance)
    check_clip(call, clip)
    check_determined(call, schedule, target)

    def denoise(x_t: Array, timesteps: Array):
        row = rows_of_timesteps(schedule, timesteps)
        prediction, variance_output = split_output(apply_fn(x_t, timesteps), x_t, variance)
        x_0_hat = predict_x_0(schedule, prediction, x_t, row, target=target)
        if target == "x_0":  # all others read the tables, which give NaN off the schedule
            known = bcast_right(row < schedule.num_timesteps, x_t.ndim)
            x_0_hat = jnp.where(known, x_0_hat, jnp.nan)
        x_0_hat = threshold_x_0(x_0_hat, clip)
        return x_0_hat if variance_output is None else Denoised(x_0_hat, variance_output)

    return ScheduledDenoiser(schedule, denoise, call)
