"""3×3 convolutions as one product of matrices: each pixel's 3×3 patch in a row of 9 C numbers.

    y = patches(x) · kernel            ∂kernel = patches(x)ᵀ · ȳ, or xᵀ · patches(ȳ)
    ∂x = patches(ȳ) · kernel mirrored, its channels swapped

Nine copies of an image are worth their bytes where it is small or the window moves two pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ddpm_jax.nn.convolution.products import flat, flat_product
from ddpm_jax.nn.convolution.transpose import transpose_of
from ddpm_jax.types import Array


@jax.named_scope("patches")
def convolution_by_patches(
    x: Array, kernel: Array, strides: Sequence[int], pads: Sequence[tuple[int, int]]
) -> Array:
    """Convolves x [B, H, W, C] with kernel [3, 3, C, C'], zeros around: fast both ways in both."""
    return flat_product(patches(x, strides, pads), kernel.reshape(-1, kernel.shape[-1]))


@jax.named_scope("patches")
def tangent_by_patches(x: Array, kernel: Array, dx: Array | None, dkernel: Array) -> Array:
    """The tangent of a convolution with stride 1, "SAME", along dx and dkernel; None is a dx of 0.

    Written as the transpose of the gradients, so that what reverse mode makes of it are those: the
    patches of ȳ [B, H, W, C'], made once for both.
    """
    _, _, channels, out = kernel.shape

    def gradients(dy: Array) -> tuple[Array | None, Array]:
        rows = flat(patches(dy, (1, 1), ((1, 1), (1, 1))))
        by_kernel = (flat(x).T @ rows).reshape(channels, 3, 3, out)
        by_kernel = by_kernel.transpose(1, 2, 0, 3)[::-1, ::-1]
        if dx is None:
            return None, by_kernel
        mirrored = kernel[::-1, ::-1].swapaxes(2, 3).reshape(9 * out, channels)
        return (rows @ mirrored).reshape(x.shape), by_kernel

    same = functools.partial(convolution_by_patches, strides=(1, 1), pads=((1, 1), (1, 1)))
    return transpose_of(gradients, same, x, kernel, (dx, dkernel))


def patches(x: Array, strides: Sequence[int], pads: Sequence[tuple[int, int]]) -> Array:
    """The 3×3 windows of x [B, H, W, C] after padding: [B, H', W', 9 C], in a kernel's order."""
    heights, widths = (
        range(0, size + low + high - 2, stride)
        for size, (low, high), stride in zip(x.shape[1:3], pads, strides, strict=True)
    )
    # Beyond what windows reach, so that every slice begins alike.
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
