"""Continuous noise levels: a discrete process seen through σ, and σ-models run on a discrete grid.

Dividing x_t by its signal scale leaves x_0 with plain noise on it (Karras et al. 2022, 2206.00364,
their variables):

    y = x_t/√ᾱ_t = x_0 + σ ε,      σ = √((1-ᾱ)/ᾱ) = exp(-log_snr/2),      ᾱ = 1/(1+σ²).

Any σ between two of the table is a noise level, too: the process at σ has ᾱ(σ) exactly, and only
the network's timestep has to be interpolated, linearly in log σ. Between two steps σ changes by a
few per cent, and networks embed timesteps by smooth sinusoids. A network that looks timesteps up in
a table cannot be used off the grid.

With x = y/√(1+σ²) as the network's input, x̂_0 follows from its output without a division by √ᾱ:

    epsilon   y - σ ε̂            v       (y/√(1+σ²) - σ v̂)/√(1+σ²)
    x_0       x̂_0                score   y + σ²/√(1+σ²) ŝ

The previous mean μ̃_t belongs to a pair of grid steps and means nothing between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.denoisers.prediction import (
    Target,
    Variance,
    check_target,
    check_variance,
    split_output,
)
from ddpm_jax.denoisers.scheduled import ScheduledDenoiser
from ddpm_jax.forward import NoiseSchedule, lookup
from ddpm_jax.forward.checks import (
    check_batch,
    check_flag,
    check_function,
    check_number,
    check_real,
)
from ddpm_jax.forward.schedule import check_arguments, rows_of_timesteps
from ddpm_jax.types import ApplyFn, Array, ArrayLike, bcast_right, host_array, per_example

# How far, in log σ, a noise level may lie outside the table and still count as its end. Rounding σ
# through exp and log costs 1e-6 at most; a level that is really elsewhere misses by more.
SLACK = 1e-4


class SigmaDenoiser(Protocol):
    """A model seen through its estimate of the clean data at noise level σ: y, σ -> x̂_0.

    `y` [B, ...] is x_0 + σ ε, unscaled; `sigma` [B], or [] for a level shared by all. Returns
    E[x_0 | y] as the model has it, [B, ...]. EDM-like models are of this kind.
    """

    def __call__(self, y: Array, sigma: Array, /) -> Array:
        """Estimates x_0."""
        ...


def _log_sigma(schedule: NoiseSchedule) -> Array:
    return -0.5 * jnp.asarray(schedule.log_snr)


def check_sigmas(call: str, sigma_min: float, sigma_max: float) -> None:
    """Raises ValueError, in the name of the call, unless 0 < sigma_min < sigma_max < ∞.

    Raises TypeError unless both are numbers of the host.
    """
    remedy = "sigma_range(schedule) gives both ends of a discrete process."
    low = check_number(call, "sigma_min", sigma_min, remedy, within="(0, inf)")
    check_number(call, "sigma_max", sigma_max, remedy, within=f"(sigma_min={low}, inf)")


def checked_levels(call: str, y: Array, sigma: ArrayLike) -> tuple[Array, Array]:
    """The events y [B, ...] and their σ [B] as arrays.

    Raises, in the name of the call, TypeError for values that are not floating-point, and
    ValueError for a σ that is neither [] nor [B].
    """
    (y,) = check_batch(call, y=y)
    check_real(call, sigma=sigma)
    return y, per_example(call, "sigma", sigma, y)


def sigma_range(schedule: NoiseSchedule) -> tuple[float, float]:
    """The noise levels σ = √((1-ᾱ)/ᾱ) of the first and of the last step, as host floats.

    The paper's schedule runs from 0.0100 to 157.4. A host function. Raises ValueError when ᾱ_T is
    0, where σ is infinite, and TypeError for a traced schedule.

    Example:
        >>> [round(sigma, 2) for sigma in dj.sigma_range(dj.linear_schedule())]
        [0.01, 157.41]
    """
    check_arguments("sigma_range", schedule=schedule)
    log_snr = host_array("sigma_range", "the schedule", schedule.log_snr, np.float64)
    if not np.isfinite(log_snr).all():
        last = schedule.num_timesteps - 1
        raise ValueError(
            f"sigma_range needs a schedule with ᾱ > 0 throughout, got log_snr = {log_snr[-1]} at "
            f"step {last}: nothing of x_0 is left there and σ is infinite. Drop that step, "
            f"respace(schedule, np.arange({last})), and start from the noise level before it."
        )
    return float(np.exp(-0.5 * log_snr[0])), float(np.exp(-0.5 * log_snr[-1]))


def timesteps_at_sigma(schedule: NoiseSchedule, sigma: ArrayLike) -> Array:
    """The timestep of noise level σ, [] or [B], as a fraction between `schedule.timesteps`.

    Linear in log σ between the table's entries, and exact at them. NaN outside the table's range;
    levels within 1e-4 of an end, relative, count as that end, so that rounding does not leave the
    range. Where ᾱ_T is 0 the range ends at the last finite σ.
    """
    log_sigma = _log_sigma(schedule)
    known = jnp.asarray(schedule.timesteps).astype(log_sigma.dtype)
    wanted = jnp.log(jnp.asarray(sigma, log_sigma.dtype))
    # An interval that ends at σ = ∞ has slope 0: all of it gets the timestep before.
    t = jnp.interp(wanted, log_sigma, known)
    end = jnp.max(jnp.where(jnp.isfinite(log_sigma), log_sigma, -jnp.inf))
    inside = (wanted >= log_sigma[0] - SLACK) & (wanted <= end + SLACK)
    return jnp.where(inside, t, jnp.nan)


def sigma_at_timesteps(schedule: NoiseSchedule, timesteps: ArrayLike) -> Array:
    """σ at timesteps, whole or fractional: the inverse of `timesteps_at_sigma`.

    Linear in log σ between the table's entries; NaN outside the schedule's range.
    """
    log_sigma = _log_sigma(schedule)
    known = jnp.asarray(schedule.timesteps).astype(log_sigma.dtype)
    wanted = jnp.asarray(timesteps).astype(log_sigma.dtype)
    inside = (wanted >= known[0]) & (wanted <= known[-1])
    return jnp.where(inside, jnp.exp(jnp.interp(wanted, known, log_sigma)), jnp.nan)


def sigma_denoiser(
    schedule: NoiseSchedule,
    apply_fn: ApplyFn,
    *,
    target: Target = "epsilon",
    variance: Variance = "fixed_large",
    clip: bool = False,
) -> SigmaDenoiser:
    """Turns a network of a discrete process into a denoiser of every σ in the table's range.

    The network gets x = y/√(1+σ²) [B, ...] and the fractional `timesteps_at_sigma` [B]; its output
    is converted with the exact ᾱ(σ), so at the table's own levels the result is `make_denoiser`'s.
    A learned variance is ignored.

    Args:
        schedule: the process the network was trained on.
        apply_fn: `(x [B, ...], timesteps [B]) -> output`; the network must take timesteps that are
            floats.
        target: what the network predicts; not "previous_mean".
        variance: as in `make_denoiser`; a learned one doubles the output's channels.
        clip: limits x̂_0 to [-1, 1]. Off, because clipping kinks the ODE and zeroes the derivatives
            that likelihoods need.

    A σ outside the range, by more than rounding, gives NaN. Raises ValueError for unknown kinds and
    for the target "previous_mean"; the denoiser raises it for a σ that is neither [] nor [B].

    >>> denoise = dj.sigma_denoiser(dj.linear_schedule(), lambda x, t: 0.1 * x)
    >>> denoise(jnp.ones((2, 3)), jnp.array([0.5, 10.0])).shape
    (2, 3)
    """
    check_arguments("sigma_denoiser", schedule=schedule, apply_fn=apply_fn)
    check_flag("sigma_denoiser", "clip", clip)
    check_target("sigma_denoiser", target)
    check_variance("sigma_denoiser", variance)
    if target == "previous_mean":
        raise ValueError(
            "sigma_denoiser needs a target that is defined at every noise level, got "
            "target='previous_mean': μ̃_t joins two neighbouring steps of the grid. Sample with "
            "make_denoiser on the grid, or train for 'epsilon', 'x_0' or 'v'."
        )

    def denoise(y: Array, sigma: ArrayLike) -> Array:
        y, sigma = checked_levels("a sigma_denoiser", y, sigma)
        level = bcast_right(sigma.astype(jnp.promote_types(y.dtype, jnp.float32)), y.ndim)
        # √(1+σ²); the process at σ has signal scale 1/norm and noise scale σ/norm.
        norm = jnp.hypot(1.0, level)
        timesteps = timesteps_at_sigma(schedule, sigma)
        output = apply_fn((y / norm).astype(y.dtype), timesteps)
        prediction, _ = split_output(output, y, variance)
        if target == "epsilon":
            x_0_hat = y - level * prediction
        elif target == "v":
            x_0_hat = (y / norm - level * prediction) / norm
        elif target == "score":
            x_0_hat = y + level * (level / norm) * prediction
        else:
            x_0_hat = prediction
        # A network that ignores its timesteps would answer at any σ: the range is the schedule's.
        outside = bcast_right(jnp.isnan(timesteps), y.ndim)
        x_0_hat = jnp.where(outside, jnp.nan, x_0_hat).astype(y.dtype)
        return jnp.clip(x_0_hat, -1.0, 1.0) if clip else x_0_hat

    return denoise


def denoise_one(
    call: str,
    denoise: SigmaDenoiser | Callable[..., Array],
    y: Array,
    sigma: Array,
    conditions: tuple[Any, ...] = (),
) -> Array:
    """D(y; σ) of one example, y [...] and σ [], as a batch of one; to be mapped over a batch.

    `conditions` are pytrees of that example's values, passed on after y and σ. Raises ValueError,
    in the name of the call, for an output that is not of the shape of the batch of one.
    """
    rows = jax.tree.map(lambda value: value[None], conditions)
    x_0_hat = denoise(y[None], sigma[None], *rows)
    check_real(f"{call} (denoise)", x_0_hat=x_0_hat)
    if jnp.shape(x_0_hat) != (1, *y.shape):
        raise ValueError(
            f"{call}: the denoiser returned shape {jnp.shape(x_0_hat)} for one example of shape "
            f"{(1, *y.shape)}. It is called one example at a time: labels and the like are passed "
            "as conditions=(labels,), not closed over."
        )
    return x_0_hat[0].astype(y.dtype)


def denoiser_from_sigma(schedule: NoiseSchedule, sigma_denoise: SigmaDenoiser) -> ScheduledDenoiser:
    """Turns a model in σ into a denoiser of a schedule, for every sampler.

    `denoise(x_t, timesteps)` calls `sigma_denoise(x_t/√ᾱ_t, σ_t)`. Any schedule will do, if the
    model knows its noise levels (`sigma_range`). A timestep the schedule does not have gives NaN,
    and so does one with ᾱ_t = 0, where y has no finite scale: sample on a grid without it. The
    denoiser raises ValueError for timesteps that are neither [] nor [B].

    >>> denoise = dj.denoisers.denoiser_from_sigma(dj.linear_schedule(), lambda y, sigma: 0.5 * y)
    >>> denoise(jnp.ones((2, 3)), jnp.array([10, 500])).shape
    (2, 3)
    """

    check_arguments("denoiser_from_sigma", schedule=schedule)
    check_function("denoiser_from_sigma", "sigma_denoise", sigma_denoise, "(y, sigma) -> x̂_0")

    def denoise(x_t: Array, timesteps: Array) -> Array:
        row = rows_of_timesteps(schedule, timesteps)
        signal = bcast_right(lookup(schedule.signal_scale, row), x_t.ndim)
        sigma = jnp.exp(lookup(_log_sigma(schedule), row))
        y = (x_t / signal).astype(x_t.dtype)
        x_0_hat = sigma_denoise(y, sigma)
        check_batch("denoiser_from_sigma", x_0_hat=x_0_hat, y=y)
        missing = bcast_right(~jnp.isfinite(sigma), x_t.ndim)
        return jnp.where(missing, jnp.nan, x_0_hat)

    return ScheduledDenoiser(schedule, denoise, "denoiser_from_sigma")
