"""Networks of continuous time: what they predict, and the denoisers made of them.

Every target is one linear view a x_0 + b ε of the pair behind x_t = s x_0 + n ε:

    epsilon    ε                       v          (s ε - n x_0)/√(s²+n²)
    x_0        x_0                     velocity   s' x_0 + n' ε, for the flow ε - x_0
    score      -ε/n

so x̂_0 = (n out - b x_t)/(n a - s b). The velocity is the right side of the probability-flow ODE
(Song et al. 2021, 2011.13456, Eq. 13; Lipman et al. 2023, 2210.02747, Eq. 10).

Two denoisers connect such a network to everything else: one of the noise level σ = n/s
(`sigma_denoiser_from_process`: likelihoods, any schedule, any other process), and one of a grid of
times (`denoiser_from_process`: samplers, t = 1 of the flow included).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np

from ddpm_jax.denoisers.scheduled import ScheduledDenoiser
from ddpm_jax.denoisers.sigma import SLACK, SigmaDenoiser, checked_levels
from ddpm_jax.forward import lookup
from ddpm_jax.forward.checks import (
    check_batch,
    check_choice,
    check_function,
    check_number,
    check_same_shape,
    host_values,
)
from ddpm_jax.forward.continuous import ContinuousProcess, check_process, check_times, grid_tables
from ddpm_jax.forward.schedule import rows_of_timesteps
from ddpm_jax.types import ApplyFn, Array, ArrayLike, bcast_right

ContinuousTarget = Literal["epsilon", "x_0", "v", "velocity", "score"]
CONTINUOUS_TARGETS: tuple[ContinuousTarget, ...] = ("epsilon", "x_0", "v", "velocity", "score")


def check_continuous_target(call: str, target: str) -> None:
    """Raises ValueError, in the name of the call, unless it is one of CONTINUOUS_TARGETS."""
    remedy = "The previous mean belongs to a discrete process."
    check_choice(call, "target", target, CONTINUOUS_TARGETS, remedy)


def target_weights(
    process: ContinuousProcess, t: Array, target: ContinuousTarget
) -> tuple[Array, Array]:
    """(a, b) of target = a x_0 + b ε at times t, each of t's shape."""
    signal, noise = process.signal_scale(t), process.noise_scale(t)
    zero, one = jnp.zeros_like(t), jnp.ones_like(t)
    if target == "epsilon":
        return zero, one
    if target == "x_0":
        return one, zero
    if target == "score":
        return zero, -1.0 / noise
    if target == "velocity":
        return process.rates(t)
    norm = jnp.hypot(signal, noise)
    return -noise / norm, signal / norm


def _events(process: ContinuousProcess, t: Array, target: ContinuousTarget, ndim: int):
    """(s, n, a, b), shaped to multiply events."""
    scales = (process.signal_scale(t), process.noise_scale(t))
    return (bcast_right(value, ndim) for value in (*scales, *target_weights(process, t, target)))


def continuous_target(
    process: ContinuousProcess, x_0: Array, t: ArrayLike, noise: Array, *, target: ContinuousTarget
) -> Array:
    """What a perfect network predicts at times t: a x_0 + b ε, [B, ...].

    Raises ValueError for unknown targets, other shapes and host times out of range; TypeError for
    data or times that are not floating-point.

    Example:
        >>> x_0, noise = jnp.ones((1, 2)), jnp.zeros((1, 2))
        >>> flow = dj.forward.flow_process()
        >>> dj.denoisers.continuous_target(flow, x_0, 1.0, noise, target="velocity")
        Array([[-1., -1.]], dtype=float32)
    """
    call = "continuous_target"
    check_process(call, process)
    check_continuous_target(call, target)
    check_same_shape(call, x_0=x_0, noise=noise)
    t = check_times(call, t, x_0, process)
    _, _, a, b = _events(process, t, target, x_0.ndim)
    return a * x_0 + b * noise


def continuous_x_0(
    process: ContinuousProcess, output: Array, x_t: Array, t: ArrayLike, *, target: ContinuousTarget
) -> Array:
    """x̂_0 = (n out - b x_t)/(n a - s b) from a network's output at x_t [B, ...], times t.

    Where s is 0 (t = 1 of the flow) ε and the score leave x_0 undetermined: NaN for traced times,
    else a ValueError. Raises as `continuous_target` does.

    Example:
        >>> flow, x_t = dj.forward.flow_process(), jnp.ones((1, 2))
        >>> dj.denoisers.continuous_x_0(flow, 0.5 * x_t, x_t, 1.0, target="velocity")
        Array([[0.5, 0.5]], dtype=float32)
    """
    call = "continuous_x_0"
    check_process(call, process)
    check_continuous_target(call, target)
    check_same_shape(call, output=output, x_t=x_t)
    t = check_times(call, t, x_t, process)
    check_determined(call, process, t, target)
    return _solve(process, output, x_t, t, target)


