"""3×3 convolutions by Winograd's F(2×2, 3×3): 16 products where the plain sum makes 36.

Two neighbouring outputs of three taps, y₀ = d₀g₀ + d₁g₁ + d₂g₂ and y₁ = d₁g₀ + d₂g₁ + d₃g₂, share
four products instead of making six:

    y = Aᵀ[(G g) ⊙ (Bᵀ d)]
    Bᵀ d = (d₀ − d₂, d₁ + d₂, d₂ − d₁, d₁ − d₃)
    G g = (g₀, (g₀ + g₁ + g₂)/2, (g₀ − g₁ + g₂)/2, g₂)
    Aᵀ m = (m₀ + m₁ + m₂, m₁ − m₂ − m₃)

and across likewise. Sums over channels turn each of the 16 products into a product of matrices. As
linear in images and kernel as the plain sum is, so the gradients too are made at 16/36.
Source: Lavin & Gray 2016, §4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ddpm_jax.types import Array


@jax.named_scope("winograd")
def winograd_convolution(x: Array, kernel: Array) -> Array:
    """Convolves x [B, H, W, C] with kernel [3, 3, C, C'], stride 1, zeros around: [B, H, W, C'].

    H and W must be even, the dtypes equal. It rounds more than the plain sum does: sums of four
    pixels, and of a kernel's taps, are rounded first.

    Raises ValueError for another kernel and for odd sizes.
    """
    batch, height, width, channels = x.shape
    if kernel.shape[:2] != (3, 3) or height % 2 or width % 2:
        raise ValueError(
            "winograd_convolution needs a 3×3 kernel and an even height and width, got a kernel of "
            f"{kernel.shape[:2]} and images of {height}×{width}. Call convolution."
        )
    # Rows are stacked and columns are not: half the operations to compile of 4 × 4 arrays, and
    # nearly as fast. Whatever a name says of rows below has shape [4, ...].
    rows, columns = height // 2, width // 2
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x_rows = jnp.stack(_of_images([x[:, i : i + height : 2] for i in range(4)]))
    images = _of_images([x_rows[:, :, :, j : j + width : 2] for j in range(4)])
    kernel_rows = jnp.stack(_of_kernel(list(kernel)))
    kernels = _of_kernel([kernel_rows[:, j] for j in range(3)])
    products = [
        (tiles.reshape(4, -1, channels) @ taps).reshape(4, batch, rows, columns, -1)
        for tiles, taps in zip(images, kernels, strict=True)
    ]
    y_rows = jnp.stack(_of_products(products), axis=-2)  # [4, B, H/2, W/2, 2, C']
    y = jnp.stack(_of_products(list(y_rows)), axis=2)  # [B, H/2, 2, W/2, 2, C']
    return y.reshape(batch, height, width, -1)


def _of_images(d: Sequence[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _of_kernel(g: Sequence[Array]) -> list[Array]:
    outer, middle = 0.5 * (g[0] + g[2]), 0.5 * g[1]
    return [g[0], outer + middle, outer - middle, g[2]]


def _of_products(m: Sequence[Array]) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
