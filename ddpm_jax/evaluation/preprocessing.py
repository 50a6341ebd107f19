"""Pixels to what the feature network reads: three channels, 299×299, about [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from ddpm_jax.evaluation.inception_v3 import IMAGE_SIZE
from ddpm_jax.evaluation.resize import resize_pytorch, resize_tf1
from ddpm_jax.types import Array


@dataclass(frozen=True)
class Preprocessing:
    """x = (resize(pixels) - offset) / divisor, with a name that goes into every fingerprint."""

    name: str
    resize: Callable[[Array, int, int], Array]
    offset: float
    divisor: float
    size: int = IMAGE_SIZE

    def __call__(self, pixels: Array) -> Array:
        """Maps uint8 pixels [B, H, W, 1 or 3] to float32 [B, size, size, 3]."""
        x = self.resize(pixels, self.size, self.size)
        x = (x - self.offset) / self.divisor
        # Grey is repeated last, so that it costs a third of the resizing.
        return jnp.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x


TF1 = Preprocessing("tf1", resize_tf1, 128.0, 128.0)
"""As inside the TensorFlow graph of the FID's authors: 0..255 goes to -1..0.992. The default."""

PYTORCH = Preprocessing("pytorch", resize_pytorch, 127.5, 127.5)
"""As in the PyTorch port of the FID: half-pixel centres, 0..255 to -1..1."""

PREPROCESSINGS = {p.name: p for p in (TF1, PYTORCH)}
"""The two by name, for configurations."""