def _solve(
    process: ContinuousProcess, output: Array, x_t: Array, t: Array, target: ContinuousTarget
) -> Array:
    """x̂_0 of checked arguments."""
    if target == "x_0":
        return output
    signal, noise, a, b = _events(process, t, target, x_t.ndim)
    divisor = noise * a - signal * b
    return (noise * output - b * x_t) / jnp.where(divisor == 0, jnp.nan, divisor)


def velocity_from_denoiser(
    process: ContinuousProcess, denoise: SigmaDenoiser
) -> Callable[[Array, Array], Array]:
    """The velocity field `(x_t [B, ...], t [B]) -> dx/dt` of a denoiser in σ: s' x̂_0 + n' ε̂.

    `sigma_denoiser` turns a discrete network into such a denoiser, which thereby becomes a flow
    model, without retraining. NaN where s is 0 and σ infinite.

    Example:
        >>> flow = dj.forward.flow_process()
        >>> velocity = dj.denoisers.velocity_from_denoiser(flow, lambda y, sigma: 0.0 * y)
        >>> velocity(jnp.ones((1, 2)), jnp.array([0.5]))  # data at 0: x_t = t ε
        Array([[2., 2.]], dtype=float32)
    """
    check_process("velocity_from_denoiser", process)
    check_function("velocity_from_denoiser", "denoise", denoise, "(y, sigma) -> x_0_hat")

    def velocity(x_t: Array, t: ArrayLike) -> Array:
        (x_t,) = check_batch("velocity_from_denoiser", x_t=x_t)
        t = check_times("velocity_from_denoiser", t, x_t, process)
        signal, noise, a, b = _events(process, t, "velocity", x_t.ndim)
        signal = jnp.where(signal == 0, jnp.nan, signal)
        x_0_hat = denoise(x_t / signal, jnp.exp(-0.5 * process.log_snr(t)))
        check_same_shape("velocity_from_denoiser (denoise)", x_t=x_t, x_0_hat=x_0_hat)
        return a * x_0_hat + b * (x_t - signal * x_0_hat) / noise

    return velocity


def sigma_denoiser_from_process(
    process: ContinuousProcess, apply_fn: ApplyFn, *, target: ContinuousTarget
) -> SigmaDenoiser:
    """Turns a network `(x_t, t) -> output` of a process into a denoiser `(y, sigma) -> x̂_0`.

    With it the probability-flow functions, `denoiser_from_sigma` on any schedule, and any other
    process take the network. σ outside of the process's times gives NaN. Raises ValueError for an
    unknown target.

    Example:
        >>> process = dj.forward.vp_process()
        >>> denoise = dj.denoisers.sigma_denoiser_from_process(
        ...     process, lambda x, t: 0.1 * x, target="epsilon")
        >>> denoise(jnp.ones((2, 3)), jnp.array([0.5, 10.0])).shape
        (2, 3)
    """
    call = "sigma_denoiser_from_process"
    check_process(call, process)
    check_function(call, "apply_fn", apply_fn, "(x_t, t) -> output")
    check_continuous_target(call, target)
    first, last = (process.log_snr(np.float64(t)) for t in (process.t_min, process.t_max))

    def denoise(y: Array, sigma: ArrayLike) -> Array:
        y, sigma = checked_levels(f"a {call}", y, sigma)
        sigma = sigma.astype(jnp.promote_types(y.dtype, jnp.float32))
        log_snr = -2.0 * jnp.log(sigma)
        outside = (log_snr > first + 2 * SLACK) | (log_snr < last - 2 * SLACK)
        t = jnp.clip(process.time_at_log_snr(log_snr), process.t_min, process.t_max)
        # s = n/σ: near t = 1 of the flow 1 - t has lost its digits.
        x_t = (bcast_right(process.noise_scale(t) / sigma, y.ndim) * y).astype(y.dtype)
        output = apply_fn(x_t, t)
        check_same_shape(f"{call} (apply_fn)", x_t=x_t, output=output)
        x_0_hat = _solve(process, output, x_t, t, target)
        return jnp.where(bcast_right(outside, y.ndim), jnp.nan, x_0_hat).astype(y.dtype)

    return denoise


