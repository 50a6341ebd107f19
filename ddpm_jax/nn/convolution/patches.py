"""3×3 convolutions as one product of matrices: each pixel's 3×3 patch is a row of 9 C numbers.

    y = patches(x) · kernel            ∂kernel = patches(x)ᵀ · ȳ

Used for stride 2: inside loops, `lax`'s gradients take 40 times as long there.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ddpm_jax.nn.convolution.products import matmul_last_axis
from ddpm_jax.types import Array


@jax.named_scope("patches")
def convolution_by_patches(
    x: Array, kernel: Array, strides: Sequence[int], pads: Sequence[tuple[int, int]]
) -> Array:
    """Convolves x [B, H, W, C] with kernel [3, 3, C, C'], padded with zeros.

    Both the JVP and the VJP are fast, with respect to x and to kernel.
    """
    return matmul_last_axis(patches(x, strides, pads), kernel.reshape(-1, kernel.shape[-1]))


def patches(x: Array, strides: Sequence[int], pads: Sequence[tuple[int, int]]) -> Array:
    """Extracts the 3×3 windows of the padded x [B, H, W, C]: [B, H', W', 9 C], in kernel order."""
    heights, widths = (
        range(0, size + low + high - 2, stride)
        for size, (low, high), stride in zip(x.shape[1:3], pads, strides, strict=True)
    )
    # Padding beyond the last window, so that all nine slices have the same form.
    slack = [stride - 1 for stride in strides]
    gaps = [(low, high + more) for (low, high), more in zip(pads, slack, strict=True)]
    x = jnp.pad(x, ((0, 0), *gaps, (0, 0)))
    return jnp.concatenate(
        [
            x[
                :,
                i : i + len(heights) * strides[0] : strides[0],
                j : j + len(widths) * strides[1] : strides[1],
            ]
            for i in range(3)
            for j in range(3)
        ],
        axis=-1,
    )
