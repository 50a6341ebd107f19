"""The tables of a process: how much of x_0 is left after each step, and how much noise came in.

    β_t          variance added by step t:             q(x_t | x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I)
    ᾱ_t          Π_{i≤t} (1-β_i), with ᾱ before the first step equal to 1
    signal_scale √ᾱ_t          noise_scale √(1-ᾱ_t)          log_snr  log ᾱ_t - log(1-ᾱ_t)
    β̃_t          posterior variance (1-ᾱ_{t-1})/(1-ᾱ_t) β_t

Every table is computed in float64 on the host and then cast. `schedule_from_beta`,
`schedule_from_alpha_bar` and `schedule_from_log_snr` also take traced tables, which they compute in
their own precision and differentiably. The bare name "alpha" is not used: it means 1-β in one half
of the literature and √ᾱ in the other.

Ho, Jain, Abbeel 2020 (arXiv 2006.11239).
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.checks import (
    check_floating_dtype,
    check_function,
    check_real,
    check_same_shape,
    check_steps,
    check_whole,
    host_table,
    real_table,
)
from ddpm_jax.types import Array, ArrayLike, describe


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
        timesteps: int32, the numbers that the network receives; arange(T) unless respaced.
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


def check_arguments(call: str, **arguments: Any) -> tuple[int, ...]:
    """Checks the arguments of a formula, given by name in the order of its signature.

    `schedule` must be a NoiseSchedule, `apply_fn` a function, `t` steps of the schedule, and all
    others events of one shape and a real floating-point dtype. Returns the events' shape, [B, ...].
    Raises TypeError or ValueError that names the call, the value and the right order.
    """
    schedule = arguments["schedule"]
    for name, value in arguments.items():
        if isinstance(value, NoiseSchedule) != (name == "schedule"):
            raise TypeError(
                f"{call} takes ({', '.join(arguments)}) in this order, a NoiseSchedule such as "
                f"linear_schedule(1000) as schedule; got {describe(value)} as {name}."
            )
    if "apply_fn" in arguments:
        check_function(call, "apply_fn", arguments["apply_fn"], "(x_t, timesteps) -> output")
    events = {k: v for k, v in arguments.items() if k not in ("schedule", "apply_fn", "t")}
    shape = check_same_shape(call, **events) if events else ()
    if "t" in arguments:
        batch = shape[:1] if events else None
        check_steps(call, arguments["t"], schedule.num_timesteps, batch)
    return shape


def lookup(table: ArrayLike, t: ArrayLike) -> Array:
    """Reads `table[t]`, of t's shape, from floats [T] for steps t in 0..T-1.

    An index outside the table gives NaN (for a host integer: a ValueError), where plain indexing
    would silently wrap -1 round to the last step and clamp T to it.

    Example:
        >>> dj.forward.lookup(jnp.array([0.1, 0.2]), jnp.array([1, 2]))
        Array([0.2, nan], dtype=float32)
    """
    check_real("lookup", table=table)
    table = jnp.asarray(table)
    check_steps("lookup", t, table.shape[0])
    indexed = table.at[jnp.asarray(t)]
    return indexed.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def timesteps_at(schedule: NoiseSchedule, t: ArrayLike) -> Array:
    """The network's numbers of steps t; also for NumPy tables with traced steps."""
    return jnp.asarray(schedule.timesteps)[at_least_32_bits(t)]


def at_least_32_bits(t: ArrayLike) -> Array:
    """Whole numbers t as an array that can hold T: int8 cannot, and T-1-t of uint8 wraps round."""
    t = jnp.asarray(t)
    return t if jnp.iinfo(t.dtype).bits >= 32 else t.astype(jnp.int32)


def rows_of_timesteps(schedule: NoiseSchedule, timesteps: ArrayLike) -> Array:
    """The index of each network timestep in `schedule.timesteps`; T (out of range) if absent."""
    network_timesteps = jnp.asarray(schedule.timesteps)
    near = jnp.minimum(jnp.searchsorted(network_timesteps, timesteps), network_timesteps.size - 1)
    return jnp.where(network_timesteps[near] == timesteps, near, network_timesteps.size)


def check_num_timesteps(call: str, num_timesteps: int) -> int:
    """T as an int. Raises ValueError, in the name of the call, unless it is whole and ≥ 1."""
    remedy = "Ho et al. (2020) use 1000."
    return check_whole(call, "num_timesteps", num_timesteps, remedy=remedy)


