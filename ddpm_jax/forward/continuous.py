"""Processes in continuous time: x_t = s(t) x_0 + n(t) ε, for t from `t_min` to `t_max`.

              s(t)       n(t)                   f(t)        g(t)²
    VP        e^{-B/2}   √(1-e^{-B})            -β/2        β                      Song, Eq. 11
    sub-VP    e^{-B/2}   1-e^{-B}               -β/2        β (1-e^{-2B})          Song, Eq. 12
    VE        1          σ_min (σ_max/σ_min)^t  0           2 n² log(σ_max/σ_min)  Song, Eq. 9
    EDM       1          t                      0           2t                     Karras, Eq. 4
    flow      1-t        t                      -1/(1-t)    2t/(1-t)               Liu, Eq. 1

with β(t) = β_min + t (β_max - β_min) and B(t) = ∫₀ᵗ β. All solve dx = f x dt + g dw; the same
marginals come from the flow dx/dt = s' x_0 + n' ε in expectation given x_t. Two processes differ
only in the clock and the scale: y = x/s = x_0 + σ ε has the level σ = n/s in each of them, and
log_snr = -2 log σ. A discrete process is a table of levels (`schedule_from_process`).

Song et al. 2021 (2011.13456); Karras et al. 2022 (2206.00364); Liu et al. 2022 (2209.03003).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.checks import (
    check_floating_dtype,
    check_kind,
    check_number,
    check_same_shape,
    host_table,
    host_values,
)
from ddpm_jax.forward.schedule import NoiseSchedule, schedule_from_log_snr
from ddpm_jax.types import Array, ArrayLike, bcast_right, describe

_Function = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class ContinuousProcess:
    """A process as functions of t, elementwise: traceable for JAX arrays, in float64 for NumPy's.

    Made by `vp_process`, `sub_vp_process`, `ve_process`, `edm_process` and `flow_process`.

    Attributes:
        name: for error messages.
        signal_scale: s(t).
        noise_scale: n(t).
        log_snr: log s²/n²; -inf where s is 0.
        time_at_log_snr: its inverse.
        drift: f(t) of dx = f x dt + g dw.
        diffusion: g(t).
        t_min, t_max: first and last time with noise and finite log SNR (or s = 0 at the last). The
            data is at t = 0.
    """

    name: str
    signal_scale: _Function
    noise_scale: _Function
    log_snr: _Function
    time_at_log_snr: _Function
    drift: _Function
    diffusion: _Function
    t_min: float
    t_max: float = 1.0

    def rates(self, t: Array) -> tuple[Array, Array]:
        """(s'(t), n'(t)), finite for all t > 0, of t's shape."""
        t = jnp.asarray(t)
        one = jnp.ones_like(t)
        _, signal = jax.jvp(self.signal_scale, (t,), (one,))
        return signal, jax.jvp(self.noise_scale, (t,), (one,))[1]


def check_process(call: str, process: Any) -> None:
    """Raises TypeError, in the name of the call, unless `process` is a ContinuousProcess."""
    source = "such as vp_process(); a NoiseSchedule has functions of discrete steps"
    check_kind(call, "process", process, ContinuousProcess, source)


