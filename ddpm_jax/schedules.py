"""Noise schedules: how much of x_0 is left, and how much noise has come in, after each step.

    β_t          variance added by step t:             q(x_t | x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I)
    ᾱ_t          Π_{i≤t} (1-β_i), with ᾱ before the first step equal to 1
    signal_scale √ᾱ_t          noise_scale √(1-ᾱ_t)          log_snr  log ᾱ_t - log(1-ᾱ_t)
    β̃_t          posterior variance (1-ᾱ_{t-1})/(1-ᾱ_t) β_t

Every table is computed in float64 on the host and then cast. The bare name "alpha" is used nowhere:
it means 1-β in one half of the literature and √ᾱ in the other.

Ho, Jain, Abbeel 2020 (arXiv 2006.11239); cosine and respacing: Nichol, Dhariwal 2021 (2102.09672).
"""

from __future__ import annotations

import math
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.types import Array, ArrayLike

Spacing = Literal["fractional", "uniform", "quadratic", "leading", "trailing"]
SPACINGS: tuple[Spacing, ...] = ("fractional", "uniform", "quadratic", "leading", "trailing")


@flax.struct.dataclass
class NoiseSchedule:
    """The tables of a diffusion process with T steps, each [T]; a pytree.

    Attributes:
        beta: β_t.
        alpha_bar: ᾱ_t.
        alpha_bar_prev: ᾱ_{t-1}; its first entry is 1.
        signal_scale: √ᾱ_t.
        noise_scale: √(1-ᾱ_t).
        posterior_variance: β̃_t; its first entry is 0.
        posterior_log_variance: log β̃_t, the first entry replaced by that of β̃_1 (by log β_0 when
            T = 1).
        log_snr: log ᾱ_t - log(1-ᾱ_t); -inf where ᾱ_t is 0.
        timesteps: int32, what the network is fed at each step; arange(T) unless respaced.
    """

    beta: Array
    alpha_bar: Array
    alpha_bar_prev: Array
    signal_scale: Array
    noise_scale: Array
    posterior_variance: Array
    posterior_log_variance: Array
    log_snr: Array
    timesteps: Array

    @property
    def num_timesteps(self) -> int:
        """T, the number of steps."""
        return self.beta.shape[-1]


def lookup(table: ArrayLike, t: ArrayLike) -> Array:
    """Reads table[t] for a step t, [] or [B], inside 0..T-1.

    An index outside the table gives NaN (for a host integer: an IndexError), where plain indexing
    would silently wrap -1 round to the last step and clamp T to it.
    """
    table = jnp.asarray(table)
    size = table.shape[0]
    if not isinstance(t, jax.Array):  # tracers are jax.Arrays too: their values are not to be had
        host_t = np.asarray(t)
        if (
            host_t.dtype.kind in "iu"
            and host_t.size
            and not 0 <= host_t.min() <= host_t.max() < size
        ):
            raise IndexError(
                f"step t must be in 0..{size - 1}, got {host_t.min()}..{host_t.max()}. Steps are "
                "0-based: the papers' step 1 is t = 0."
            )
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise TypeError(
            f"step t must be an integer in 0..{size - 1}, got dtype {t.dtype}. Continuous time in "
            "[0, 1] is not a step: multiply by T and round first."
        )
    fill = jnp.nan if jnp.issubdtype(table.dtype, jnp.inexact) else None
    return table.at[t].get(mode="fill", fill_value=fill, wrap_negative_indices=False)


def _check_num_timesteps(name: str, num_timesteps: int) -> None:
    if isinstance(num_timesteps, bool) or int(num_timesteps) != num_timesteps or num_timesteps < 1:
        raise ValueError(
            f"{name} needs num_timesteps, a whole number of at least 1, got {num_timesteps!r}. "
            "Ho et al. (2020) use 1000."
        )


def _check_range(name: str, num_timesteps: int, beta_start: float, beta_end: float) -> None:
    _check_num_timesteps(name, num_timesteps)
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"{name} needs 0 < beta_start <= beta_end < 1, got {beta_start=}, {beta_end=}. "
            "Ho et al. (2020) use 1e-4 and 0.02 with 1000 steps; with T steps scale both by 1000/T."
        )