def build_tables(beta: Any, log_alpha_bar: Any, timesteps: np.ndarray, dtype) -> NoiseSchedule:
    """Builds every table from β and log ᾱ, both NumPy in float64 or both traced, then casts."""
    xp: Any = jnp if isinstance(log_alpha_bar, jax.Array) else np
    log_alpha_bar_prev = _shifted(log_alpha_bar)
    alpha_bar, alpha_bar_prev = xp.exp(log_alpha_bar), xp.exp(log_alpha_bar_prev)
    # 1-ᾱ by expm1: at t=0 it is about 1e-4, and subtracting from 1 in float32 would put it off by
    # 1.7e-4 relative.
    one_minus, one_minus_prev = 0.0 - xp.expm1(log_alpha_bar), 0.0 - xp.expm1(log_alpha_bar_prev)
    posterior_variance = one_minus_prev / one_minus * beta
    # The first entry is 0. Leaving it out of the logarithm keeps NaN out of the gradients.
    later = xp.log(posterior_variance[1:])
    first = later[:1] if len(beta) > 1 else xp.log(beta)
    posterior_log_variance = xp.concatenate([first, later])

    def cast(table: Any) -> Array:
        return jnp.asarray(table, dtype=dtype)

    return NoiseSchedule(
        beta=cast(beta),
        alpha_bar=cast(alpha_bar),
        alpha_bar_prev=cast(alpha_bar_prev),
        signal_scale=cast(xp.exp(0.5 * log_alpha_bar)),
        noise_scale=cast(xp.sqrt(one_minus)),
        posterior_variance=cast(posterior_variance),
        posterior_log_variance=cast(posterior_log_variance),
        log_snr=cast(log_alpha_bar - xp.log(one_minus)),
        timesteps=jnp.asarray(timesteps, dtype=jnp.int32),
    )


def _shifted(log_alpha_bar: Any) -> Any:
    """log ᾱ_{t-1} [T]: 0 before the first step."""
    xp: Any = jnp if isinstance(log_alpha_bar, jax.Array) else np
    return xp.concatenate([xp.zeros_like(log_alpha_bar[:1]), log_alpha_bar[:-1]])


def from_log_alpha_bar(log_alpha_bar: Any, timesteps: np.ndarray, dtype) -> NoiseSchedule:
    """Builds a schedule from log ᾱ_t [T], NumPy in float64 or traced: β_t = 1 - ᾱ_t/ᾱ_{t-1}."""
    xp: Any = jnp if isinstance(log_alpha_bar, jax.Array) else np
    beta = -xp.expm1(log_alpha_bar - _shifted(log_alpha_bar))
    return build_tables(beta, log_alpha_bar, timesteps, dtype)


def schedule_from_beta(beta: ArrayLike, *, dtype=jnp.float32) -> NoiseSchedule:
    """Builds a schedule from any table of β_t [T], each in (0, 1); only the last may be 1.

    A last β of 1 leaves no signal in x_T. Computed in float64 on the host, or, for a traced β,
    differentiably in its own precision, with its values unchecked. Raises ValueError for a table
    that is empty, not one-dimensional, or outside that range, and TypeError for values that are
    not real.

    Example:
        >>> dj.schedule_from_beta([0.1, 0.5]).alpha_bar
        Array([0.9 , 0.45], dtype=float32)
    """
    check_floating_dtype("schedule_from_beta", dtype)
    table: Any = real_table("schedule_from_beta", "β", beta)
    if isinstance(table, jax.Array):
        return build_tables(table, jnp.cumsum(jnp.log1p(-table)), np.arange(table.size), dtype)
    inside = (table > 0) & (table < 1)
    inside[-1] |= table[-1] == 1
    if not inside.all():
        worst = int(np.argmin(inside))
        raise ValueError(
            "schedule_from_beta needs every β in (0, 1), of which only the last may be 1; got "
            f"β[{worst}] = {table[worst]}. A step that adds no noise can be left out of the table."
        )
    with np.errstate(divide="ignore"):
        log_alpha_bar = np.cumsum(np.log1p(-table))
    return build_tables(table, log_alpha_bar, np.arange(table.size), dtype)


