"""Pixels to the feature network's input: three channels, 299×299, about [-1, 1].

Bilinear resizing comes in the two versions of the literature; neither is anti-aliased. Output pixel
i of n reads the input, of m pixels, at position p and interpolates linearly between ⌊p⌋ and the
next pixel, clamped at the border:

    tf1       p = i m/n                              TensorFlow 1 resize_bilinear, its default
    pytorch   p = max((i + ½) m/n - ½, 0)            F.interpolate(mode="bilinear")

The first is part of the graph of Heusel et al. (2017); when it enlarges, it shifts the image by up
to half an input pixel. The FID depends on the choice, so report the name with the number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from ddpm_jax.evaluation.inception_v3 import IMAGE_SIZE
from ddpm_jax.forward.checks import check_whole
from ddpm_jax.types import Array, as_array, describe


def _interpolate(x: Array, positions: np.ndarray, axis: int) -> Array:
    """Reads x at float32 `positions` [n] along an axis, linearly between the two nearest."""
    low = np.floor(positions).astype(np.int32)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    fraction = (positions - low).astype(np.float32).reshape(shape)
    first, second = jnp.take(x, low, axis=axis), jnp.take(x, high, axis=axis)
    return first + (second - first) * fraction


def _resize(
    call: str, images: Array, height: int, width: int, positions: Callable[..., np.ndarray]
) -> Array:
    """Resizes columns, then rows, by the positions of output pixels for their index and m/n.

    Raises TypeError or ValueError for other images and sizes.
    """
    x = as_array(call, "images", images)
    if x.ndim != 4 or not x.size or not jnp.isdtype(x.dtype, ("integral", "real floating")):
        raise ValueError(
            f"{call} needs real images [B, H, W, C] with no axis empty, got {describe(images)}."
        )
    for name, size in (("height", height), ("width", width)):
        check_whole(call, name, size)
    x = x.astype(jnp.float32)
    for axis, size in ((2, width), (1, height)):
        scale = np.float32(x.shape[axis]) / np.float32(size)
        x = _interpolate(x, positions(np.arange(size, dtype=np.float32), scale), axis)
    return x


def resize_tf1(images: Array, height: int, width: int) -> Array:
    """Resizes images [B, H, W, C] to float32 [B, height, width, C] as TensorFlow 1 does.

    p = i m/n in float32, with align_corners and half_pixel_centers False; columns first, then rows.
    """
    return _resize("resize_tf1", images, height, width, lambda index, scale: index * scale)


def resize_pytorch(images: Array, height: int, width: int) -> Array:
    """Resizes images [B, H, W, C] to float32 [B, height, width, C] as PyTorch does.

    p = max((i + ½) m/n - ½, 0) in float32, which is align_corners False without antialias.
    """
    half = np.float32(0.5)
    positions = lambda index, scale: np.maximum((index + half) * scale - half, 0)  # noqa: E731
    return _resize("resize_pytorch", images, height, width, positions)


@dataclass(frozen=True)
class Preprocessing:
    """x = (resize(pixels) - offset) / divisor, named, since every fingerprint includes it."""

    name: str
    resize: Callable[[Array, int, int], Array]
    offset: float
    divisor: float
    size: int = IMAGE_SIZE

    def __call__(self, pixels: Array) -> Array:
        """Maps uint8 pixels [B, H, W, 1 or 3] to float32 [B, size, size, 3]."""
        x = as_array("Preprocessing", "pixels", pixels)
        if x.ndim != 4 or x.shape[-1] not in (1, 3) or not x.size or x.dtype != jnp.uint8:
            raise ValueError(
                "Preprocessing needs uint8 pixels [B, H, W, C], C 1 or 3, with no axis empty, got "
                f"{describe(pixels)}."
            )
        x = self.resize(x, self.size, self.size)
        x = (x - self.offset) / self.divisor
        # Grey is repeated last, which resizes a third as much.
        return jnp.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x


TF1 = Preprocessing("tf1", resize_tf1, 128.0, 128.0)
"""As in the TensorFlow graph of the FID's authors: 0..255 becomes -1..0.992. The default."""

PYTORCH = Preprocessing("pytorch", resize_pytorch, 127.5, 127.5)
"""As in the PyTorch port of the FID: half-pixel centres, 0..255 to -1..1."""

PREPROCESSINGS = {p.name: p for p in (TF1, PYTORCH)}
"""The two by name, for configurations."""
