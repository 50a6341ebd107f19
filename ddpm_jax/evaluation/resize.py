"""Bilinear resizing as the literature's feature networks had it, neither of them anti-aliased.

An output pixel i of n reads the input at position p, of the m there are, and interpolates linearly
between ⌊p⌋ and the next, held at the border:

    tf1       p = i m/n                              TensorFlow 1 resize_bilinear, its first choice
    pytorch   p = max((i + ½) m/n - ½, 0)            F.interpolate(mode="bilinear")

The first is inside the graph of Heusel et al. (2017), and when it enlarges it shifts the image by
up to half an input pixel. An FID depends on the choice, so its name belongs to the number.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ddpm_jax.types import Array


def _interpolate(x: Array, positions: np.ndarray, axis: int) -> Array:
    """Reads x at float32 `positions` [n] along an axis, linearly between the two nearest."""
    low = np.floor(positions).astype(np.int32)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    fraction = (positions - low).astype(np.float32).reshape(shape)
    first, second = jnp.take(x, low, axis=axis), jnp.take(x, high, axis=axis)
    return first + (second - first) * fraction


def resize_tf1(images: Array, height: int, width: int) -> Array:
    """Resizes images [B, H, W, C] to float32 [B, height, width, C] as TensorFlow 1 does.

    p = i m/n in float32, with align_corners and half_pixel_centers False; columns first, then rows.
    """
    x = images.astype(jnp.float32)
    for axis, size in ((2, width), (1, height)):
        scale = np.float32(x.shape[axis]) / np.float32(size)
        x = _interpolate(x, np.arange(size, dtype=np.float32) * scale, axis)
    return x


def resize_pytorch(images: Array, height: int, width: int) -> Array:
    """Resizes images [B, H, W, C] to float32 [B, height, width, C] as PyTorch does.

    p = max((i + ½) m/n - ½, 0) in float32, which is align_corners False without antialias.
    """
    x = images.astype(jnp.float32)
    for axis, size in ((2, width), (1, height)):
        scale = np.float32(x.shape[axis]) / np.float32(size)
        centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
        x = _interpolate(x, np.maximum(centres * scale - np.float32(0.5), 0), axis)
    return x