def _tables(
    beta: np.ndarray, log_alpha_bar: np.ndarray, timesteps: np.ndarray, dtype
) -> NoiseSchedule:
    """Builds every table in float64 from β and log ᾱ, then casts to `dtype`."""
    log_alpha_bar_prev = np.concatenate([[0.0], log_alpha_bar[:-1]])
    alpha_bar, alpha_bar_prev = np.exp(log_alpha_bar), np.exp(log_alpha_bar_prev)
    # 1-ᾱ by expm1: at t=0 it is about 1e-4, and subtracting from 1 in float32 would put it off by
    # 1.7e-4 relative.
    one_minus, one_minus_prev = 0.0 - np.expm1(log_alpha_bar), 0.0 - np.expm1(log_alpha_bar_prev)
    posterior_variance = one_minus_prev / one_minus * beta
    with np.errstate(divide="ignore"):
        posterior_log_variance = np.log(posterior_variance)
    posterior_log_variance[0] = posterior_log_variance[1] if len(beta) > 1 else np.log(beta[0])

    def cast(table: np.ndarray) -> Array:
        return jnp.asarray(table, dtype=dtype)

    return NoiseSchedule(
        beta=cast(beta),
        alpha_bar=cast(alpha_bar),
        alpha_bar_prev=cast(alpha_bar_prev),
        signal_scale=cast(np.exp(0.5 * log_alpha_bar)),
        noise_scale=cast(np.sqrt(one_minus)),
        posterior_variance=cast(posterior_variance),
        posterior_log_variance=cast(posterior_log_variance),
        log_snr=cast(log_alpha_bar - np.log(one_minus)),
        timesteps=jnp.asarray(timesteps, dtype=jnp.int32),
    )


def schedule_from_beta(beta: ArrayLike, *, dtype=jnp.float32) -> NoiseSchedule:
    """Builds a schedule from any table of β_t [T], each in (0, 1); the last may be 1 (no signal
    left).

    Raises ValueError for a table that is empty, not one-dimensional, or outside that range.
    """
    beta = np.asarray(beta, dtype=np.float64)
    if beta.ndim != 1 or beta.size == 0:
        raise ValueError(f"schedule_from_beta needs a table of shape [T], got shape {beta.shape}.")
    inside = (beta > 0) & (beta < 1)
    inside[-1] |= beta[-1] == 1
    if not inside.all():
        worst = int(np.argmin(inside))
        raise ValueError(
            "schedule_from_beta needs every β in (0, 1), of which only the last may be 1; got "
            f"β[{worst}] = {beta[worst]}. A step that adds no noise can be left out of the table."
        )
    with np.errstate(divide="ignore"):
        log_alpha_bar = np.cumsum(np.log1p(-beta))
    return _tables(beta, log_alpha_bar, np.arange(beta.size), dtype)


def schedule_from_alpha_bar(alpha_bar: ArrayLike, *, dtype=jnp.float32) -> NoiseSchedule:
    """Builds a schedule from any strictly falling table of ᾱ_t [T] inside (0, 1); the last may be
    0.

    β_t = 1 - ᾱ_t/ᾱ_{t-1}, with ᾱ before the first step equal to 1. Raises ValueError for any other
    table.
    """
    alpha_bar = np.asarray(alpha_bar, dtype=np.float64)
    if alpha_bar.ndim != 1 or alpha_bar.size == 0:
        raise ValueError(
            f"schedule_from_alpha_bar needs a table of shape [T], got shape {alpha_bar.shape}."
        )
    falling = np.diff(np.concatenate([[1.0], alpha_bar])) < 0
    inside = falling & (alpha_bar >= 0)
    if not inside.all():
        worst = int(np.argmin(inside))
        raise ValueError(
            "schedule_from_alpha_bar needs 1 > ᾱ_0 > ᾱ_1 > … >= 0, strictly falling; got "
            f"ᾱ[{worst}] = {alpha_bar[worst]}"
            + (f" after ᾱ[{worst - 1}] = {alpha_bar[worst - 1]}." if worst else ".")
            + " The value 1 before the first step is implied and must not be in the table."
        )
    with np.errstate(divide="ignore"):
        log_alpha_bar = np.log(alpha_bar)
    beta = -np.expm1(np.diff(np.concatenate([[0.0], log_alpha_bar])))
    return _tables(beta, log_alpha_bar, np.arange(alpha_bar.size), dtype)


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
    _check_num_timesteps("jsd_schedule", num_timesteps)
    return schedule_from_beta(1.0 / np.arange(num_timesteps, 0, -1), dtype=dtype)


def cosine_schedule(
    num_timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999, *, dtype=jnp.float32
) -> NoiseSchedule:
    """ᾱ following cos²(π/2 (u+s)/(1+s)) at u = 1/T … 1, β clipped at max_beta (iDDPM Eq. 17).

    `offset` is the paper's s, which keeps the first β from vanishing.
    """
    _check_num_timesteps("cosine_schedule", num_timesteps)
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


