"""3×3 convolutions by Winograd's F(2×2, 3×3): 16 products per 2×2 pixels instead of 36.

Two neighbouring outputs of three taps, y₀ = d₀g₀ + d₁g₁ + d₂g₂ and y₁ = d₁g₀ + d₂g₁ + d₃g₂, share
four products instead of needing six:

    y = Aᵀ[(G g) ⊙ (Bᵀ d)]
    Bᵀ d = (d₀ − d₂, d₁ + d₂, d₂ − d₁, d₁ − d₃)
    G g = (g₀, (g₀ + g₁ + g₂)/2, (g₀ − g₁ + g₂)/2, g₂)
    Aᵀ m = (m₀ + m₁ + m₂, m₁ − m₂ − m₃)

The other axis works alike. Summing over channels makes each of the 16 products a product of
matrices. The form is linear in the images and in the kernel, as the plain sum is. So the gradients
also cost 16/36, computed from the gradient ȳ with respect to the output:
∂d = B[(G g) ⊙ (A ȳ)] and ∂g = Gᵀ[(Bᵀ d) ⊙ (A ȳ)].
Source: Lavin & Gray 2016, §4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ddpm_jax.nn.convolution.products import jvp_from_vjp
from ddpm_jax.types import Array

# Rows are stacked, columns are not: this has half the operations of 4 × 4 arrays to compile, and is
# nearly as fast. "Tiles" are four arrays [4, B, H/2, W/2, C], "taps" four arrays [4, C, C'].


@jax.named_scope("winograd")
def winograd_convolution(x: Array, kernel: Array) -> Array:
    """Convolves x [B, H, W, C] with kernel [3, 3, C, C'], stride 1, "SAME": [B, H, W, C'].

    H and W must be even and the dtypes equal. Sums of four pixels and of a kernel's taps are
    rounded before they are multiplied, so rounding errors are larger than the plain sum's.

    Raises ValueError for another kernel and for odd sizes.
    """
    if kernel.shape[:2] != (3, 3) or x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(
            "winograd_convolution needs a 3×3 kernel and an even height and width, got a kernel of "
            f"{kernel.shape[:2]} and images of {x.shape[1]}×{x.shape[2]}. Call convolution."
        )
    products = _multiply(_tiles_of_images(x), _taps_of_kernel(kernel))
    y_rows = jnp.stack(_At(products), axis=-2)  # [4, B, H/2, W/2, 2, C']
    y = jnp.stack(_At(list(y_rows)), axis=2)  # [B, H/2, 2, W/2, 2, C']
    return y.reshape(*x.shape[:3], kernel.shape[-1])


@jax.named_scope("winograd")
def winograd_tangent(x: Array, kernel: Array, dx: Array | None, dkernel: Array) -> Array:
    """The JVP of `winograd_convolution` along dx (None for zero) and dkernel.

    It is the transpose of the VJP below, which reverse mode recovers. That VJP computes the tiles
    of ȳ once for both gradients, and gathers each pixel of ∂x instead of scattering to it.
    """

    def vjp(dy: Array) -> tuple[Array | None, Array]:
        tiles = _tiles_of_gradient(dy)
        kernel_bar = _kernel_gradient(_tiles_of_images(x), tiles)
        if dx is None:
            return None, kernel_bar
        return _image_gradient(tiles, _taps_of_kernel(kernel)), kernel_bar

    return jvp_from_vjp(vjp, winograd_convolution, x, kernel, (dx, dkernel))


def _tiles_of_images(x: Array) -> list[Array]:
    """Bᵀ x B for each 4×4 window of x [B, H, W, C]."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = jnp.stack(_Bt([x[:, i : i + height : 2] for i in range(4)]))
    return _Bt([rows[:, :, :, j : j + width : 2] for j in range(4)])


def _taps_of_kernel(kernel: Array) -> list[Array]:
    """G kernel Gᵀ."""
    rows = jnp.stack(_G(list(kernel)))
    return _G([rows[:, j] for j in range(3)])


def _tiles_of_gradient(dy: Array) -> list[Array]:
    """A ȳ Aᵀ for each 2×2 block of ȳ [B, H, W, C']."""
    rows = jnp.stack(_A([dy[:, 0::2], dy[:, 1::2]]))
    return _A([rows[:, :, :, 0::2], rows[:, :, :, 1::2]])


def _image_gradient(tiles: list[Array], taps: list[Array]) -> Array:
    """B m Bᵀ of the products m, with overlapping windows summed: [B, H, W, C]."""
    products = _multiply(tiles, [k.swapaxes(1, 2) for k in taps])
    _, batch, rows, columns, channels = products[0].shape
    y = jnp.stack(_B(products, axis=3), axis=4).reshape(4, batch, rows, 2 * columns, channels)
    y = jnp.stack(_B(list(y), axis=1), axis=2)
    return y.reshape(batch, 2 * rows, 2 * columns, channels)


def _kernel_gradient(images: list[Array], gradient: list[Array]) -> Array:
    """Gᵀ m G of the products m, summed over all tiles: [3, 3, C, C']."""
    products = [
        jnp.einsum("rnc,rnd->rcd", _rows(x), _rows(dy))
        for x, dy in zip(images, gradient, strict=True)
    ]
    columns = [jnp.stack(_Gt(list(column))) for column in _Gt(products)]
    return jnp.stack(columns, axis=1)


def _multiply(tiles: list[Array], taps: list[Array]) -> list[Array]:
    """Sums over channels: [4, B, H/2, W/2, C] and [4, C, C'] to [4, B, H/2, W/2, C']."""
    return [
        (_rows(x) @ k).reshape(*x.shape[:-1], k.shape[-1]) for x, k in zip(tiles, taps, strict=True)
    ]


def _rows(tiles: Array) -> Array:
    """[4, B, H/2, W/2, C] as [4, B H W / 4, C]."""
    _, batch, rows, columns, channels = tiles.shape
    return tiles.reshape(4, batch * rows * columns, channels)


def _Bt(d: Sequence[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _B(m: Sequence[Array], axis: int) -> list[Array]:
    """B m with overlapping windows along `axis` added up: the even and the odd pixels.

    B m = (m₀, m₁ − m₂ + m₃, m₂ + m₁ − m₀, −m₃). The outer two belong to the neighbouring tiles.
    """
    even = m[1] - m[2] + m[3] - _neighbour(m[3], axis, -1)
    odd = m[1] + m[2] - m[0] + _neighbour(m[0], axis, 1)
    return [even, odd]


def _neighbour(x: Array, axis: int, step: int) -> Array:
    """Shifts x by `step` = ±1 along `axis`, with zeros beyond the border."""
    low, high = max(-step, 0), max(step, 0)
    pads = [(low, high) if i == axis else (0, 0) for i in range(x.ndim)]
    return jax.lax.slice_in_dim(jnp.pad(x, pads), high, high + x.shape[axis], axis=axis)


def _G(g: Sequence[Array]) -> list[Array]:
    outer, middle = 0.5 * (g[0] + g[2]), 0.5 * g[1]
    return [g[0], outer + middle, outer - middle, g[2]]


def _Gt(m: Sequence[Array]) -> list[Array]:
    outer = 0.5 * (m[1] + m[2])
    return [m[0] + outer, 0.5 * (m[1] - m[2]), m[3] + outer]


def _At(m: Sequence[Array]) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _A(y: Sequence[Array]) -> list[Array]:
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]
