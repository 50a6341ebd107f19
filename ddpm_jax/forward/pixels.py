"""Pixels, uint8 in 0..255, and data in [-1, 1], mapped linearly (Ho et al. 2020, §3.3)."""

from __future__ import annotations

import jax.numpy as jnp

from ddpm_jax.forward.checks import check_real
from ddpm_jax.types import Array, ArrayLike, describe


def from_pixels(pixels: ArrayLike) -> Array:
    """Maps uint8 pixels [...] to float32 in [-1, 1]: x = pixel/127.5 - 1.

    Raises TypeError for anything but uint8: floats have no agreed range, so mapping them would be
    a guess.

    Example:
        >>> dj.from_pixels(jnp.array([0, 51, 255], jnp.uint8))
        Array([-1. , -0.6,  1. ], dtype=float32)
    """
    if getattr(pixels, "dtype", None) != jnp.uint8:
        raise TypeError(
            f"from_pixels needs uint8 pixels in 0..255, got {describe(pixels)}. Convert floats "
            "yourself: their range, 0..1 or 0..255, is not written on them."
        )
    # An exact integer times one constant: rounded once, so every backend, jitted or not, returns
    # the same bits.
    return (2.0 * jnp.asarray(pixels).astype(jnp.float32) - 255.0) * jnp.float32(1.0 / 255.0)


def to_pixels(x: ArrayLike) -> Array:
    """Maps data [...] in [-1, 1] to uint8: rounds to the nearest level and clips to 0..255.

    Raises TypeError for integers, which would be pixels already.

    Example:
        >>> dj.to_pixels(jnp.array([-1.0, 0.0, 1.2]))
        Array([  0, 128, 255], dtype=uint8)
    """
    check_real("to_pixels", x=x)
    x = jnp.asarray(x).astype(jnp.float32)
    return jnp.round(jnp.clip(x * 127.5 + 127.5, 0.0, 255.0)).astype(jnp.uint8)
