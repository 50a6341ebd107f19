"""A process on a subset of its steps: which steps, and the schedule that visits only those.

The steps are chosen, and β recomputed, on the host in float64; the network is fed the numbers of
the process it was trained on (iDDPM §4).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from ddpm_jax.forward.schedule import NoiseSchedule, build_tables, check_num_timesteps
from ddpm_jax.types import ArrayLike

Spacing = Literal["fractional", "uniform", "quadratic", "leading", "trailing"]
SPACINGS: tuple[Spacing, ...] = ("fractional", "uniform", "quadratic", "leading", "trailing")


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
    return build_tables(new_beta, log_alpha_bar, fed, schedule.beta.dtype)


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
    check_num_timesteps("spaced_timesteps", num_timesteps)
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
