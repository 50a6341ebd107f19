"""Exponential integrators over steps of a grid: what DPM-Solver++ and UniPC share.

In λ = log(√ᾱ/√(1-ᾱ)) a step from λ_t to λ_s = λ_t + h with x̂_0 = P(r), r = (λ - λ_t)/h, is

    x_s = √(1-ᾱ_s)/√(1-ᾱ_t) x_t + √ᾱ_s ∫_0^1 P(r) h e^{h(r-1)} dr

(Lu et al. 2022, arXiv 2211.01095, Eq. 8), and P interpolates the x̂_0 of neighbouring steps.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp

from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.process import at_step
from ddpm_jax.samplers.base import Level, level_at
from ddpm_jax.types import Array, bcast_right


class History(NamedTuple):
    """The x̂_0 [B, ...] of the steps before, the last one first, and how many are known [B]."""

    x_0_hats: tuple[Array, ...]
    known: Array


def no_history(x_T: Array, length: int) -> History:
    """The history before the first step."""
    return History((jnp.zeros_like(x_T),) * length, jnp.zeros(x_T.shape[:1], jnp.int32))


def remember(history: History, x_0_hat: Array, here: Level) -> History:
    """Adds a step's x̂_0. At λ = -∞ there is no place for it: the history starts after that step."""
    x_0_hats = (x_0_hat.astype(history.x_0_hats[0].dtype), *history.x_0_hats)[:-1]
    known = jnp.minimum(history.known + 1, len(x_0_hats))
    on_axis = jnp.isfinite(here.half_log_snr).reshape(known.shape)
    return History(x_0_hats, jnp.where(on_axis, known, 0))


class Interval(NamedTuple):
    """A step t → t-1: its ends, h (1 where infinite), e^{-h}, 1-e^{-2h} and 1-e^{-h}."""

    here: Level
    there: Level
    h: Array
    kept: Array
    lost_twice: Array
    lost: Array


def interval(schedule: NoiseSchedule, t: Array, ndim: int) -> Interval:
    """The step from grid step t [B], for events with `ndim` axes."""
    here, there = level_at(schedule, t, ndim), level_at(schedule, t - 1, ndim)
    h = there.half_log_snr - here.half_log_snr
    kept = here.signal / there.signal * there.noise / here.noise  # e^{-h}, also for h = ∞
    # 1-e^{-2h} is β_t/(1-ᾱ_t): no subtraction of two numbers close to 1.
    lost_twice = jnp.minimum(at_step(schedule.beta, t, ndim) / here.noise**2, 1.0)
    h = jnp.where(jnp.isfinite(h), h, 1.0)
    return Interval(here, there, h, kept, lost_twice, lost_twice / (1.0 + kept))


def nodes_before(schedule: NoiseSchedule, t: Array, step: Interval, known: Array, count: int):
    """r = (λ_{t+j} - λ_t)/h, j = 1 … count, of the steps before t; -j where they are unknown."""
    nodes, ndim = [], step.h.ndim
    for j in range(1, count + 1):
        before = level_at(schedule, jnp.minimum(t + j, schedule.num_timesteps - 1), ndim)
        usable = bcast_right(known >= j, ndim)
        there, here = (
            jnp.where(usable, level.half_log_snr, end)
            for level, end in ((before, -j * step.h), (step.here, 0.0))
        )
        nodes.append((there - here) / step.h)
    return nodes


def exponential_integral(step: Interval, nodes: list, values: list, count: Array) -> Array:
    """∫_0^1 P(r) h e^{h(r-1)} dr, P the polynomial with P(nodes[j]) = values[j], j < count [B].

    nodes[0] is 0. In Newton's form: Σ_k P[r_0 … r_k] ∫_0^1 Π_{j<k} (r - r_j) h e^{h(r-1)} dr. The
    slope of a line (count = 2) gets the weight (1-e^{-h})/2 instead, which is as good to its order:
    so do DPM-Solver++ 2M, and UniPC with B(h) = e^h - 1.
    """
    h, moments = step.h, [step.lost]  # ∫_0^1 r^k h e^{h(r-1)} dr
    for k in range(1, len(nodes)):
        terms = ((-h) ** n * (h * math.factorial(k) / math.factorial(k + n + 1)) for n in range(8))
        # By parts; for short steps that cancels, and the series in h is used.
        moments.append(jnp.where(h < 0.3, sum(terms), 1.0 - k * moments[-1] / h))
    total, differences, product = step.lost * values[0], list(values), [1.0]
    for k in range(1, len(nodes)):
        differences = [
            (upper - lower) / (nodes[j + k] - nodes[j])
            for j, (lower, upper) in enumerate(itertools.pairwise(differences))
        ]
        product = [
            up - nodes[k - 1] * same
            for up, same in zip([0.0, *product], [*product, 0.0], strict=True)
        ]
        weight = sum(c * moment for c, moment in zip(product, moments, strict=False))
        if k == 1:
            weight = jnp.where(bcast_right(count == 2, h.ndim), 0.5 * step.lost, weight)
        total = total + jnp.where(bcast_right(count > k, h.ndim), weight, 0.0) * differences[0]
    return total
