"""Gaussians: divergence, density, and the probability of a pixel under one.

All values are elementwise, in nats, for means and log-variances that broadcast against each other;
whoever calls sums over an event's axes. Arguments named `log_variance` are logarithms of variances
(not of standard deviations).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.types import Array, ArrayLike

LEVELS = 256
"""Pixel levels: 0..255 lie at -1, -1 + 2/255, …, 1 (Ho et al. 2020, §3.3)."""


def normal_kl(
    mean: ArrayLike, log_variance: ArrayLike, other_mean: ArrayLike, other_log_variance: ArrayLike
) -> Array:
    """KL(N(m_1, v_1) ‖ N(m_2, v_2)) = ½ (log v_2 - log v_1 + v_1/v_2 - 1 + (m_1-m_2)²/v_2).

    Elementwise, in nats. With r = log v_1 - log v_2 the first terms are ½ (e^r - 1 - r), computed
    by expm1 so that nearly equal variances cost what they should.
    """
    ratio = jnp.asarray(log_variance) - jnp.asarray(other_log_variance)
    distance = jnp.square(jnp.asarray(mean) - jnp.asarray(other_mean))
    return 0.5 * (jnp.expm1(ratio) - ratio + distance * jnp.exp(-jnp.asarray(other_log_variance)))


def normal_log_density(x: ArrayLike, mean: ArrayLike, log_variance: ArrayLike) -> Array:
    """log N(x; m, v) = -½ (log 2π + log v + (x-m)²/v), elementwise, in nats."""
    log_variance = jnp.asarray(log_variance)
    distance = jnp.square(jnp.asarray(x) - jnp.asarray(mean))
    return -0.5 * (np.log(2 * np.pi) + log_variance + distance * jnp.exp(-log_variance))


@jax.custom_jvp
def log_cdf(x: ArrayLike) -> Array:
    """log Φ(x) of the standard normal, elementwise, with a derivative that is right in the tail."""
    return jax.scipy.special.log_ndtr(x)


@log_cdf.defjvp
def _log_cdf_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    value = log_cdf(x)
    # φ(x)/Φ(x). Far below the mean exp(log φ - log Φ) is the difference of two numbers of the size
    # of x²/2 (off by a factor of 3 at -10⁴ in float32); there the asymptotic series is exact.
    inverse = 1.0 / jnp.square(jnp.minimum(x, -10.0))
    tail = -x / (1.0 - inverse * (1.0 - inverse * (3.0 - 15.0 * inverse)))
    near = jnp.maximum(x, -10.0)
    body = jnp.exp(-0.5 * (near * near + np.log(2 * np.pi)) - jnp.where(x < -10.0, 0.0, value))
    return value, dx * jnp.where(x < -10.0, tail, body)


def discretized_log_likelihood(
    x_0: ArrayLike, mean: ArrayLike, log_variance: ArrayLike, *, levels: int = LEVELS
) -> Array:
    """log of N(m, v) integrated over the bin of x_0: the decoder of Ho et al. 2020, Eq. 13.

        ∫ N(x; m, v) dx from x_0 - 1/(levels-1) to x_0 + 1/(levels-1),

    the bins at -1 and 1 open towards -∞ and ∞, so that the bins of all levels sum to one.
    Elementwise, in nats, with the exact normal distribution function, in a form that underflows
    only where float32 has no number left for the logarithm.

    Args:
        x_0: data on the grid -1, -1 + 2/(levels-1), …, 1.
        mean: of the decoder.
        log_variance: of the decoder, a logarithm.
        levels: values a pixel can take.
    """
    x_0, mean = jnp.asarray(x_0), jnp.asarray(mean)
    precision = jnp.exp(-0.5 * jnp.asarray(log_variance))
    half = 1.0 / (levels - 1)
    upper = (x_0 - mean + half) * precision
    lower = (x_0 - mean - half) * precision
    low, high = x_0 < -1.0 + half, x_0 > 1.0 - half
    # Below the mean Φ(upper) - Φ(lower), above it the same bin seen from the other tail: of two
    # numbers close to 1 the difference would be rounding. The open bins are one tail, whole.
    flip = x_0 > mean
    log_near = log_cdf(jnp.where(low | (~flip & ~high), upper, -lower))
    log_far = log_cdf(jnp.where(flip, -upper, lower))
    # log(e^a - e^b) = a + log(1 - e^{b-a}); b < a but for rounding and where both are -∞.
    two_sided = ~(low | high) & (log_near > log_far)
    wide = log_near + jnp.log(-jnp.expm1(jnp.where(two_sided, log_far - log_near, -1.0)))
    # A bin narrower than 0.008 standard deviations: the two logarithms agree in most of their
    # digits, but e^{-u²/2} is 1 to within 8e-6 over |u| < δ, which leaves
    # log ∫ φ(c+u) du = log φ(c) + log 2δ + log(sinh(cδ)/cδ).
    delta = half * precision
    center = jnp.abs(x_0 - mean) * precision
    narrow = delta < 0.004
    y = jnp.maximum(jnp.where(narrow, center * delta, 1.0), 1e-6)
    log_sinhc = y + jnp.log(-jnp.expm1(-2.0 * y) / (2.0 * y))
    density = -0.5 * (jnp.square(jnp.where(narrow, center, 0.0)) + np.log(2 * np.pi))
    inside = jnp.where(narrow, density + jnp.log(2.0 * delta) + log_sinhc, wide)
    return jnp.where(low | high, log_near, inside)
