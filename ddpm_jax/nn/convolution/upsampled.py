"""3×3 convolutions of an upsampled image from 9 products per pixel instead of 36.

The image is upsampled by repeating pixels. Along one axis, with taps k₀, k₁, k₂ and their sum s,
the two output pixels over x_i are

    above:  k₀ x_{i−1} + (k₁ + k₂) x_i = s x_i − k₀ (x_i − x_{i−1})
    below:  (k₀ + k₁) x_i + k₂ x_{i+1} = s x_i + k₂ (x_{i+1} − x_i)

so they share s x_i: three products instead of four, or of six without grouping the taps. The other
axis works alike. The image, its differences along either axis and along both are each multiplied
by sums of taps, and each output pixel is the sum of four such terms.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ddpm_jax.nn.convolution.products import matmul_last_axis
from ddpm_jax.types import Array


@jax.named_scope("upsampled")
def upsampled_by_differences(x: Array, kernel: Array) -> Array:
    """Repeats the pixels of x [B, H, W, C], then convolves: [B, 2H, 2W, C'].

    The kernel is [3, 3, C, C'], padding "SAME". Differences of neighbours and sums of taps are
    rounded before they are multiplied, so rounding errors are larger than the plain sum's.
    """
    batch, height, width, _ = x.shape
    smooth = _across(x, [kernel[0] + kernel[1] + kernel[2]])[0]
    steps = _across(_differences(x, axis=1), [-kernel[0], kernel[2]])
    y = [[smooth[q] + step[q][:, p : p + height] for q in range(2)] for p, step in enumerate(steps)]
    y = jnp.stack([jnp.stack(row, axis=3) for row in y], axis=2)
    return y.reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


def _across(x: Array, kernels: list[Array]) -> list[list[Array]]:
    """Repeats the columns of x [B, H, W, C] and convolves them with each of `kernels` [3, C, C'].

    Returns the even columns and the odd ones for each kernel, both [B, H, W, C'].
    """
    width, out = x.shape[2], kernels[0].shape[-1]
    smooth = _multiply(x, [k[0] + k[1] + k[2] for k in kernels])
    steps = _multiply(_differences(x, axis=2), [tap for k in kernels for tap in (-k[0], k[2])])
    # The slice [..., i out : (i + 1) out] is product i.
    return [
        [
            smooth[..., i * out : (i + 1) * out]
            + steps[:, :, q : q + width, (2 * i + q) * out : (2 * i + q + 1) * out]
            for q in range(2)
        ]
        for i in range(len(kernels))
    ]


def _differences(x: Array, axis: int) -> Array:
    """Computes x_i − x_{i−1} along `axis` for i = 0 … n, with zeros beyond both borders."""
    pads = [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)]
    x = jnp.pad(x, pads)
    size = x.shape[axis] - 1
    upper = jax.lax.slice_in_dim(x, 1, size + 1, axis=axis)
    return upper - jax.lax.slice_in_dim(x, 0, size, axis=axis)


def _multiply(x: Array, kernels: list[Array]) -> Array:
    """Multiplies x [B, H, W, C] by each of `kernels` [C, C'], side by side, as one product."""
    return matmul_last_axis(x, jnp.concatenate(kernels, axis=-1))
