"""The schedules of the literature: each a rule for β_t or ᾱ_t, computed on the host in float64.

Paper: linear, T = 1000, β from 1e-4 to 0.02 (Ho et al. 2020, §4); quadratic, constant, warm-up and
jsd are from its ablation; cosine: Nichol, Dhariwal 2021 (2102.09672).

The β of the first five belong to T = 1000. They warn where √ᾱ_T stays above 0.05: x_T then still
shows x_0, so sampling from N(0, I) starts where training never was.
"""

from __future__ import annotations

import math
import warnings

import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.checks import check_floating_dtype, check_number
from ddpm_jax.forward.schedule import NoiseSchedule, check_num_timesteps, schedule_from_beta

_MAX_SIGNAL_LEFT = 0.05


_REMEDY = "Ho et al. (2020) use 1e-4 and 0.02 with 1000 steps; for T steps scale both by 1000/T."


def _check_range(call: str, num_timesteps: int, beta_start: float, beta_end: float) -> int:
    low = check_number(call, "beta_start", beta_start, _REMEDY, within="(0, 1)")
    check_number(call, "beta_end", beta_end, _REMEDY, within=f"[beta_start={low}, 1)")
    return check_num_timesteps(call, num_timesteps)


def _from_rates(call: str, beta: np.ndarray, dtype) -> NoiseSchedule:
    """The schedule of these β, with a warning where x_T keeps part of x_0."""
    check_floating_dtype(call, dtype)
    left = math.exp(0.5 * np.log1p(-beta).sum())
    if left > _MAX_SIGNAL_LEFT:
        T, largest = beta.size, float(beta.max())
        factor = 1000 / T if T < 1000 else math.log(_MAX_SIGNAL_LEFT) / math.log(left)
        remedy = f"Multiply every β by {factor:.4g}, up to β = {factor * largest:.4g}"
        if factor * largest >= 1:
            remedy = f"Use cosine_schedule({T})"
        warnings.warn(
            f"{call} with T = {T} leaves √ᾱ_T = {left:.3g} of x_0 in x_T, which sampling from "
            f"N(0, I) takes for pure noise. {remedy}.",
            stacklevel=3,
        )
    return schedule_from_beta(beta, dtype=dtype)


def linear_schedule(
    num_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    *,
    dtype=jnp.float32,
) -> NoiseSchedule:
    """β_t rises linearly from beta_start to beta_end: the paper's schedule (Ho et al. 2020, §4).

    The defaults belong to T = 1000. With fewer steps scale both by 1000/T, or x_T keeps part of
    x_0; where √ᾱ_T exceeds 0.05 this warns. Raises ValueError unless
    0 < beta_start <= beta_end < 1.

    Example:
        >>> dj.linear_schedule(1000).beta[jnp.array([0, -1])]
        Array([0.0001, 0.02  ], dtype=float32)
    """
    T = _check_range("linear_schedule", num_timesteps, beta_start, beta_end)
    return _from_rates("linear_schedule", np.linspace(beta_start, beta_end, T), dtype)


def quadratic_schedule(
    num_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    *,
    dtype=jnp.float32,
) -> NoiseSchedule:
    """√β_t rises linearly from √beta_start to √beta_end (Ho et al. 2020, ablation).

    Warns and raises as `linear_schedule` does.

    Example:
        >>> dj.quadratic_schedule(3, 0.01, 0.81).beta
        Array([0.01, 0.25, 0.81], dtype=float32)
    """
    T = _check_range("quadratic_schedule", num_timesteps, beta_start, beta_end)
    roots = np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), T)
    return _from_rates("quadratic_schedule", roots**2, dtype)


def constant_schedule(
    num_timesteps: int = 1000, beta: float = 0.02, *, dtype=jnp.float32
) -> NoiseSchedule:
    """β_t = beta at every step (Ho et al. 2020, ablation).

    Warns and raises as `linear_schedule` does.

    Example:
        >>> dj.constant_schedule(1000, 0.02).beta[:3]
        Array([0.02, 0.02, 0.02], dtype=float32)
    """
    T = check_num_timesteps("constant_schedule", num_timesteps)
    check_number("constant_schedule", "beta", beta, _REMEDY, within="(0, 1)")
    return _from_rates("constant_schedule", np.full(T, beta), dtype)


