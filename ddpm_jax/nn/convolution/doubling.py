"""A 3×3 convolution of an image doubled by repeating pixels: 9 products a pixel where 36 are meant.

Along one axis, with taps k₀, k₁, k₂ and their sum s, the two pixels over x_i are

    above:  k₀ x_{i−1} + (k₁ + k₂) x_i = s x_i − k₀ (x_i − x_{i−1})
    below:  (k₀ + k₁) x_i + k₂ x_{i+1} = s x_i + k₂ (x_{i+1} − x_i)

so both share s x_i: three products instead of four, or of six if the doubled image is convolved.
Across likewise: the image, its differences along either axis and along both are each multiplied
by sums of taps, and four terms make each pixel of the output.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ddpm_jax.nn.convolution.products import flat_product
from ddpm_jax.types import Array


@jax.named_scope("doubling")
def doubled_convolution(x: Array, kernel: Array) -> Array:
    """Doubles x [B, H, W, C], then convolves with kernel [3, 3, C, C']: [B, 2H, 2W, C'].

    Differences of neighbours and sums of taps are rounded first, so it rounds more than the plain
    sum does.
    """
    batch, height, width, _ = x.shape
    smooth = _across(x, [kernel[0] + kernel[1] + kernel[2]])[0]
    steps = _across(_differences(x, axis=1), [-kernel[0], kernel[2]])
    y = [[smooth[q] + step[q][:, p : p + height] for q in range(2)] for p, step in enumerate(steps)]
    y = jnp.stack([jnp.stack(row, axis=3) for row in y], axis=2)
    return y.reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


def _across(x: Array, kernels: list[Array]) -> list[list[Array]]:
    """Doubles the columns of x [B, H, W, C] and convolves them with each of `kernels` [3, C, C'].

    For each kernel the even columns and the odd ones, [B, H, W, C'] both.
    """
    width, out = x.shape[2], kernels[0].shape[-1]
    smooth = _multiply(x, [k[0] + k[1] + k[2] for k in kernels])
    steps = _multiply(_differences(x, axis=2), [tap for k in kernels for tap in (-k[0], k[2])])
    # Each [..., i out : (i + 1) out] is one product's.
    return [
        [
            smooth[..., i * out : (i + 1) * out]
            + steps[:, :, q : q + width, (2 * i + q) * out : (2 * i + q + 1) * out]
            for q in range(2)
        ]
        for i in range(len(kernels))
    ]


def _differences(x: Array, axis: int) -> Array:
    """x_i − x_{i−1} along `axis` for i = 0 … n, zeros beyond both borders."""
    pads = [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)]
    x = jnp.pad(x, pads)
    size = x.shape[axis] - 1
    upper = jax.lax.slice_in_dim(x, 1, size + 1, axis=axis)
    return upper - jax.lax.slice_in_dim(x, 0, size, axis=axis)


def _multiply(x: Array, kernels: list[Array]) -> Array:
    """x [B, H, W, C] times each of `kernels` [C, C'], side by side, as one product of matrices."""
    return flat_product(x, jnp.concatenate(kernels, axis=-1))