def denoiser_from_process(
    process: ContinuousProcess, times: ArrayLike, apply_fn: ApplyFn, *, target: ContinuousTarget
) -> ScheduledDenoiser:
    """Turns a network `(x_t, t) -> output` of a process into a denoiser for every sampler.

    Its schedule is `schedule_from_process(process, times)`; x_t of that schedule, of variance one,
    is scaled by √(s²+n²) for the network. Unlike `denoiser_from_sigma` it includes s = 0, t = 1 of
    the flow. Raises ValueError for times as `schedule_from_process` does, for unknown targets, and
    for ε or the score where s is 0.

    Example:
        >>> flow = dj.forward.flow_process()
        >>> denoise = dj.denoisers.denoiser_from_process(
        ...     flow, [0.25, 0.5, 0.75, 1.0], lambda x, t: x, target="velocity")
        >>> dj.sample(dj.ddim(denoise.schedule), denoise, jnp.ones((2, 3))).shape
        (2, 3)
    """
    call = "denoiser_from_process"
    grid, schedule, table = grid_tables(call, process, times)
    check_function(call, "apply_fn", apply_fn, "(x_t, t) -> output")
    check_continuous_target(call, target)
    check_determined(call, process, grid, target)

    def denoise(x_t: Array, timesteps: Array) -> Array:
        row = rows_of_timesteps(schedule, timesteps)
        t, scale = lookup(table[0], row), lookup(table[1], row)
        x = (bcast_right(scale, x_t.ndim) * x_t).astype(x_t.dtype)
        output = apply_fn(x, t)
        check_same_shape(f"{call} (apply_fn)", x_t=x, output=output)
        return _solve(process, output, x, t, target).astype(x_t.dtype)

    return ScheduledDenoiser(schedule, denoise, call)


def edm_denoiser(apply_fn: ApplyFn, *, sigma_data: float = 0.5) -> SigmaDenoiser:
    """EDM's preconditioning: D(y; σ) = c_skip y + c_out F(c_in y, c_noise)  (Karras Eq. 7).

        c_skip = σ_d²/(σ²+σ_d²),  c_out = σ σ_d/√(σ²+σ_d²),  c_in = 1/√(σ²+σ_d²),  c_noise = ¼ log σ

    (Table 1). F = `apply_fn(x [B, ...], c_noise [B])`. Train D itself with `continuous_loss`, the
    target "x_0" and `edm_weighting`. Raises ValueError unless sigma_data > 0.

    Example:
        >>> denoise = dj.denoisers.edm_denoiser(lambda x, c_noise: 0.0 * x, sigma_data=0.5)
        >>> denoise(jnp.ones((1, 2)), jnp.array([0.5])).round(3)
        Array([[0.5, 0.5]], dtype=float32)
    """
    call = "edm_denoiser"
    check_function(call, "apply_fn", apply_fn, "(x, c_noise) -> output")
    sigma_data = check_number(call, "sigma_data", sigma_data, "EDM uses 0.5.", within="(0, inf)")

    def denoise(y: Array, sigma: ArrayLike) -> Array:
        y, sigma = checked_levels(f"an {call}", y, sigma)
        sigma = sigma.astype(jnp.promote_types(y.dtype, jnp.float32))
        sigma = jnp.where(sigma < 0, jnp.nan, sigma)
        level = bcast_right(sigma, y.ndim)
        norm = jnp.hypot(level, sigma_data)
        output = apply_fn((y / norm).astype(y.dtype), 0.25 * jnp.log(sigma))
        check_same_shape(f"{call} (apply_fn)", y=y, output=output)
        x_0_hat = (sigma_data / norm) ** 2 * y + level * sigma_data / norm * output
        return x_0_hat.astype(y.dtype)

    return denoise


def check_determined(
    call: str, process: ContinuousProcess, t: Array | np.ndarray, target: ContinuousTarget
) -> None:
    """Raises ValueError where ε or the score cannot give x̂_0, because s is 0 at a known time."""
    host = host_values(t) if target in ("epsilon", "score") else None
    if host is not None and (process.signal_scale(host) == 0).any():
        raise ValueError(
            f"{call} got target={target!r} at t = {host.max():g} of {process.name}, where x_t is "
            "pure noise and does not determine x̂_0. Use a network that predicts 'velocity', 'v' "
            "or 'x_0', or times that end before."
        )