def check_times(call: str, t: Any, x: Array, process: ContinuousProcess | None = None) -> Array:
    """Times t, floats [B] or [], as an array [B]; in [t_min, t_max], [0, 1] without a process.

    Raises TypeError for other dtypes, ValueError for other shapes and host values out of range.
    """
    if isinstance(t, float):
        t = jnp.asarray(t, jnp.promote_types(x.dtype, jnp.float32))
    if not hasattr(t, "dtype") or not jnp.issubdtype(t.dtype, jnp.floating):
        raise TypeError(
            f"{call} needs times t, floating-point numbers, got {describe(t)}. Steps of a discrete "
            "process are not times."
        )
    if not x.ndim or np.shape(t) not in ((), x.shape[:1]):
        raise ValueError(
            f"{call} needs events [B, ...] and times t of shape [B] or [], got shapes {x.shape} "
            f"and {np.shape(t)}."
        )
    low, high = (0.0, 1.0) if process is None else (process.t_min, process.t_max)
    host = host_values(t)
    slack = max(1e-6, float(jnp.finfo(t.dtype).eps))  # of a time rounded to this precision
    if (
        host is not None
        and host.size
        and not (low * (1 - slack) <= host.min() and host.max() <= high * (1 + slack))
    ):
        raise ValueError(
            f"{call} needs times t in [{low:g}, {high:g}], got {host.min():g}..{host.max():g}."
        )
    return jnp.broadcast_to(jnp.asarray(t), x.shape[:1])


def _np(t: Any) -> Any:
    return jnp if isinstance(t, jax.Array) else np


def _rates_of(call: str, beta_min: float, beta_max: float, t_min: float):
    """(β, B, inverse of B), with the arguments checked."""
    low = check_number(call, "beta_min", beta_min, within="(0, inf)")
    rise = check_number(call, "beta_max", beta_max, within=f"(beta_min={low}, inf)") - low
    check_number(call, "t_min", t_min, within="(0, 1)")

    def time(B: Any) -> Any:
        return 2.0 * B / (low + _np(B).sqrt(low**2 + 2.0 * rise * B))

    return lambda t: low + t * rise, lambda t: t * (low + 0.5 * rise * t), time


def vp_process(
    beta_min: float = 0.1, beta_max: float = 20.0, *, t_min: float = 1e-5
) -> ContinuousProcess:
    """The variance-preserving process, DDPM's limit T → ∞ (Song et al. 2021, Eq. 11, App. C).

    `linear_schedule(T, beta_min/T, beta_max/T)` tends to its table at t = 1/T, …, 1. Raises
    ValueError unless 0 < beta_min < beta_max and 0 < t_min < 1.

    Example:
        >>> process = dj.forward.vp_process()
        >>> t = jnp.array([0.0, 0.5])
        >>> (process.signal_scale(t)**2 + process.noise_scale(t)**2).round(6)
        Array([1., 1.], dtype=float32)
    """
    beta, integral, time = _rates_of("vp_process", beta_min, beta_max, t_min)

    def from_log_snr(log_snr: Any) -> Any:
        return time(_np(log_snr).logaddexp(0.0, -log_snr))

    return ContinuousProcess(
        "vp_process",
        signal_scale=lambda t: _np(t).exp(-0.5 * integral(t)),
        noise_scale=lambda t: _np(t).sqrt(-_np(t).expm1(-integral(t))),
        log_snr=lambda t: -_np(t).log(_np(t).expm1(integral(t))),
        time_at_log_snr=from_log_snr,
        drift=lambda t: -0.5 * beta(t),
        diffusion=lambda t: _np(t).sqrt(beta(t)),
        t_min=t_min,
    )


def sub_vp_process(
    beta_min: float = 0.1, beta_max: float = 20.0, *, t_min: float = 1e-5
) -> ContinuousProcess:
    """The sub-VP process: VP's signal with less noise (Song et al. 2021, Eq. 12).

    Raises as `vp_process` does.

    Example:
        >>> dj.forward.sub_vp_process().noise_scale(jnp.array([1.0])).round(4)
        Array([1.], dtype=float32)
    """
    beta, integral, time = _rates_of("sub_vp_process", beta_min, beta_max, t_min)

    def from_log_snr(log_snr: Any) -> Any:
        return time(2.0 * _np(log_snr).arcsinh(0.5 * _np(log_snr).exp(-0.5 * log_snr)))

    return ContinuousProcess(
        "sub_vp_process",
        signal_scale=lambda t: _np(t).exp(-0.5 * integral(t)),
        noise_scale=lambda t: -_np(t).expm1(-integral(t)),
        log_snr=lambda t: -2.0 * _np(t).log(2.0 * _np(t).sinh(0.5 * integral(t))),
        time_at_log_snr=from_log_snr,
        drift=lambda t: -0.5 * beta(t),
        diffusion=lambda t: _np(t).sqrt(-beta(t) * _np(t).expm1(-2.0 * integral(t))),
        t_min=t_min,
    )


