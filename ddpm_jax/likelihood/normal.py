"""Gaussians: divergence, density, and the probability of a pixel under one.

All values are elementwise, in nats, for means and log-variances that broadcast against each other;
the caller sums over an event's axes. Arguments named `log_variance` are logarithms of variances
(not of standard deviations). Half precision is computed in float32, and returned as it came. Each
function raises TypeError for arrays that are not floating-point.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.checks import check_broadcastable, check_whole
from ddpm_jax.types import Array, ArrayLike

LOG_2_PI = math.log(2 * math.pi)
"""A Python number: a NumPy number would turn float32 into float64 where JAX enables both."""
LEVELS = 256
"""Pixel levels: 0..255 lie at -1, -1 + 2/255, …, 1 (Ho et al. 2020, §3.3)."""


def normal_kl(
    mean: ArrayLike, log_variance: ArrayLike, other_mean: ArrayLike, other_log_variance: ArrayLike
) -> Array:
    """KL(N(m_1, v_1) ‖ N(m_2, v_2)) = ½ (log v_2 - log v_1 + v_1/v_2 - 1 + (m_1-m_2)²/v_2).

    Elementwise, in nats; arguments broadcast. With r = log v_1 - log v_2 the first terms are
    ½ (e^r - 1 - r), computed by expm1 to keep their digits where the variances are nearly equal.

    Example:
        >>> dj.likelihood.normal_kl(1.0, 0.0, 0.0, 0.0)
        Array(0.5, dtype=float32, weak_type=True)
    """
    check_broadcastable(
        "normal_kl",
        mean=mean,
        log_variance=log_variance,
        other_mean=other_mean,
        other_log_variance=other_log_variance,
    )
    dtype, (mean, log_variance, other_mean, other_log_variance) = _wide(
        mean, log_variance, other_mean, other_log_variance
    )
    ratio = log_variance - other_log_variance
    # Where e^r overflows the divergence is infinite, and its gradient is left 0: computed, it would
    # be ∞ - ∞, and one example would turn the gradient of its batch into NaN.
    infinite = ratio > math.log(jnp.finfo(ratio.dtype).max)
    ratio = jnp.where(infinite, 0.0, ratio)
    distance = _distance(mean, other_mean, jnp.where(infinite, 0.0, other_log_variance))
    kl = 0.5 * (jnp.expm1(ratio) - ratio + distance)
    return _narrow(jnp.where(infinite, jnp.inf, kl), dtype)


def normal_log_density(x: ArrayLike, mean: ArrayLike, log_variance: ArrayLike) -> Array:
    """log N(x; m, v) = -½ (log 2π + log v + (x-m)²/v), elementwise, in nats; arguments broadcast.

    Example:
        >>> f"{dj.likelihood.normal_log_density(0.0, 0.0, 0.0):.4f}"
        '-0.9189'
    """
    check_broadcastable("normal_log_density", x=x, mean=mean, log_variance=log_variance)
    dtype, (x, mean, log_variance) = _wide(x, mean, log_variance)
    density = -0.5 * (LOG_2_PI + log_variance + _distance(x, mean, log_variance))
    return _narrow(density, dtype)


def _distance(x: Array, mean: Array, log_variance: Array) -> Array:
    """(x-m)²/v, also where x = m and 1/v overflows: it is squared last, and multiplied in parts."""
    largest = math.log(jnp.finfo(log_variance.dtype).max) - 0.02
    part = jnp.exp(jnp.clip(-0.25 * log_variance, max=largest))
    return jnp.square((x - mean) * part * part)


def _wide(*values: ArrayLike) -> tuple[Any, list[Array]]:
    """The dtype of the result, and the values as arrays of it, or of float32 if that is wider."""
    arrays = [jnp.asarray(value) for value in values]
    dtype = jnp.result_type(*arrays)
    wide = jnp.promote_types(dtype, jnp.float32)
    # A cast would make strong types of Python's numbers.
    return dtype, [x if x.dtype == wide else x.astype(wide) for x in arrays]


def _narrow(x: Array, dtype: Any) -> Array:
    return x if x.dtype == dtype else x.astype(dtype)


@jax.custom_jvp
def log_cdf(x: ArrayLike) -> Array:
    """log Φ(x) of the standard normal, elementwise, accurate in the tail, and so its derivative."""
    # Three terms of the tail's series are exact to float32, not to float64: at -20, where JAX
    # begins to use it, the fourth is 4e-9.
    order = 10 if jnp.asarray(x).dtype == jnp.float64 else 3
    return jax.scipy.special.log_ndtr(x, series_order=order)


@log_cdf.defjvp
def _log_cdf_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    value = log_cdf(x)
    # φ(x)/Φ(x). Far below the mean exp(log φ - log Φ) is the difference of two numbers of the size
    # of x²/2 (off by a factor of 3 at -10⁴ in float32); there the asymptotic series is exact.
    far = -40.0 if jnp.asarray(x).dtype == jnp.float64 else -10.0
    inverse = 1.0 / jnp.square(jnp.minimum(x, far))
    series = 1.0
    for odd in (9.0, 7.0, 5.0, 3.0, 1.0):
        series = 1.0 - odd * inverse * series
    near = jnp.maximum(x, far)
    body = jnp.exp(-0.5 * (near * near + LOG_2_PI) - jnp.where(x < far, 0.0, value))
    return value, dx * jnp.where(x < far, -x / series, body)


def discretized_log_likelihood(
    x_0: ArrayLike, mean: ArrayLike, log_variance: ArrayLike, *, levels: int = LEVELS
) -> Array:
    """log of N(m, v) integrated over the bin of x_0: the decoder of Ho et al. 2020, Eq. 13.

        ∫ N(x; m, v) dx from x_0 - 1/(levels-1) to x_0 + 1/(levels-1),

    the bins at -1 and 1 open towards -∞ and ∞, so that the bins of all levels sum to one.
    Elementwise, in nats, with the exact normal distribution function, as accurate as the dtype of
    the arguments: it underflows only where that dtype cannot hold the logarithm.

    Args:
        x_0: data [...] on the grid -1, -1 + 2/(levels-1), …, 1.
        mean: of the decoder; broadcasts with x_0.
        log_variance: of the decoder, a logarithm; broadcasts with x_0.
        levels: values that a pixel can take, at least 2.

    Raises TypeError for uint8 pixels (use `from_pixels`), ValueError for fewer than 2 levels.

    Example:
        >>> log_p = dj.discretized_log_likelihood(jnp.linspace(-1, 1, 256), 0.2, -3.0)
        >>> f"{jnp.exp(log_p).sum():.4f}"
        '1.0000'
    """
    call = "discretized_log_likelihood"
    levels = check_whole(call, "levels", levels, least=2)
    check_broadcastable(call, x_0=x_0, mean=mean, log_variance=log_variance)
    dtype, (x_0, mean, log_variance) = _wide(x_0, mean, log_variance)
    half = 1.0 / (levels - 1)
    near, _ = _edges(x_0, mean, log_variance, half)
    # Where the square overflows the logarithm is -∞, with a gradient of 0 as in `normal_kl`.
    lost = near < -math.sqrt(jnp.finfo(near.dtype).max)
    mean, log_variance = jnp.where(lost, x_0, mean), jnp.where(lost, 0.0, log_variance)
    value = _log_bin(x_0, mean, log_variance, half)
    return _narrow(jnp.where(lost, -jnp.inf, value), dtype)


def _precision(log_variance: Array) -> Array:
    """1/σ, kept finite: an infinite one would turn gradients of 0 into NaN."""
    largest = math.log(jnp.finfo(log_variance.dtype).max) - 0.02
    return jnp.exp(jnp.clip(-0.5 * log_variance, max=largest))


def _edges(x_0: Array, mean: Array, log_variance: Array, half: float) -> tuple[Array, Array]:
    """The bin's nearer and farther edge in standard deviations, above 0 if the mean is inside.

    Below the mean the probability is Φ(upper) - Φ(lower), above it the same bin seen from the other
    tail: the difference of two numbers close to 1 would be rounding. The open bins are one whole
    tail, up to their nearer edge.
    """
    precision, largest = _precision(log_variance), jnp.finfo(log_variance.dtype).max
    # Finite as well: log Φ has no finite slope at -∞.
    upper, lower = (
        jnp.clip((x_0 - mean + side) * precision, -largest, largest) for side in (half, -half)
    )
    flip = x_0 > mean
    low, high = x_0 < -1.0 + half, x_0 > 1.0 - half
    near = jnp.where(low | (~flip & ~high), upper, -lower)
    return near, jnp.where(flip, -upper, lower)


def _log_bin(x_0: Array, mean: Array, log_variance: Array, half: float) -> Array:
    precision, log_precision = _precision(log_variance), -0.5 * log_variance
    low, high = x_0 < -1.0 + half, x_0 > 1.0 - half
    log_near, log_far = map(log_cdf, _edges(x_0, mean, log_variance, half))
    # log(e^a - e^b) = a + log(1 - e^{b-a}); b < a but for rounding and where both are -∞.
    two_sided = ~(low | high) & (log_near > log_far)
    wide = log_near + jnp.log(-jnp.expm1(jnp.where(two_sided, log_far - log_near, -1.0)))
    # Where the density hardly changes over a bin of half-width δ, at c from the mean in standard
    # deviations, the two logarithms agree in most of their digits. There Gauss–Legendre quadrature
    # of ∫ φ(c+δu)/φ(c) δ du is exact to rounding: with (c+1)δ < ½ four nodes are off by 1e-9
    # relative, and eight by less than 1e-16.
    delta = half * precision
    center = jnp.abs(x_0 - mean) * precision
    narrow = (center + 1.0) * delta < 0.5
    c, d = jnp.where(narrow, center, 0.0), jnp.where(narrow, delta, 0.25)
    nodes, weights = np.polynomial.legendre.leggauss(8 if c.dtype == jnp.float64 else 4)
    ratio = sum(
        float(w) * jnp.exp(-d * float(u) * (c + 0.5 * d * float(u)))
        for u, w in zip(nodes, weights, strict=True)
    )
    # Not log d: where the deviation is huge, d underflows.
    density = math.log(half) + log_precision - 0.5 * (jnp.square(c) + LOG_2_PI) + jnp.log(ratio)
    return jnp.where(low | high, log_near, jnp.where(narrow, density, wide))
