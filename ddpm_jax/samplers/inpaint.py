"""Inpainting with an unconditional model: the known region is put back after every step.

Song et al. 2020 (arXiv 2011.13456, §I.2); resampling: RePaint, Lugmayr et al. 2022 (2201.09865).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.checks import check_finite, check_real, check_whole, host_values
from ddpm_jax.forward.process import at_step
from ddpm_jax.samplers.base import (
    Sampler,
    StepResult,
    check_sampler,
    level_at,
    skip_at_last_step,
    split_draws,
)
from ddpm_jax.types import Array, ArrayLike, as_array, describe


def inpaint(
    sampler: Sampler, known: ArrayLike, mask: ArrayLike, *, num_resamples: int = 1
) -> Sampler:
    """A sampler that keeps `known` exactly where mask is True, and fills in the rest.

    After each step of `sampler` the known region is replaced by q(x_{t-1} | x_0 = known) with fresh
    noise, at the end by the known values themselves. With num_resamples = U > 1 each step is then
    repeated U-1 times: x is diffused back by q(x_t | x_{t-1}) = N(√(1-β_t) x_{t-1}, β_t I), stepped
    and replaced again (RePaint Algorithm 1 without longer jumps), except at the last step.

    One replacement per step is only an approximation: the unknown region follows the known one only
    as far as one denoising step carries, and comes out too close to unconditional. Resampling lets
    the two agree at U times the evaluations, but repeats the sampler's own error in variance too.
    Measured on correlated Gaussian data with 250 ancestral steps, the error of the conditional mean
    0.39 is 0.14, 0.07, 0.03 and 0.006 for U = 1, 2, 5 and 20; with U = 20 the conditional variance
    0.09 is met to 0.001 with fixed_large, and is 0.02 short with fixed_small.

    Needs (sampler.num_draws + 2) U - 1 draws per step.

    Args:
        sampler: any sampler.
        known: the data, floating point, of the samples' shape [B, ...], of one event's, or [].
        mask: bool, True = known; of the samples' shape [B, ...], of one event's, or []; axes of
            size 1 are broadcast, as in [H, W, 1].
        num_resamples: U, at least 1; RePaint uses 10.

    Raises ValueError for num_resamples below 1, a mask that is not bool, NaN or infinity where mask
    is True, and, while sampling, for shapes that do not fit x; TypeError if `sampler` is no Sampler
    or `known` is not floating point.

    >>> left = jnp.arange(8) < 4
    >>> sampler = dj.inpaint(dj.ddim(dj.linear_schedule(10)), jnp.zeros(8), left)
    >>> sampler.num_draws
    1
    """
    check_sampler("inpaint", sampler)
    num_resamples = check_whole("inpaint", "num_resamples", num_resamples)
    check_real("inpaint", known=known)
    if as_array("inpaint", "mask", mask).dtype != jnp.bool_:
        raise ValueError(
            f"inpaint needs a bool mask, True where the data is known, got {describe(mask)}. Many "
            "tools mark the region to fill instead: compare and, if need be, negate."
        )
    _check_known(known, mask)
    known, mask = jnp.asarray(known), jnp.asarray(mask)
    schedule = sampler.schedule
    per_round = sampler.num_draws + 2
    num_draws = per_round * num_resamples - 1

    def step(denoise, x_t, t, noise, state):
        ndim = x_t.ndim
        x_0, is_known = _fit("known", known, x_t, ()), _fit("mask", mask, x_t, (1,))
        there = level_at(schedule, t - 1, ndim)

        def step_and_replace(x, noises):
            own = split_draws(noises, sampler.num_draws + 1, 0, sampler.num_draws)
            fresh = split_draws(noises, sampler.num_draws + 1, sampler.num_draws, 1)
            # A multistep sampler remembers the steps before this one, not its earlier tries.
            result = sampler.step(denoise, x, t, own, state)
            noised = there.signal * x_0 + there.noise * fresh
            return jnp.where(is_known, noised, result.x).astype(x.dtype), *result[1:]

        first = split_draws(noise, num_draws, 0, sampler.num_draws + 1)
        moved = step_and_replace(x_t, first)
        if num_resamples > 1:
            kept = at_step(schedule.signal_scale, t, ndim) / there.signal
            beta = at_step(schedule.beta, t, ndim)
            rounds = jnp.reshape(
                noise[sampler.num_draws + 1 :], (num_resamples - 1, per_round, *x_t.shape)
            )

            def again(moved, noises):
                x_again = (kept * moved[0] + jnp.sqrt(beta) * noises[0]).astype(x_t.dtype)
                rest = split_draws(noises, per_round, 1, sampler.num_draws + 1)
                return step_and_replace(x_again, rest), None

            moved = skip_at_last_step(t, moved, lambda moved: jax.lax.scan(again, moved, rounds)[0])
        return StepResult(*moved)

    return Sampler(schedule, sampler.init, step, num_draws)


def _check_known(known: ArrayLike, mask: ArrayLike) -> None:
    """Raises ValueError for known values that are not finite, if the host can read both arrays."""
    values, where = host_values(known), host_values(mask)
    if values is None or where is None:
        return
    try:
        values, where = np.broadcast_arrays(values, where)
    except ValueError:  # such shapes cannot fit x either
        return
    check_finite("inpaint", known=values[where])


def _fit(name: str, value: Array, x: Array, broadcast: tuple[int, ...]) -> Array:
    """`value` broadcast to x's shape [B, ...] from [B, ...], one event's shape or [].

    Axes may also have a size in `broadcast`.
    """
    ends = x.shape[x.ndim - value.ndim :]
    if value.ndim not in (0, x.ndim - 1, x.ndim) or any(
        size not in (*broadcast, full) for size, full in zip(value.shape, ends, strict=True)
    ):
        also = " (axes of size 1 are broadcast, as in [H, W, 1])" if broadcast else ""
        raise ValueError(
            f"inpaint needs {name} of the samples' shape {x.shape}, of one event's {x.shape[1:]}"
            f"{also} or [], got {value.shape}."
        )
    return jnp.broadcast_to(value, x.shape)