def ve_process(sigma_min: float = 0.01, sigma_max: float = 50.0) -> ContinuousProcess:
    """The variance-exploding process: σ rises geometrically (Song et al. 2021, Eq. 9, App. C).

    The σ are those of data in [0, 1]: double them for [-1, 1]. At t = 0 the noise is σ_min, not 0.
    Raises ValueError unless 0 < sigma_min < sigma_max.

    Example:
        >>> dj.forward.ve_process(0.01, 100.0).noise_scale(jnp.array([0.5])).round(4)
        Array([1.], dtype=float32)
    """
    low = check_number("ve_process", "sigma_min", sigma_min, within="(0, inf)")
    high = check_number("ve_process", "sigma_max", sigma_max, within=f"(sigma_min={low}, inf)")
    rate = math.log(high / low)

    def noise(t: Any) -> Any:
        return low * _np(t).exp(rate * t)

    return ContinuousProcess(
        "ve_process",
        signal_scale=lambda t: _np(t).ones_like(t),
        noise_scale=noise,
        log_snr=lambda t: -2.0 * (math.log(low) + rate * t),
        time_at_log_snr=lambda log_snr: (-0.5 * log_snr - math.log(low)) / rate,
        drift=lambda t: _np(t).zeros_like(t),
        diffusion=lambda t: math.sqrt(2.0 * rate) * noise(t),
        t_min=0.0,
    )


def edm_process(sigma_min: float = 0.002, sigma_max: float = 80.0) -> ContinuousProcess:
    """EDM's process: t is σ itself, s = 1, for σ_min ≤ t ≤ σ_max (Karras et al. 2022, §3).

    Raises ValueError unless 0 < sigma_min < sigma_max.

    Example:
        >>> dj.forward.edm_process().noise_scale(jnp.array([80.0]))
        Array([80.], dtype=float32)
    """
    low = check_number("edm_process", "sigma_min", sigma_min, within="(0, inf)")
    return ContinuousProcess(
        "edm_process",
        signal_scale=lambda t: _np(t).ones_like(t),
        noise_scale=lambda t: t,
        log_snr=lambda t: -2.0 * _np(t).log(t),
        time_at_log_snr=lambda log_snr: _np(log_snr).exp(-0.5 * log_snr),
        drift=lambda t: _np(t).zeros_like(t),
        diffusion=lambda t: _np(t).sqrt(2.0 * t),
        t_min=low,
        t_max=check_number("edm_process", "sigma_max", sigma_max, within=f"(sigma_min={low}, inf)"),
    )


def flow_process(*, t_min: float = 1e-4) -> ContinuousProcess:
    """The straight path x_t = (1-t) x_0 + t ε of rectified flow and flow matching.

    Liu et al. 2022 (2209.03003), Lipman et al. 2023 (2210.02747), with the data at t = 0. At t = 1
    x_t is pure noise: the velocity ε - x_0 and x_0 are well-defined there, while f and g are
    infinite and ε does not determine x_0. Raises ValueError unless 0 < t_min < 1.

    Example:
        >>> process = dj.forward.flow_process()
        >>> process.signal_scale(jnp.array([1.0])), process.log_snr(jnp.array([0.5]))
        (Array([0.], dtype=float32), Array([0.], dtype=float32))
    """

    def log_snr(t: Any) -> Any:
        with np.errstate(divide="ignore"):
            return 2.0 * (_np(t).log1p(-t) - _np(t).log(t))

    def from_log_snr(log_snr: Any) -> Any:
        return _np(log_snr).exp(-_np(log_snr).logaddexp(0.0, 0.5 * log_snr))

    return ContinuousProcess(
        "flow_process",
        signal_scale=lambda t: 1.0 - t,
        noise_scale=lambda t: t,
        log_snr=log_snr,
        time_at_log_snr=from_log_snr,
        drift=lambda t: -1.0 / (1.0 - t),
        diffusion=lambda t: _np(t).sqrt(2.0 * t / (1.0 - t)),
        t_min=check_number("flow_process", "t_min", t_min, within="(0, 1)"),
    )


