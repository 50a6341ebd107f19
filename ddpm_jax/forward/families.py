"""The schedules of the literature: each a rule for β_t or ᾱ_t, made on the host in float64.

Paper: linear, T = 1000, β from 1e-4 to 0.02 (Ho et al. 2020, §4); quadratic, constant, warm-up and
jsd are its ablation's; cosine: Nichol, Dhariwal 2021 (2102.09672).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.schedule import NoiseSchedule, check_num_timesteps, schedule_from_beta


def _check_range(name: str, num_timesteps: int, beta_start: float, beta_end: float) -> None:
    check_num_timesteps(name, num_timesteps)
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"{name} needs 0 < beta_start <= beta_end < 1, got {beta_start=}, {beta_end=}. "
            "Ho et al. (2020) use 1e-4 and 0.02 with 1000 steps; with T steps scale both by 1000/T."
        )


def linear_schedule(
    num_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    *,
    dtype=jnp.float32,
) -> NoiseSchedule:
    """β_t rising linearly from beta_start to beta_end: the paper's schedule (Ho et al. 2020, §4).

    The defaults belong to T = 1000. With fewer steps scale both by 1000/T, or x_T keeps part of
    x_0.
    """
    _check_range("linear_schedule", num_timesteps, beta_start, beta_end)
    return schedule_from_beta(np.linspace(beta_start, beta_end, num_timesteps), dtype=dtype)


def quadratic_schedule(
    num_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    *,
    dtype=jnp.float32,
) -> NoiseSchedule:
    """√β_t rising linearly from √beta_start to √beta_end (Ho et al. 2020, ablation)."""
    _check_range("quadratic_schedule", num_timesteps, beta_start, beta_end)
    roots = np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_timesteps)
    return schedule_from_beta(roots**2, dtype=dtype)


def constant_schedule(
    num_timesteps: int = 1000, beta: float = 0.02, *, dtype=jnp.float32
) -> NoiseSchedule:
    """β_t = beta at every step (Ho et al. 2020, ablation)."""
    _check_range("constant_schedule", num_timesteps, beta, beta)
    return schedule_from_beta(np.full(num_timesteps, beta), dtype=dtype)


def warmup_schedule(
    num_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    warmup_fraction: float = 0.1,
    *,
    dtype=jnp.float32,
) -> NoiseSchedule:
    """β_t = beta_end, after a linear rise from beta_start over the first ⌊warmup_fraction T⌋ steps.

    Fractions 0.1 and 0.5 are the "warmup10" and "warmup50" of Ho et al. 2020's ablation.
    """
    _check_range("warmup_schedule", num_timesteps, beta_start, beta_end)
    if not 0 <= warmup_fraction <= 1:
        raise ValueError(
            f"warmup_schedule needs 0 <= warmup_fraction <= 1, got {warmup_fraction}. It is a "
            "share of the steps: 0.1 for warmup10, 0.5 for warmup50."
        )
    beta = np.full(num_timesteps, beta_end)
    rise = int(num_timesteps * warmup_fraction)
    beta[:rise] = np.linspace(beta_start, beta_end, rise)
    return schedule_from_beta(beta, dtype=dtype)


def jsd_schedule(num_timesteps: int = 1000, *, dtype=jnp.float32) -> NoiseSchedule:
    """β_t = 1/T, 1/(T-1), …, 1/2, 1, so that ᾱ_t falls linearly to 0 (Sohl-Dickstein et al. 2015,
    §2.4.1).

    ᾱ ends at exactly 0: nothing of x_0 is left in x_T, so ε and the score no longer determine x_0
        there.
    Train with the target x_0 or v.
    """
    check_num_timesteps("jsd_schedule", num_timesteps)
    return schedule_from_beta(1.0 / np.arange(num_timesteps, 0, -1), dtype=dtype)


def cosine_schedule(
    num_timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999, *, dtype=jnp.float32
) -> NoiseSchedule:
    """ᾱ following cos²(π/2 (u+s)/(1+s)) at u = 1/T … 1, β clipped at max_beta (iDDPM Eq. 17).

    `offset` is the paper's s, which keeps the first β from vanishing.
    """
    check_num_timesteps("cosine_schedule", num_timesteps)
    if not (offset >= 0 and 0 < max_beta < 1):
        raise ValueError(
            f"cosine_schedule needs offset >= 0 and 0 < max_beta < 1, got {offset=}, {max_beta=}. "
            "Nichol and Dhariwal (2021) use 0.008 and 0.999."
        )
    u = np.arange(num_timesteps + 1) / num_timesteps
    f = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return schedule_from_beta(np.minimum(1 - f[1:] / f[:-1], max_beta), dtype=dtype)


def sigmoid_schedule(
    num_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    *,
    dtype=jnp.float32,
) -> NoiseSchedule:
    """β_t = beta_start + (beta_end - beta_start) sigmoid(z), z from -6 to 6 (as in DDIM's released
    code)."""
    _check_range("sigmoid_schedule", num_timesteps, beta_start, beta_end)
    rise = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, num_timesteps)))
    return schedule_from_beta(beta_start + (beta_end - beta_start) * rise, dtype=dtype)