def respace(schedule: NoiseSchedule, timesteps: ArrayLike) -> NoiseSchedule:
    """The process that visits only the steps τ = `timesteps`, rising, of `schedule`.

    β'_i = 1 - ᾱ_{τ_i}/ᾱ_{τ_{i-1}}, while ᾱ and what the network is fed stay those of τ_i (iDDPM
    §4).
    A host function: the schedule must be concrete. Raises ValueError for steps that repeat, fall,
        or lie
    outside the schedule.
    """
    steps = np.asarray(timesteps)
    T = schedule.num_timesteps
    if steps.ndim != 1 or steps.size == 0 or steps.dtype.kind not in "iu":
        raise ValueError(
            f"respace needs a non-empty list of integer steps, got shape {steps.shape} and dtype "
            f"{steps.dtype}. `spaced_timesteps` makes one."
        )
    if steps.min() < 0 or steps.max() >= T or (np.diff(steps) <= 0).any():
        raise ValueError(
            f"respace needs strictly rising steps in 0..{T - 1}, got {steps.min()}..{steps.max()}"
            f"{', not strictly rising' if (np.diff(steps) <= 0).any() else ''}. Samplers walk the "
            "grid downwards by themselves."
        )
    # log(1-β_t) from β where β is small, for there the ratio of float32 ᾱs cancels (β' off by 6e-4
    # relative at β = 1e-4); from that ratio where β is near 1 and 1-β cancels instead (cosine's
    # last step, off by 1.3e-5).
    beta, alpha_bar, alpha_bar_prev = (
        np.asarray(table, dtype=np.float64)
        for table in (schedule.beta, schedule.alpha_bar, schedule.alpha_bar_prev)
    )
    with np.errstate(divide="ignore"):
        log_kept = np.where(beta < 0.5, np.log1p(-beta), np.log(alpha_bar / alpha_bar_prev))
    log_alpha_bar = np.cumsum(log_kept)[steps]
    new_beta = -np.expm1(np.diff(np.concatenate([[0.0], log_alpha_bar])))
    fed = np.asarray(schedule.timesteps)[steps]
    return _tables(new_beta, log_alpha_bar, fed, schedule.beta.dtype)


def spaced_timesteps(
    num_timesteps: int, num_steps: int, spacing: Spacing = "fractional"
) -> np.ndarray:
    """Chooses `num_steps` rising steps of 0..num_timesteps-1: int32 [num_steps], on the host.

    fractional  0 … T-1 by a fractional stride, rounded; both ends included (iDDPM §4)
    uniform     0, c, 2c, … for a whole stride c that gives exactly num_steps (DDIM §D.2, "linear")
    quadratic   (i √(0.8 T)/(S-1))² rounded down, dense near the data (DDIM §D.2, its CIFAR-10
    choice)
    leading     0, c, 2c, … with c = ⌊T/S⌋; may stop short of T (Lin et al. 2023, §3.3)
    trailing    T-1 downwards by T/S, rounded; always includes the last step (Lin et al. 2023, §3.3)

    Where the quadratic rule names a step twice, later ones move up by one: S steps are always
    returned. Raises ValueError when S is not in 1..T, for an unknown spacing, and for "uniform"
    when no whole stride gives exactly S steps.
    """
    _check_num_timesteps("spaced_timesteps", num_timesteps)
    if isinstance(num_steps, bool) or int(num_steps) != num_steps:
        raise ValueError(f"spaced_timesteps needs a whole num_steps, got {num_steps!r}.")
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(
            f"spaced_timesteps needs 1 <= num_steps <= num_timesteps, got {num_steps=}, "
            f"{num_timesteps=}. A sampler cannot take more steps than the process has."
        )
    T, S = int(num_timesteps), int(num_steps)
    if spacing == "fractional":
        stride = (T - 1) / (S - 1) if S > 1 else 0.0
        # Added up rather than multiplied out: the sums that fall on .5 then round as in the
        # authors' code.
        steps = np.round(np.cumsum(np.concatenate([[0.0], np.full(S - 1, stride)])))
    elif spacing == "uniform":
        strides = [c for c in range(1, T + 1) if -(-T // c) == S]
        if not strides:
            near = sorted({-(-T // c) for c in range(1, T + 1)}, key=lambda n: (abs(n - S), n))[:2]
            raise ValueError(
                f"spaced_timesteps: no whole stride picks exactly {S} of {T} steps. Use {near[0]} "
                f"or {near[1]} steps, or the spacing 'fractional', 'leading' or 'trailing'."
            )
        steps = np.arange(0, T, strides[0])
    elif spacing == "quadratic":
        steps = np.floor(np.linspace(0.0, math.sqrt(0.8 * T), S) ** 2)
        index = np.arange(S)
        steps = np.maximum.accumulate(steps - index) + index
        steps = np.minimum(steps, T - S + index)
    elif spacing == "leading":
        steps = np.arange(S) * (T // S)
    elif spacing == "trailing":
        steps = np.sort(np.round(T - np.arange(S) * (T / S)) - 1)
    else:
        raise ValueError(f"spaced_timesteps knows the spacings {SPACINGS}, got {spacing!r}.")
    return steps.astype(np.int32)
