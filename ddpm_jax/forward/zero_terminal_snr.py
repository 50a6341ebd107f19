"""Zero terminal SNR: a schedule stretched until nothing of x_0 is left in x_T (Lin et al. 2023)."""

from __future__ import annotations

import dataclasses

import numpy as np

from ddpm_jax.forward.schedule import NoiseSchedule, build_tables


def log_alpha_bar_of(schedule: NoiseSchedule) -> np.ndarray:
    """log ᾱ_t [T] in float64 from tables of less: its differences are as good as β is.

    From the table of ᾱ itself they would not be: β of 1e-3 between two float32 ᾱs is off by 1e-4
    relative. Where β is near 1, it is 1-β that cancels, and the ratio of ᾱs that is good.
    """
    beta, alpha_bar, alpha_bar_prev = (
        np.asarray(table, dtype=np.float64)
        for table in (schedule.beta, schedule.alpha_bar, schedule.alpha_bar_prev)
    )
    with np.errstate(divide="ignore"):
        log_kept = np.where(beta < 0.5, np.log1p(-beta), np.log(alpha_bar / alpha_bar_prev))
    return np.cumsum(log_kept)


def rescale_zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """Shifts and scales √ᾱ: its last value becomes 0, its first stays (Lin et al. 2023, Alg. 1).

        √ᾱ'_t = (√ᾱ_t - √ᾱ_{T-1}) √ᾱ_0 / (√ᾱ_0 - √ᾱ_{T-1})

    Training and sampling then agree about x_T, which is pure noise in both. ε and the score say
    nothing about x_0 at the last step: train with the target v or x_0, and sample on a grid that
    includes the last step (spacing "trailing" or "fractional"). A host function; timesteps stay.

    Raises ValueError for a process of one step, which has nothing to stretch.
    """
    if schedule.num_timesteps < 2:
        raise ValueError(
            "rescale_zero_terminal_snr needs a schedule of 2 steps or more, got one of "
            f"{schedule.num_timesteps}: its first √ᾱ stays and its last becomes 0."
        )
    log_alpha_bar = log_alpha_bar_of(schedule)
    signal = np.exp(0.5 * log_alpha_bar)
    first, last = signal[0], signal[-1]
    # log(√ᾱ'_t/√ᾱ_t), exactly 0 at t = 0: 1-ᾱ_0 keeps its digits.
    drop = last * (signal[:-1] - first) / (signal[:-1] * (first - last))
    log_stretch = np.append(np.log1p(drop), -np.inf)
    log_alpha_bar = log_alpha_bar + 2.0 * log_stretch
    beta = -np.expm1(np.diff(np.concatenate([[0.0], log_alpha_bar])))
    built = build_tables(beta, log_alpha_bar, np.asarray(schedule.timesteps), schedule.beta.dtype)
    # The first entries to the bit, where a second rounding could have moved them by an ulp.
    kept = {
        name: getattr(built, name).at[0].set(getattr(schedule, name)[0])
        for name in ("beta", "alpha_bar", "signal_scale", "noise_scale", "log_snr")
    }
    return dataclasses.replace(built, **kept)
