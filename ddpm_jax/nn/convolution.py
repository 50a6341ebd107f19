"""3×3 convolutions, fast on CPUs, gradients included; on accelerators, the plain `lax` ones.

XLA's CPU backend has fast kernels for one form of convolution only: images [B, H, W, C], kernels
[h, w, C, C']. It rewrites other forms into that one, but not inside loops, where the gradients that
`lax.conv_general_dilated` derives are then 10 to 100 times as slow. So here each gradient is
derived, on CPUs, as a convolution of that form:

    by the input:   ∂x = conv(g, kernel mirrored, its channels swapped)
    by the kernel:  ∂kernel = conv(x with C as its batch, g as a kernel of H × W taps)

Nothing is a custom transpose: the tangent is the same linear map written in the form whose own
transpose is the one above. So `grad`, `jvp`, `vmap`, `shard_map` and any composition of them hold.
A form is fast in one direction only, so where the kernel stands still, as in a divergence along
one direction, the tangent is the plain convolution, fast in forward mode.

On CPUs, wide ones in float32 are made by Winograd's algorithm instead (`winograd.py`), and their
tangents likewise.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ddpm_jax.nn.winograd import winograd_convolution
from ddpm_jax.types import Array

Pads = tuple[tuple[int, int], tuple[int, int]]
FAST = ("NHWC", "HWIO", "NHWC")


def convolution(
    x: Array, kernel: Array, strides: Sequence[int], padding: Any, **options: Any
) -> Array:
    """Convolves x [B, H, W, C] with kernel [h, w, C, C'], as `lax.conv_general_dilated` does.

    Fits `flax.linen.Conv(conv_general_dilated=...)`, whose further `options` must be those of a
    plain convolution. `padding` is "SAME", "VALID" or ((top, bottom), (left, right)). The gradients
    of strides (1, 1) and of 3×3 kernels with strides (2, 2) on even sizes are the module's; every
    other case is left to `lax`.

    Raises ValueError for dilations, groups or another layout.
    """
    _check_options("convolution", options)
    strides = tuple(strides)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    pads: Pads = tuple((int(low), int(high)) for low, high in padding)  # type: ignore[assignment]
    if strides == (1, 1):
        if any(low + high >= size for (low, high), size in zip(pads, kernel.shape, strict=False)):
            # An output larger than x would make XLA exchange the two operands of the kernel's
            # gradient, and that form is a slow one.
            x, pads = jnp.pad(x, ((0, 0), *pads, (0, 0))), ((0, 0), (0, 0))
        return _unit(x, kernel, pads)
    halved = strides == (2, 2) and kernel.shape[:2] == (3, 3)
    even = x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0
    if halved and even and set(pads) <= {(0, 1), (1, 1)}:
        return _halving(x, kernel, pads)
    return _plain(x, kernel, strides, pads)


def upsampled_convolution(
    x: Array, kernel: Array, strides: Sequence[int], padding: Any, **options: Any
) -> Array:
    """Doubles x [B, H, W, C] by repeating pixels, then convolves with kernel [3, 3, C, C'], "SAME".

    Each of the four output pixels over one of x sees 2 × 2 pixels of x only, its kernel the sums of
    those taps that meet the same pixel: (k₀, k₁ + k₂) above, (k₀ + k₁, k₂) below, across likewise.
    One 2×2 convolution to 4 C' channels makes all four: (4/9)(1 + 1/H)(1 + 1/W) of the arithmetic.

    Raises ValueError for another kernel, stride or padding: x [B, H, W, C] → [B, 2H, 2W, C'].
    """
    _check_options("upsampled_convolution", options)
    if kernel.shape[:2] != (3, 3) or tuple(strides) != (1, 1) or padding != "SAME":
        raise ValueError(
            "upsampled_convolution needs a 3×3 kernel, strides (1, 1) and padding 'SAME', got "
            f"{kernel.shape[:2]}, {tuple(strides)} and {padding!r}. Repeat the pixels yourself and "
            "call convolution."
        )
    batch, height, width, _ = x.shape
    y = [
        [
            convolution(x, phase, (1, 1), ((1 - p, p), (1 - q, q)))
            for q, phase in enumerate(_phases(row, axis=1))
        ]
        for p, row in enumerate(_phases(kernel, axis=0))
    ]
    y = jnp.stack([jnp.stack(row, axis=3) for row in y], axis=2)
    return y.reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


def _phases(kernel: Array, axis: int) -> tuple[Array, Array]:
    """The two kernels of length 2 that a kernel of length 3 is to pixels repeated twice."""
    first, middle, last = (jax.lax.slice_in_dim(kernel, i, i + 1, axis=axis) for i in range(3))
    upper = jnp.concatenate([first, middle + last], axis)
    return upper, jnp.concatenate([first + middle, last], axis)


def _plain(x: Array, kernel: Array, strides: tuple[int, ...], pads: Pads) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=FAST)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _unit(x: Array, kernel: Array, pads: Pads) -> Array:
    """Stride 1; its tangents are `_by_input` and `_by_kernel`."""
    plain = functools.partial(_plain, strides=(1, 1), pads=pads)
    if not _winograd_pays(x, kernel, pads):
        return plain(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=winograd_convolution, default=plain)


@functools.partial(_unit.defjvp, symbolic_zeros=True)
def _unit_jvp(pads, primals, tangents):
    return _tangents(_unit, (_by_input, _by_kernel), (1, 1), pads, primals, tangents)


def _by_input(dx: Array, kernel: Array, pads: Pads) -> Array:
    """conv(dx, kernel), linear in dx, its transpose in dx of the fast form.

    The transpose keeps the kernel's memory order and swaps the names of its channels, so with them
    swapped in memory it comes out as it should be.
    """
    if _winograd_pays(dx, kernel, pads):
        mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
        dy = jax.ShapeDtypeStruct((*dx.shape[:3], kernel.shape[3]), dx.dtype)
        transpose = jax.linear_transpose(lambda g: winograd_convolution(g, mirrored), dy)
        return transpose(dx)[0]
    return jax.lax.conv_general_dilated(
        dx, kernel.swapaxes(2, 3), (1, 1), pads, dimension_numbers=("NHWC", "HWOI", "NHWC")
    )


def _by_kernel(x: Array, dkernel: Array, pads: Pads) -> Array:
    """conv(x, dkernel), linear in dkernel, its transpose in dkernel of the fast form."""
    if _winograd_pays(x, dkernel, pads):
        return winograd_convolution(x, dkernel)
    x = x.transpose(3, 1, 2, 0)
    dkernel = dkernel.transpose(2, 0, 1, 3)
    y = jax.lax.conv_general_dilated(
        x, dkernel, (1, 1), pads, dimension_numbers=("CHWN", "IHWO", "HWNC")
    )
    return y.transpose(2, 0, 1, 3)


def _winograd_pays(x: Array, kernel: Array, pads: Pads) -> bool:
    """Whether Winograd's algorithm is the faster one on CPUs, forward and both gradients together.

    Never by the batch, so that an example's result does not depend on its company. At 128 channels
    in and out it is even on one kind of CPU, and half the time on another (benchmarks/NOTES.md).
    """
    height, width = x.shape[1:3]
    fits = kernel.shape[:2] == (3, 3) and pads == ((1, 1), (1, 1))
    even = height % 2 == 0 and width % 2 == 0
    wide = height * width >= 64 and sum(kernel.shape[2:]) >= 256
    return fits and even and wide and x.dtype == kernel.dtype == jnp.float32


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _halving(x: Array, kernel: Array, pads: Pads) -> Array:
    """Stride 2; its tangents are those of the same map as a convolution of stride 1."""
    return _plain(x, kernel, (2, 2), pads)


@functools.partial(_halving.defjvp, symbolic_zeros=True)
def _halving_jvp(pads, primals, tangents):
    forms = (_halving_by_input, _halving_by_kernel)
    return _tangents(_halving, forms, (2, 2), pads, primals, tangents)


def _halving_by_input(dx: Array, kernel: Array, pads: Pads) -> Array:
    return _by_input(_blocks(dx), _block_kernel(kernel, pads), _block_pads(pads))


def _halving_by_kernel(x: Array, dkernel: Array, pads: Pads) -> Array:
    return _by_kernel(_blocks(x), _block_kernel(dkernel, pads), _block_pads(pads))


def _blocks(x: Array) -> Array:
    """Puts each 2×2 block of x [B, H, W, C] into the channels: [B, H/2, W/2, 4C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def _block_kernel(kernel: Array, pads: Pads) -> Array:
    """The kernel [2, 2, 4C, C'] over blocks that equals kernel [3, 3, C, C'] at stride 2."""
    _, _, channels, out = kernel.shape
    # A window that starts one pixel early (padding 1 above) starts in the middle of a block.
    gaps = [(low, 1 - low) for low, _ in pads] + [(0, 0), (0, 0)]
    kernel = jnp.pad(kernel, gaps).reshape(2, 2, 2, 2, channels, out)
    return kernel.transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * channels, out)


def _block_pads(pads: Pads) -> Pads:
    first, second = ((low, 1 - low) for low, _ in pads)
    return first, second


def _tangents(convolve: Any, forms: Any, strides: Any, pads: Pads, primals: Any, tangents: Any):
    """The value of `convolve` and its tangent, each half of it only where its argument moves."""
    x, kernel = primals
    still = [isinstance(tangent, SymbolicZero) for tangent in tangents]
    dx, dkernel = tangents
    y = convolve(x, kernel, pads)
    if all(still):
        return y, jnp.zeros_like(y)
    if still[1]:
        return y, convolve(dx, kernel, pads)
    dy = _form(forms[1], strides, pads)(x, dkernel)
    return y, dy if still[0] else dy + _form(forms[0], strides, pads)(dx, kernel)


@functools.cache
def _form(fast: Any, strides: tuple[int, int], pads: Pads) -> Any:
    """Half of the tangent: `fast` on CPUs, `lax`'s own elsewhere, chosen when XLA compiles.

    One function per case, made once, so that JAX traces its branches once. Recomputing inside
    (`jax.checkpoint`) costs nothing here and keeps the transposed copies of x and of the kernel
    out of what the forward pass leaves for the backward one.
    """

    def tangent(x, kernel):
        cpu = functools.partial(fast, pads=pads)
        default = functools.partial(_plain, strides=strides, pads=pads)
        return jax.lax.platform_dependent(x, kernel, cpu=cpu, default=default)

    return jax.checkpoint(tangent)


def _check_options(call: str, options: dict[str, Any]) -> None:
    """Raises ValueError unless the options are those of a plain convolution of images."""
    plain: dict[str, Any] = {
        "lhs_dilation": (1, 1),
        "rhs_dilation": (1, 1),
        "feature_group_count": 1,
        "dimension_numbers": jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
        "precision": None,
    }
    for name, value in options.items():
        if isinstance(value, list):
            value = tuple(value)
        if value is not None and value != plain.get(name):
            raise ValueError(
                f"{call} knows plain convolutions of [B, H, W, C] only, got {name}={value!r}. Call "
                "jax.lax.conv_general_dilated."
            )