def process_sample(process: ContinuousProcess, x_0: Array, t: ArrayLike, noise: Array) -> Array:
    """Diffuses x_0 [B, ...] to times t, [B] or []: s(t) x_0 + n(t) ε.

    Raises ValueError for shapes that differ and (host values) times out of range, TypeError for
    data or times that are not floating-point.

    Example:
        >>> x_0, noise = jnp.ones((2, 3)), jnp.zeros((2, 3))
        >>> dj.forward.process_sample(dj.forward.flow_process(), x_0, jnp.array([0.5, 1.0]), noise)
        Array([[0.5, 0.5, 0.5],
               [0. , 0. , 0. ]], dtype=float32)
    """
    check_process("process_sample", process)
    check_same_shape("process_sample", x_0=x_0, noise=noise)
    t = check_times("process_sample", t, x_0, process)
    signal, sigma = (
        bcast_right(f(t), x_0.ndim) for f in (process.signal_scale, process.noise_scale)
    )
    return (signal * x_0 + sigma * noise).astype(jnp.result_type(x_0, noise))


def schedule_from_process(
    process: ContinuousProcess, times: ArrayLike, *, dtype=jnp.float32
) -> NoiseSchedule:
    """The discrete process that visits the levels at `times` [T], strictly rising: a table.

    ᾱ = 1/(1+σ²), so x_t is scaled to variance one as DDPM's is, whatever the process's own scale.
    A host function, in float64. Raises ValueError for times that do not rise or are out of range,
    TypeError for traced ones.

    Example:
        >>> times = [0.25, 0.5, 0.75, 1.0]
        >>> dj.forward.schedule_from_process(dj.forward.flow_process(), times).alpha_bar
        Array([0.9, 0.5, 0.1, 0. ], dtype=float32)
    """
    call = "schedule_from_process"
    check_floating_dtype(call, dtype)
    check_process(call, process)
    table = check_grid(call, process, times)
    return schedule_from_log_snr(process.log_snr(table), dtype=dtype)


def grid_tables(
    call: str, process: ContinuousProcess, times: ArrayLike
) -> tuple[np.ndarray, NoiseSchedule, Array]:
    """The times [T] in float64, checked; their schedule; and [times, √(s²+n²)], an array [2, T]."""
    check_process(call, process)
    grid = check_grid(call, process, times)
    schedule = schedule_from_log_snr(process.log_snr(grid))
    scale = np.hypot(process.signal_scale(grid), process.noise_scale(grid))
    return grid, schedule, jnp.asarray(np.stack([grid, scale]), schedule.beta.dtype)


def check_grid(call: str, process: ContinuousProcess, times: ArrayLike) -> np.ndarray:
    """The times [T] in float64. Raises ValueError unless they rise from t_min to t_max at most."""
    table = host_table(call, "times", times)
    inside = table[0] >= process.t_min * (1 - 1e-6) and table[-1] <= process.t_max * (1 + 1e-6)
    if not inside or not (np.diff(table) > 0).all():
        raise ValueError(
            f"{call} needs strictly rising times from {process.t_min:g} to {process.t_max:g} "
            f"({process.name}), got {table.tolist()[:8]}{'…' if table.size > 8 else ''}. The data "
            "at t = 0 is implied."
        )
    return np.clip(table, process.t_min, process.t_max)
