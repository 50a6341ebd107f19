"""Schedules made from schedules: a process on a subset of its steps, and zero terminal SNR.

The steps are chosen, and β recomputed, on the host in float64. A respaced process gives the network
the numbers of the process it was trained on (iDDPM §4).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from ddpm_jax.forward.checks import check_choice, check_kind, check_number, check_whole, host_table
from ddpm_jax.forward.schedule import NoiseSchedule, check_num_timesteps, from_log_alpha_bar
from ddpm_jax.types import ArrayLike, host_array

Spacing = Literal["fractional", "uniform", "quadratic", "leading", "trailing"]
SPACINGS: tuple[Spacing, ...] = ("fractional", "uniform", "quadratic", "leading", "trailing")


def _check_host_schedule(call: str, schedule: NoiseSchedule) -> None:
    """Raises TypeError, in the name of the call, for a schedule that is traced or none at all."""
    check_kind(call, "schedule", schedule, NoiseSchedule, "such as linear_schedule()")
    host_array(call, "the schedule", schedule.beta)


def log_alpha_bar_of(call: str, schedule: NoiseSchedule) -> np.ndarray:
    """log ᾱ_t [T] in float64 from lower-precision tables, with differences as accurate as β.

    Raises TypeError, in the name of the call, for a schedule that is traced or none at all.
    """
    _check_host_schedule(call, schedule)
    beta, alpha_bar, alpha_bar_prev = (
        np.asarray(table, dtype=np.float64)
        for table in (schedule.beta, schedule.alpha_bar, schedule.alpha_bar_prev)
    )
    # log(1-β_t) from β where β is small, for there the ratio of float32 ᾱs cancels (β' off by 6e-4
    # relative at β = 1e-4); from that ratio where β is near 1 and 1-β cancels instead (cosine's
    # last step, off by 1.3e-5).
    with np.errstate(divide="ignore"):
        log_kept = np.where(beta < 0.5, np.log1p(-beta), np.log(alpha_bar / alpha_bar_prev))
    return np.cumsum(log_kept)


def respace(schedule: NoiseSchedule, timesteps: ArrayLike) -> NoiseSchedule:
    """The process that visits only the steps τ = `timesteps`, rising, of `schedule`.

    β'_i = 1 - ᾱ_{τ_i}/ᾱ_{τ_{i-1}}, while ᾱ and the number that the network receives stay those of
    τ_i (iDDPM §4). A host function: the schedule must be concrete. Raises ValueError for steps that
    repeat, fall, or lie outside the schedule, and TypeError for steps that are not integers.

    Example:
        >>> dj.respace(dj.linear_schedule(1000), [0, 500, 999]).timesteps
        Array([  0, 500, 999], dtype=int32)
    """
    log_alpha_bar = log_alpha_bar_of("respace", schedule)
    steps = host_table("respace", "steps (`spaced_timesteps` makes some)", timesteps, integer=True)
    T = schedule.num_timesteps
    if steps.min() < 0 or steps.max() >= T or (np.diff(steps.astype(np.int64)) <= 0).any():
        raise ValueError(
            f"respace needs strictly rising steps in 0..{T - 1}, got {steps.tolist()[:8]}"
            f"{'…' if steps.size > 8 else ''}. Samplers run down the grid by themselves."
        )
    network_timesteps = np.asarray(schedule.timesteps)[steps]
    return from_log_alpha_bar(log_alpha_bar[steps], network_timesteps, schedule.beta.dtype)


def spaced_timesteps(
    num_timesteps: int, num_steps: int, spacing: Spacing = "fractional"
) -> np.ndarray:
    """Chooses `num_steps` rising steps of 0..num_timesteps-1: int32 [num_steps], on the host.

    fractional  0 … T-1 by a fractional stride, rounded; both ends included (iDDPM §4)
    uniform     0, c, 2c, … for a whole stride c that gives exactly num_steps (DDIM §D.2, "linear")
    quadratic   (i √(0.8 T)/(S-1))² rounded down, dense near the data (DDIM §D.2, for CIFAR-10)
    leading     0, c, 2c, … with c = ⌊T/S⌋; may stop short of T (Lin et al. 2023, §3.3)
    trailing    T-1 downwards by T/S, rounded; always includes the last step (Lin et al. 2023, §3.3)

    Where the quadratic rule names a step twice, later ones move up by one: S steps are always
    returned. A single step is T-1 with every spacing, because it must start from x_T ~ N(0, I).
    Raises ValueError when S is not in 1..T, for an unknown spacing, and for "uniform"
    when no whole stride gives exactly S steps.

    Example:
        >>> dj.spaced_timesteps(1000, 5, "trailing")
        array([199, 399, 599, 799, 999], dtype=int32)
    """
    T = check_num_timesteps("spaced_timesteps", num_timesteps)
    remedy = "A sampler cannot take more steps than the process has."
    S = check_whole("spaced_timesteps", "num_steps", num_steps, most=T, remedy=remedy)
    check_choice("spaced_timesteps", "spacing", spacing, SPACINGS)
    if S == 1:
        steps = np.array([T - 1])
    elif spacing == "fractional":
        stride = (T - 1) / (S - 1)
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
        steps = _distinct(np.floor(np.linspace(0.0, math.sqrt(0.8 * T), S) ** 2), T)
    elif spacing == "leading":
        steps = np.arange(S) * (T // S)
    else:
        steps = np.sort(np.round(T - np.arange(S) * (T / S)) - 1)
    return steps.astype(np.int32)


def karras_timesteps(
    schedule: NoiseSchedule, num_steps: int, rho: float = 7.0, *, sigma_max: float = math.inf
) -> np.ndarray:
    """EDM's grid on a discrete process: strictly rising int32 [num_steps], on the host.

    σ_i = (σ_max^{1/ρ} + i/(S-1) (σ_min^{1/ρ} - σ_max^{1/ρ}))^ρ, i = 0 … S-1, each replaced by the
    step of nearest σ; where two fall on one step, later ones move up by one. σ_min is the
    schedule's, σ_max its largest that is finite and at most `sigma_max` (EDM uses 80). ρ = ∞ is the
    limit, even in log σ and in the log SNR (Lu et al. 2022, 2206.00927, §4). Raises ValueError when
    that leaves fewer than num_steps steps, and for rho <= 0; TypeError for a traced
    schedule. Karras et al. 2022 (arXiv 2206.00364), Eq. 5.

    >>> steps = dj.karras_timesteps(dj.linear_schedule(), 18)
    >>> int(steps[0]), int(steps[-1])
    (0, 999)
    """
    call = "karras_timesteps"
    _check_host_schedule(call, schedule)
    sigma_max = check_number(call, "sigma_max", sigma_max, "EDM uses 80.", within="(0, inf]")
    check_number(call, "rho", rho, "EDM uses 7.", within="(0, inf]")
    sigma = np.exp(-0.5 * host_array(call, "the schedule", schedule.log_snr, np.float64))
    sigma = sigma[np.isfinite(sigma) & (sigma <= sigma_max)]
    T = sigma.size
    remedy = f"{T} steps have a finite σ <= {sigma_max}."
    S = check_whole(call, "num_steps", num_steps, most=T, remedy=remedy)
    if rho == math.inf:
        scale, wanted = np.log(sigma), np.linspace(np.log(sigma[0]), np.log(sigma[-1]), S)
    else:
        scale = sigma
        wanted = np.linspace(sigma[0] ** (1 / rho), sigma[-1] ** (1 / rho), S) ** rho
    wanted = scale[-1:] if S == 1 else wanted
    nearest = np.abs(scale[None, :] - wanted[:, None]).argmin(axis=1)
    return _distinct(nearest, T).astype(np.int32)


def _distinct(steps: np.ndarray, T: int) -> np.ndarray:
    """Makes steps [S] rise strictly within 0..T-1: where two coincide, later ones move up."""
    index = np.arange(steps.size)
    steps = np.maximum.accumulate(steps - index) + index
    return np.minimum(steps, T - steps.size + index)


def rescale_zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """Shifts and scales √ᾱ: its last value becomes 0, its first stays (Lin et al. 2023, Alg. 1).

        √ᾱ'_t = (√ᾱ_t - √ᾱ_{T-1}) √ᾱ_0 / (√ᾱ_0 - √ᾱ_{T-1})

    Training and sampling then agree about x_T, which is pure noise in both. ε and the score do not
    determine x_0 at the last step: train with the target v or x_0, and sample on a grid that
    includes the last step (spacing "trailing" or "fractional"). A host function; timesteps stay.

    Raises ValueError for a process of one step, which has nothing to stretch.

    Example:
        >>> dj.rescale_zero_terminal_snr(dj.linear_schedule(1000)).alpha_bar[-1]
        Array(0., dtype=float32)
    """
    log_alpha_bar = log_alpha_bar_of("rescale_zero_terminal_snr", schedule)
    if schedule.num_timesteps < 2:
        raise ValueError(
            "rescale_zero_terminal_snr needs a schedule of 2 steps or more, got one of "
            f"{schedule.num_timesteps}: its first √ᾱ stays and its last becomes 0."
        )
    signal = np.exp(0.5 * log_alpha_bar)
    first, last = signal[0], signal[-1]
    # log(√ᾱ'_t/√ᾱ_t), exactly 0 at t = 0: 1-ᾱ_0 keeps its digits.
    drop = last * (signal[:-1] - first) / (signal[:-1] * (first - last))
    log_stretch = np.append(np.log1p(drop), -np.inf)
    stretched = log_alpha_bar + 2.0 * log_stretch
    built = from_log_alpha_bar(stretched, np.asarray(schedule.timesteps), schedule.beta.dtype)
    # The first entries to the bit, where a second rounding could have moved them by an ulp.
    kept = {
        name: getattr(built, name).at[0].set(getattr(schedule, name)[0])
        for name in ("beta", "alpha_bar", "signal_scale", "noise_scale", "log_snr")
    }
    return dataclasses.replace(built, **kept)
