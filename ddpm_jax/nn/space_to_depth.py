"""Patches of pixels as channels, and back: the same numbers in another order.

    space_to_depth(x, p)[b, i, j, (u p + v) C + c] = x[b, i p + u, j p + v, c]

A network that works on 2×2 patches has a quarter of the positions, so the same arithmetic pays for
channels twice as wide. On CPUs wide layers also come closer to the peak speed (Shi et al. 2016,
arXiv 1609.05158, whose sub-pixel layer is `depth_to_space`).
"""

from __future__ import annotations

from ddpm_jax.types import Array


def space_to_depth(x: Array, patch_size: int) -> Array:
    """Gathers each p × p patch of x [B, H, W, C] into one position: [B, H/p, W/p, p² C].

    Raises ValueError for sizes that p does not divide.
    """
    if patch_size == 1:
        return x
    batch, height, width, channels = x.shape
    p = patch_size
    if height % p or width % p:
        raise ValueError(
            f"space_to_depth needs height and width that are multiples of patch_size={p}, got "
            f"{height}×{width}. Pad or resize the images."
        )
    x = x.reshape(batch, height // p, p, width // p, p, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // p, width // p, p * p * channels)


def depth_to_space(x: Array, patch_size: int) -> Array:
    """Spreads each position of x [B, H, W, p² C] over a p × p patch: [B, H p, W p, C].

    The inverse of `space_to_depth`. The C channels of each pixel stay together and in order.
    Raises ValueError for channels that p² does not divide.
    """
    if patch_size == 1:
        return x
    batch, height, width, channels = x.shape
    p = patch_size
    if channels % (p * p):
        raise ValueError(
            f"depth_to_space needs a multiple of patch_size² = {p * p} channels, got {channels}."
        )
    x = x.reshape(batch, height, width, p, p, channels // (p * p))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * p, width * p, channels // (p * p))
