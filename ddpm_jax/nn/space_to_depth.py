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

    Other ranks of space alike: p^r C channels. Raises ValueError for sizes that p does not divide.
    """
    if patch_size == 1:
        return x
    batch, *space, channels = x.shape
    p, rank = patch_size, len(space)
    if any(size % p for size in space):
        raise ValueError(
            f"space_to_depth needs height and width that are multiples of patch_size={p}, got "
            f"{'×'.join(map(str, space))}. Pad or resize the images."
        )
    smaller = [size // p for size in space]
    x = x.reshape(batch, *(part for size in smaller for part in (size, p)), channels)
    outside, inside = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
    return x.transpose(0, *outside, *inside, 2 * rank + 1).reshape(
        batch, *smaller, p**rank * channels
    )


def depth_to_space(x: Array, patch_size: int) -> Array:
    """Spreads each position of x [B, H, W, p² C] over a p × p patch: [B, H p, W p, C].

    The inverse of `space_to_depth`. The C channels of each pixel stay together and in order.
    Raises ValueError for channels that p² does not divide.
    """
    if patch_size == 1:
        return x
    batch, *space, channels = x.shape
    p, rank = patch_size, len(space)
    if channels % p**rank:
        raise ValueError(
            f"depth_to_space needs a multiple of patch_size{'¹²³'[rank - 1]} = {p**rank} channels, "
            f"got {channels}."
        )
    x = x.reshape(batch, *space, *(p,) * rank, channels // p**rank)
    pairs = (axis for i in range(1, rank + 1) for axis in (i, i + rank))
    x = x.transpose(0, *pairs, 2 * rank + 1)
    return x.reshape(batch, *(size * p for size in space), channels // p**rank)