def schedule_from_alpha_bar(alpha_bar: ArrayLike, *, dtype=jnp.float32) -> NoiseSchedule:
    """Builds a schedule from any strictly falling table of ᾱ_t [T] in (0, 1); the last may be 0.

    β_t = 1 - ᾱ_t/ᾱ_{t-1}, with ᾱ before the first step equal to 1. Computed in float64 on the
    host, or, for a traced table, differentiably in its own precision, with its values unchecked:
    in float32 the table of `schedule_from_log_snr` keeps more digits, because ᾱ is near 1 at the
    first steps. Raises ValueError for any other table, and TypeError for values that are not real.

    Example:
        >>> dj.schedule_from_alpha_bar([0.9, 0.45]).beta
        Array([0.1, 0.5], dtype=float32)
    """
    check_floating_dtype("schedule_from_alpha_bar", dtype)
    table: Any = real_table("schedule_from_alpha_bar", "ᾱ", alpha_bar)
    if isinstance(table, jax.Array):
        return from_log_alpha_bar(jnp.log(table), np.arange(table.size), dtype)
    falling = np.diff(np.concatenate([[1.0], table])) < 0
    inside = falling & (table >= 0)
    if not inside.all():
        worst = int(np.argmin(inside))
        raise ValueError(
            "schedule_from_alpha_bar needs 1 > ᾱ_0 > ᾱ_1 > … >= 0, strictly falling; got "
            f"ᾱ[{worst}] = {table[worst]}"
            + (f" after ᾱ[{worst - 1}] = {table[worst - 1]}." if worst else ".")
            + " The value 1 before the first step is implied and must not be in the table."
        )
    with np.errstate(divide="ignore"):
        log_alpha_bar = np.log(table)
    return from_log_alpha_bar(log_alpha_bar, np.arange(table.size), dtype)


def schedule_from_log_snr(log_snr: ArrayLike, *, dtype=jnp.float32) -> NoiseSchedule:
    """Builds a schedule from a strictly falling table of log ᾱ_t/(1-ᾱ_t) [T]; the last may be -inf.

    ᾱ_t = sigmoid(log_snr_t). Computed in float64 on the host, or, for a traced table,
    differentiably in its own precision, with its values unchecked: so a schedule is learned
    (Kingma et al. 2021, 2107.00630; their γ is -log_snr, see `GammaNetwork`). Raises ValueError
    for a host table that does not fall or is infinite before its end, and TypeError for values
    that are not real.

    Example:
        >>> dj.forward.schedule_from_log_snr([0.0, -np.inf]).alpha_bar
        Array([0.5, 0. ], dtype=float32)
        >>> total = lambda x: dj.forward.schedule_from_log_snr(x).alpha_bar.sum()
        >>> jax.grad(total)(jnp.array([2.0, 0.0])).round(3)
        Array([0.105, 0.25 ], dtype=float32)
    """
    check_floating_dtype("schedule_from_log_snr", dtype)
    table: Any = real_table("schedule_from_log_snr", "log SNR", log_snr)
    if isinstance(table, jax.Array):
        log_alpha_bar = jax.nn.log_sigmoid(table)
        return from_log_alpha_bar(log_alpha_bar, np.arange(table.size), dtype)
    finite = np.isfinite(table[:-1]).all() and table[-1] < np.inf
    if not (finite and (np.diff(table) < 0).all()):
        raise ValueError(
            "schedule_from_log_snr needs a strictly falling table, finite but for a last -inf; got "
            f"{table.tolist()[:8]}{'…' if table.size > 8 else ''}. For γ = -log SNR, which "
            "rises, pass -γ."
        )
    return from_log_alpha_bar(-np.logaddexp(0.0, -table), np.arange(table.size), dtype)


def schedule_from_noise_levels(sigmas: ArrayLike, *, dtype=jnp.float32) -> NoiseSchedule:
    """Builds the process that visits the noise levels σ [L]: ᾱ = 1/(1+σ²), least noise first.

    x_t/√ᾱ_t = x_0 + σ_t ε is NCSN's variance-exploding process (Song, Ermon 2019, 1907.05600);
    this is the same one, scaled to keep its variance. The levels may fall, as the papers write
    them, or rise. A host function. Raises ValueError unless they do so strictly, between 0 and
    infinity, and TypeError for values that are traced or not real.

    Example:
        >>> dj.schedule_from_noise_levels([3.0, 1.0]).alpha_bar
        Array([0.5, 0.1], dtype=float32)
    """
    check_floating_dtype("schedule_from_noise_levels", dtype)
    levels = host_table("schedule_from_noise_levels", "σ", sigmas)
    rising = levels if levels[0] < levels[-1] else levels[::-1]
    if not (rising > 0).all() or not np.isfinite(rising).all() or (np.diff(rising) <= 0).any():
        raise ValueError(
            "schedule_from_noise_levels needs finite levels above 0, strictly falling or rising; "
            f"got {levels.tolist()[:8]}{'…' if levels.size > 8 else ''}."
        )
    return from_log_alpha_bar(-np.log1p(rising**2), np.arange(levels.size), dtype)
