"""From pixels to densities and back to bits: uniform dequantisation (Theis et al. 2016)."""

from __future__ import annotations

import math

import jax.numpy as jnp

from ddpm_jax.forward.checks import (
    check_number,
    check_real,
    check_same_shape,
    host_values,
    is_number,
)
from ddpm_jax.types import Array, ArrayLike, describe

PIXEL_WIDTH = 2.0 / 255.0  # of one of the 256 levels of data in [-1, 1]


def dequantize(x_0: ArrayLike, uniform: ArrayLike) -> Array:
    """Spreads pixels over their bins: x_0 + (u - ½) 2/255, for x_0 [...] on the 256 levels.

    `uniform` is u ~ U[0, 1) of x_0's shape. The density of the result bounds the probability of the
    pixels: log P(x_0) >= E_u log p(x_0 + (u - ½) w) + d log w, w = 2/255, by Jensen's inequality
    (Theis, van den Oord, Bethge 2016, 1511.01844, §3.1). Raises ValueError for another shape
    and for concrete values outside [-1, 1] or [0, 1], TypeError for uint8 pixels: apply
    `from_pixels` first.

    Example:
        >>> dj.dequantize(jnp.zeros(3), jnp.full(3, 0.5))
        Array([0., 0., 0.], dtype=float32)
    """
    check_same_shape("dequantize", x_0=x_0, uniform=uniform)
    for name, value, low, what in (
        ("x_0", x_0, -1.0, "data from `from_pixels`"),
        ("uniform", uniform, 0.0, "draws of jax.random.uniform"),
    ):
        host = host_values(value)
        # Half precision rounds values near 1.
        if host is not None and not ((host >= low - 1e-2) & (host <= 1.01)).all():
            raise ValueError(
                f"dequantize needs {name} in [{low:g}, 1], {what}, got values from {host.min()} to "
                f"{host.max()}."
            )
    return jnp.asarray(x_0) + (jnp.asarray(uniform) - 0.5) * PIXEL_WIDTH


def bits_per_dim(
    log_likelihood: ArrayLike, event_shape: tuple[int, ...], *, bin_width: float = PIXEL_WIDTH
) -> Array:
    """Bits per dimension of discrete data from log p in nats: -log p/(d ln 2) - log2(bin_width).

    `log_likelihood` [B] is that of dequantised data with events of `event_shape`, d values each;
    the mean over dequantisations bounds the discrete code length from above. The default bin is a
    pixel's on [-1, 1]; with 1 the result is the differential entropy. Theis et al. 2016; Song et
    al. 2021, §4.3 and Table 2. Raises ValueError for an empty event and a width that is not
    positive, TypeError for an event_shape that is not a tuple of whole numbers.

    Example:
        >>> dj.bits_per_dim(jnp.array([-6.0 * jnp.log(2.0)]), (2, 3), bin_width=1.0)
        Array([1.], dtype=float32)
    """
    check_real("bits_per_dim", log_likelihood=log_likelihood)
    remedy = "Pixels mapped to [-1, 1] lie 2/255 apart."
    check_number("bits_per_dim", "bin_width", bin_width, remedy, within="(0, inf)")
    if not isinstance(event_shape, (tuple, list)) or not all(
        is_number(size) and float(size).is_integer() for size in event_shape
    ):
        raise TypeError(
            "bits_per_dim needs event_shape, the shape of one example such as (32, 32, 3), got "
            f"{describe(event_shape)}."
        )
    d = math.prod(event_shape)
    if d < 1:
        raise ValueError(f"bits_per_dim needs events of at least one value, got {event_shape=}.")
    return -jnp.asarray(log_likelihood) / (d * math.log(2.0)) - math.log2(bin_width)
