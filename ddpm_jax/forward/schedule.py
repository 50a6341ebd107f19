"""The tables of a process: how much of x_0 is left after each step, and how much noise came in.

    β_t          variance added by step t:             q(x_t | x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I)
    ᾱ_t          Π_{i≤t} (1-β_i), with ᾱ before the first step equal to 1
    signal_scale √ᾱ_t          noise_scale √(1-ᾱ_t)          log_snr  log ᾱ_t - log(1-ᾱ_t)
    β̃_t          posterior variance (1-ᾱ_{t-1})/(1-ᾱ_t) β_t

Every table is computed in float64 on the host and then cast. The bare name "alpha" is used nowhere:
it means 1-β in one half of the literature and √ᾱ in the other.

Ho, Jain, Abbeel 2020 (arXiv 2006.11239).
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.types import Array, ArrayLike


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


def check_num_timesteps(name: str, num_timesteps: int) -> None:
    """Raises ValueError, in the name of the call, unless T is a whole number of at least 1."""
    if isinstance(num_timesteps, bool) or int(num_timesteps) != num_timesteps or num_timesteps < 1:
        raise ValueError(
            f"{name} needs num_timesteps, a whole number of at least 1, got {num_timesteps!r}. "
            "Ho et al. (2020) use 1000."
        )


def build_tables(
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
    return build_tables(beta, log_alpha_bar, np.arange(beta.size), dtype)


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
    return build_tables(beta, log_alpha_bar, np.arange(alpha_bar.size), dtype)


def schedule_from_noise_levels(sigmas: ArrayLike, *, dtype=jnp.float32) -> NoiseSchedule:
    """Builds the process that visits the noise levels σ [L]: ᾱ = 1/(1+σ²), least noise first.

    x_t/√ᾱ_t = x_0 + σ_t ε is NCSN's variance-exploding process; this is the same one, scaled to
    keep its variance. The ladder may fall, as the papers write it, or rise. Raises ValueError
    unless it does so strictly, between 0 and infinity.
    """
    ladder = np.asarray(sigmas, dtype=np.float64)
    if ladder.ndim != 1 or ladder.size == 0:
        raise ValueError(
            f"schedule_from_noise_levels needs levels of shape [L], got shape {ladder.shape}."
        )
    rising = ladder if ladder[0] < ladder[-1] else ladder[::-1]
    if not (rising > 0).all() or not np.isfinite(rising).all() or (np.diff(rising) <= 0).any():
        raise ValueError(
            "schedule_from_noise_levels needs finite levels above 0, strictly falling or rising; "
            f"got {ladder.tolist()[:8]}{'…' if ladder.size > 8 else ''}."
        )
    log_alpha_bar = -np.log1p(rising**2)
    beta = -np.expm1(np.diff(np.concatenate([[0.0], log_alpha_bar])))
    return build_tables(beta, log_alpha_bar, np.arange(ladder.size), dtype)
