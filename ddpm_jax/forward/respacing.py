"""A process on a subset of its steps: which steps, and the schedule that visits only those.

The steps are chosen, and β recomputed, on the host in float64; the network is fed the numbers of
the process it was trained on (iDDPM §4).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from ddpm_jax.forward.schedule import NoiseSchedule, build_tables, check_num_timesteps
from ddpm_jax.types import ArrayLike, host_array

Spacing = Literal["fractional", "uniform", "quadratic", "leading", "trailing"]
SPACINGS: tuple[Spacing, ...] = ("fractional", "uniform", "quadratic", "leading", "trailing")


def respace(schedule: NoiseSchedule, timesteps: ArrayLike) -> NoiseSchedule:
    """The process that visits only the steps τ = `timesteps`, rising, of `schedule`.

    β'_i = 1 - ᾱ_{τ_i}/ᾱ_{τ_{i-1}}, while ᾱ and what the network is fed stay those of τ_i (iDDPM
    §4). A host function: both arguments must be concrete. Raises ValueError for steps that repeat,
    fall, or lie outside the schedule, TypeError for traced arguments.

    >>> dj.respace(dj.linear_schedule(), [0, 499, 999]).num_timesteps
    3
    """
    steps = host_array("respace", "timesteps", timesteps)
    T = schedule.num_timesteps
    if steps.ndim != 1 or steps.size == 0 or steps.dtype.kind not in "iu":
        raise ValueError(
            f"respace needs a non-empty list of integer steps, got shape {steps.shape} and dtype "
            f"{steps.dtype}. `spaced_timesteps` makes one."
        )
    if steps.min() < 0 or steps.max() >= T or (np.diff(steps) <= 0).any():
        raise ValueError(
            f"respace needs strictly rising steps in 0..{T - 1}, got {steps.min()}..{steps.max()}"
            f"{', not strictly rising' if (np.diff(steps) <= 0).any() else ''}. Samplers "
            "themselves visit them downwards."
        )
    # log(1-β_t) from β where β is small, for there the ratio of float32 ᾱs cancels (β' off by 6e-4
    # relative at β = 1e-4); from that ratio where β is near 1 and 1-β cancels instead (cosine's
    # last step, off by 1.3e-5).
    beta, alpha_bar, alpha_bar_prev = (
        host_array("respace", "the schedule", table, np.float64)
        for table in (schedule.beta, schedule.alpha_bar, schedule.alpha_bar_prev)
    )
    with np.errstate(divide="ignore"):
        log_kept = np.where(beta < 0.5, np.log1p(-beta), np.log(alpha_bar / alpha_bar_prev))
    log_alpha_bar = np.cumsum(log_kept)[steps]
    new_beta = -np.expm1(np.diff(np.concatenate([[0.0], log_alpha_bar])))
    kept = np.asarray(schedule.timesteps)[steps]
    return build_tables(new_beta, log_alpha_bar, kept, schedule.beta.dtype)


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
    returned. A single step is T-1 with every spacing, because it must start from x_T ~ N(0, I).
    Raises ValueError when S is not in 1..T, for an unknown spacing, and for "uniform"
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
    if spacing not in SPACINGS:
        raise ValueError(f"spaced_timesteps knows the spacings {SPACINGS}, got {spacing!r}.")
    T, S = int(num_timesteps), int(num_steps)
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
    schedule's, σ_max its largest that is finite and at most `sigma_max` (EDM uses 80). Raises
    ValueError when that leaves fewer than num_steps steps, and for rho <= 0; TypeError for a traced
    schedule. Karras et al. 2022 (arXiv 2206.00364), Eq. 5.

    >>> steps = dj.karras_timesteps(dj.linear_schedule(), 18)
    >>> int(steps[0]), int(steps[-1])
    (0, 999)
    """
    log_snr = host_array("karras_timesteps", "the schedule", schedule.log_snr, np.float64)
    sigma = np.exp(-0.5 * log_snr)
    sigma = sigma[np.isfinite(sigma) & (sigma <= sigma_max)]
    T, S = sigma.size, num_steps
    if not 1 <= S <= T or not rho > 0:
        raise ValueError(
            f"karras_timesteps needs 1 <= num_steps <= {T}, the number of steps with a finite "
            f"σ <= {sigma_max}, and rho > 0, got {num_steps=}, {rho=}. EDM uses rho=7."
        )
    root = np.linspace(sigma[0] ** (1 / rho), sigma[-1] ** (1 / rho), S) if S > 1 else None
    wanted = sigma[-1:] if root is None else root**rho
    nearest = np.abs(sigma[None, :] - wanted[:, None]).argmin(axis=1)
    return _distinct(nearest, T).astype(np.int32)


def _distinct(steps: np.ndarray, T: int) -> np.ndarray:
    """Makes steps [S] rise strictly within 0..T-1: where two coincide, later ones move up."""
    index = np.arange(steps.size)
    steps = np.maximum.accumulate(steps - index) + index
    return np.minimum(steps, T - steps.size + index)