def warmup_schedule(
    num_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    warmup_fraction: float = 0.1,
    *,
    dtype=jnp.float32,
) -> NoiseSchedule:
    """β_t = beta_end, after a linear rise from beta_start over the first ⌊warmup_fraction T⌋ steps.

    Fractions 0.1 and 0.5 are the "warmup10" and "warmup50" of Ho et al. 2020's ablation. Warns and
    raises as `linear_schedule` does, and raises ValueError for a fraction outside [0, 1].

    Example:
        >>> dj.warmup_schedule(1000, warmup_fraction=0.5).beta[jnp.array([0, 499, 999])]
        Array([0.0001, 0.02  , 0.02  ], dtype=float32)
    """
    T = _check_range("warmup_schedule", num_timesteps, beta_start, beta_end)
    remedy = "It is a share of the steps: 0.1 for warmup10, 0.5 for warmup50."
    check_number("warmup_schedule", "warmup_fraction", warmup_fraction, remedy, within="[0, 1]")
    beta = np.full(T, float(beta_end))
    rise = int(T * warmup_fraction)
    beta[:rise] = np.linspace(beta_start, beta_end, rise)
    return _from_rates("warmup_schedule", beta, dtype)


def jsd_schedule(num_timesteps: int = 1000, *, dtype=jnp.float32) -> NoiseSchedule:
    """β_t = 1/T, 1/(T-1), …, 1/2, 1, so that ᾱ_t falls linearly to 0.

    Sohl-Dickstein et al. 2015, §2.4.1. ᾱ ends at exactly 0: nothing of x_0 is left in x_T, so ε
    and the score no longer determine x_0 there. Train with the target x_0 or v. Raises ValueError
    unless T is a whole number of at least 1.

    Example:
        >>> dj.jsd_schedule(4).alpha_bar
        Array([0.75, 0.5 , 0.25, 0.  ], dtype=float32)
    """
    T = check_num_timesteps("jsd_schedule", num_timesteps)
    check_floating_dtype("jsd_schedule", dtype)
    return schedule_from_beta(1.0 / np.arange(T, 0, -1), dtype=dtype)


def cosine_schedule(
    num_timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999, *, dtype=jnp.float32
) -> NoiseSchedule:
    """ᾱ follows cos²(π/2 (u+s)/(1+s)) at u = 1/T … 1, with β clipped at max_beta (iDDPM Eq. 17).

    `offset` is the paper's s, which keeps the first β from vanishing. Raises ValueError unless
    offset >= 0 and 0 < max_beta < 1.

    Example:
        >>> dj.cosine_schedule(1000).beta[-1]
        Array(0.999, dtype=float32)
    """
    T = check_num_timesteps("cosine_schedule", num_timesteps)
    check_floating_dtype("cosine_schedule", dtype)
    remedy = "Nichol and Dhariwal (2021) use 0.008 and 0.999."
    check_number("cosine_schedule", "offset", offset, remedy, within="[0, inf)")
    check_number("cosine_schedule", "max_beta", max_beta, remedy, within="(0, 1)")
    u = np.arange(T + 1) / T
    f = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return schedule_from_beta(np.minimum(1 - f[1:] / f[:-1], max_beta), dtype=dtype)


def sigmoid_schedule(
    num_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    *,
    dtype=jnp.float32,
) -> NoiseSchedule:
    """β_t = beta_start + (beta_end - beta_start) sigmoid(z), z from -6 to 6.

    As in DDIM's released code. Warns and raises as `linear_schedule` does.

    Example:
        >>> dj.sigmoid_schedule(1001, 0.01, 0.03).beta[500]
        Array(0.02, dtype=float32)
    """
    T = _check_range("sigmoid_schedule", num_timesteps, beta_start, beta_end)
    rise = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, T)))
    return _from_rates("sigmoid_schedule", beta_start + (beta_end - beta_start) * rise, dtype)
