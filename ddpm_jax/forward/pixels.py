"""Pixels and model values: uint8 in 0..255 and floats in [-1, 1], mapped linearly (Ho et al. 2020,
§3.3)."""

from __future__ import annotations

import jax.numpy as jnp

from ddpm_jax.types import Array, ArrayLike


def from_pixels(pixels: ArrayLike) -> Array:
    """Maps uint8 pixels [...] to float32 in [-1, 1]: x = pixel / 127.5 - 1.

    Raises TypeError for anything but uint8: floats have no agreed range, so mapping them would
    guess.
    """
    pixels = jnp.asarray(pixels)
    if pixels.dtype != jnp.uint8:
        raise TypeError(f"from_pixels needs uint8 pixels in 0..255, got dtype {pixels.dtype}.")
    # An exact integer times one constant: rounded once, so every backend, jitted or not, returns
    # the same bits.
    return (2.0 * pixels.astype(jnp.float32) - 255.0) * jnp.float32(1.0 / 255.0)


def to_pixels(x: ArrayLike) -> Array:
    """Maps model values [...] in [-1, 1] to uint8, rounding to the nearest level and clipping the
    rest."""
    x = jnp.asarray(x).astype(jnp.float32)
    return jnp.round(jnp.clip(x * 127.5 + 127.5, 0.0, 255.0)).astype(jnp.uint8)
