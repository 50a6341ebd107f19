"""What the bound says about coding: bits sent against error left, and means over examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.checks import host_table
from ddpm_jax.likelihood.variational import VariationalBound
from ddpm_jax.types import Array, ArrayLike, describe


class RateDistortion(NamedTuple):
    """Progressive coding, step by step, averaged over examples (Ho et al. 2020, §4.3, Figure 5).

    Attributes:
        rate: bits/dim [T] received when x_t is known, from t = T-1 to t = 0; rising.
        distortion: RMSE [T] of the x̂_0 estimated from that x_t, in pixel levels of 0..255.
        rate_bits: [], L_T + Σ_{t≥1} L_t, the lossy part of the code; the last entry of `rate`.
        distortion_bits: [], L_0, the bits that make the code lossless.
    """

    rate: Array
    distortion: Array
    rate_bits: Array
    distortion_bits: Array


def rate_distortion(bound: VariationalBound) -> RateDistortion:
    """Bits sent against error left, while x_0 is sent coarse to fine (Ho et al. 2020, §4.3).

    x_{T-1} costs L_T, every x_{t-1} after it L_t, and x_0 itself, at the end, L_0 (the code's t).
    The receiver of x_t has got L_T + Σ_{s>t} L_s bits/dim and estimates x̂_0(x_t), with the error

        127.5 √(‖x_0 - x̂_0‖²/d)       [-1, 1] being 255 levels wide

    per example, then averaged, as the rate is. All entries are means over examples, so equal
    batches may be averaged. Raises TypeError unless it gets the bound of one variance.

    Example:
        >>> one = jnp.ones((2, 3))
        >>> bound = dj.likelihood.VariationalBound(one[0], one, 3 * one[0], one, one)
        >>> dj.rate_distortion(bound).rate
        Array([1., 2.], dtype=float32)
    """
    if not isinstance(bound, VariationalBound) or isinstance(bound.terms, Mapping):
        raise TypeError(
            f"rate_distortion needs a VariationalBound of one variance, got {describe(bound)}. Of "
            "several pick one: bound._replace(terms=bound.terms[name], total=bound.total[name])."
        )
    terms = jnp.mean(bound.terms, axis=1)[::-1]
    prior = jnp.mean(bound.prior)
    rate = prior + jnp.concatenate([jnp.zeros_like(terms[:1]), jnp.cumsum(terms[:-1])])
    distortion = 127.5 * jnp.mean(jnp.sqrt(bound.x_0_mse), axis=1)[::-1]
    return RateDistortion(rate, distortion, rate[-1], terms[-1])


def mean_and_standard_error(values: ArrayLike) -> tuple[float, float]:
    """Mean and standard error s/√N of values [N], in float64 on the host; s² divides by N-1.

    Raises ValueError for fewer than two values, which have no spread; TypeError for traced values.

    Example:
        >>> dj.likelihood.mean_and_standard_error([1.0, 2.0, 3.0, 2.0])[0]
        2.0
    """
    values = host_table("mean_and_standard_error", "values, one per example", values)
    if values.size < 2:
        raise ValueError(
            "mean_and_standard_error needs one value per example, [N] with N of at least 2, got "
            f"shape {values.shape}."
        )
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))
