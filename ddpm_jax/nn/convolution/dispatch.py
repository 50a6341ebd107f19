"""3×3 convolutions, fast on CPUs, gradients included; on accelerators, the plain `lax` ones.

XLA's CPU backend has fast kernels for only one form of convolution: images [B, H, W, C], kernels
[h, w, C, C']. It rewrites other forms into that one, except inside loops, where the gradients that
`lax.conv_general_dilated` derives are then 10 to 100 times as slow. Gradients with respect to the
kernel are slow everywhere. So on CPUs each gradient uses what is fast, either that form,

    with respect to the input:   ∂x = conv(ȳ, kernel mirrored, its channels swapped)
    with respect to the kernel:  ∂kernel = conv(x with C as its batch, ȳ as a kernel of H × W taps)

or products of matrices: Winograd's algorithm for wide layers in float32 (`winograd.py`, also for
the value), patches for stride 2 (`patches.py`), and differences of pixels for upsampled images
(`upsampled.py`, also for the value). benchmarks/NOTES.md has the gain of each.

No transpose is customised. The JVP is the same linear map in the form whose own transpose is the
gradient above, so `grad`, `jvp`, `vmap`, `shard_map` and any composition of them hold. A form is
fast in only one direction. So when the kernel has no tangent, as in Hutchinson's trace estimator,
the JVP is the plain convolution, which is fast in forward mode.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ddpm_jax.nn import kernels
from ddpm_jax.nn.convolution.patches import convolution_by_patches
from ddpm_jax.nn.convolution.upsampled import upsampled_by_differences
from ddpm_jax.nn.convolution.winograd import winograd_convolution, winograd_tangent
from ddpm_jax.types import Array

Pads = tuple[tuple[int, int], tuple[int, int]]
FAST = ("NHWC", "HWIO", "NHWC")


def convolution(
    x: Array, kernel: Array, strides: Sequence[int], padding: Any, **options: Any
) -> Array:
    """Convolves x [B, H, W, C] with kernel [h, w, C, C'], as `lax.conv_general_dilated` does.

    Fits `flax.linen.Conv(conv_general_dilated=...)`, whose other `options` must be those of a plain
    convolution. `padding` is "SAME", "VALID" or ((top, bottom), (left, right)). This module has the
    gradients for strides (1, 1), and for 3×3 kernels with strides (2, 2) on even sizes. Every other
    case is left to `lax`.

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
            # gradient, which gives a slow form.
            x, pads = jnp.pad(x, ((0, 0), *pads, (0, 0))), ((0, 0), (0, 0))
        return _unit(x, kernel, pads)
    strided = strides == (2, 2) and kernel.shape[:2] == (3, 3)
    even = x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0
    if strided and even and set(pads) <= {(0, 1), (1, 1)}:
        return _strided(x, kernel, pads)
    return _plain(x, kernel, strides, pads)


def upsampled_convolution(
    x: Array, kernel: Array, strides: Sequence[int], padding: Any, **options: Any
) -> Array:
    """Repeats the pixels of x [B, H, W, C], then convolves: [B, 2H, 2W, C'].

    The kernel is [3, 3, C, C'], padding "SAME". Each of the four output pixels over one pixel of x
    depends on only 2 × 2 pixels of x. The taps on the same pixel add up: (k₀, k₁ + k₂) above and
    (k₀ + k₁, k₂) below, likewise left and right. Four 2×2 convolutions need 16/36 of the
    arithmetic, differences (CPUs) 9/36. On TPUs it is one convolution of x with zeros between its
    pixels, which moves no pixels afterwards.

    Raises ValueError for another kernel, stride or padding.
    """
    _check_options("upsampled_convolution", options)
    if kernel.shape[:2] != (3, 3) or tuple(strides) != (1, 1) or padding != "SAME":
        raise ValueError(
            "upsampled_convolution needs a 3×3 kernel, strides (1, 1) and padding 'SAME', got "
            f"{kernel.shape[:2]}, {tuple(strides)} and {padding!r}. Repeat the pixels yourself and "
            "call convolution."
        )
    # Fewer bits would round the differences too coarsely.
    exact = x.dtype == kernel.dtype and x.dtype in (jnp.float32, jnp.float64)
    by_phases = _upsampled if exact else functools.partial(_by_phases, convolve=convolution)
    if not kernels.may_run_on_tpu():
        return by_phases(x, kernel)
    return jax.lax.platform_dependent(x, kernel, tpu=_by_dilation, default=by_phases)


def _by_dilation(x: Array, kernel: Array) -> Array:
    """Convolves the upsampled image as one convolution of x with zeros between its pixels.

    Its taps along an axis are k₀, k₀ + k₁, k₁ + k₂, k₂.
    """
    for axis in (0, 1):
        (first, third), (second, last) = (jnp.split(k, 2, axis) for k in _phases(kernel, axis))
        kernel = jnp.concatenate([first, second, third, last], axis)
    pads = ((2, 2), (2, 2))
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), pads, lhs_dilation=(2, 2), dimension_numbers=FAST
    )


def _phases(kernel: Array, axis: int) -> tuple[Array, Array]:
    """Splits a kernel of length 3, applied to repeated pixels, into two kernels of length 2."""
    first, middle, last = (jax.lax.slice_in_dim(kernel, i, i + 1, axis=axis) for i in range(3))
    upper = jnp.concatenate([first, middle + last], axis)
    return upper, jnp.concatenate([first + middle, last], axis)


def _by_phases(x: Array, kernel: Array, convolve: Any) -> Array:
    """Convolves the upsampled image as four convolutions of x with 2×2 kernels."""
    batch, height, width, _ = x.shape
    y = [
        [
            convolve(x, phase, (1, 1), ((1 - p, p), (1 - q, q)))
            for q, phase in enumerate(_phases(row, axis=1))
        ]
        for p, row in enumerate(_phases(kernel, axis=0))
    ]
    y = jnp.stack([jnp.stack(row, axis=3) for row in y], axis=2)
    return y.reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


def _plain(x: Array, kernel: Array, strides: tuple[int, ...], pads: Pads) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=FAST)


# Stride 1.


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _unit(x: Array, kernel: Array, pads: Pads) -> Array:
    plain = functools.partial(_unit_plain, pads=pads)
    if not _winograd_pays(x, kernel, pads):
        return plain(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=winograd_convolution, default=plain)


@functools.partial(_unit.defjvp, symbolic_zeros=True)
def _unit_jvp(pads, primals, tangents):
    return _differentiate(_unit, _unit_tangent, _unit_plain, (pads,), primals, tangents)


def _unit_plain(x: Array, kernel: Array, pads: Pads) -> Array:
    return _plain(x, kernel, (1, 1), pads)


def _unit_tangent(x: Array, kernel: Array, dx: Array | None, dkernel: Array, pads: Pads) -> Array:
    if _winograd_pays(x, kernel, pads):
        return winograd_tangent(x, kernel, dx, dkernel)
    dy = _kernel_jvp(x, dkernel, pads)
    return dy if dx is None else dy + _input_jvp(dx, kernel, pads)


def _input_jvp(dx: Array, kernel: Array, pads: Pads) -> Array:
    """conv(dx, kernel), written so that its transpose with respect to dx has the fast form.

    The transpose keeps the kernel's memory order and swaps the names of its channel axes. Swapping
    them in memory first gives the fast layout.
    """
    return jax.lax.conv_general_dilated(
        dx, kernel.swapaxes(2, 3), (1, 1), pads, dimension_numbers=("NHWC", "HWOI", "NHWC")
    )


def _kernel_jvp(x: Array, dkernel: Array, pads: Pads) -> Array:
    """conv(x, dkernel), written so that its transpose with respect to dkernel has the fast form."""
    x = x.transpose(3, 1, 2, 0)
    dkernel = dkernel.transpose(2, 0, 1, 3)
    y = jax.lax.conv_general_dilated(
        x, dkernel, (1, 1), pads, dimension_numbers=("CHWN", "IHWO", "HWNC")
    )
    return y.transpose(2, 0, 1, 3)


def _winograd_pays(x: Array, kernel: Array, pads: Pads) -> bool:
    """Whether Winograd's algorithm is faster on CPUs, forward and both gradients together.

    Independent of the batch size, so that an example's result does not depend on the batch. At 128
    channels in and out it breaks even on one kind of CPU and takes half the time on another
    (benchmarks/NOTES.md).
    """
    height, width = x.shape[1:3]
    even = height % 2 == 0 and width % 2 == 0
    wide = height * width >= 64 and sum(kernel.shape[2:]) >= 256
    return _keeps_size(kernel, pads) and even and wide and x.dtype == kernel.dtype == jnp.float32


def _keeps_size(kernel: Array, pads: Pads) -> bool:
    return kernel.shape[:2] == (3, 3) and pads == ((1, 1), (1, 1))


# 3×3 kernels with stride 2.


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _strided(x: Array, kernel: Array, pads: Pads) -> Array:
    return _strided_plain(x, kernel, pads)


@functools.partial(_strided.defjvp, symbolic_zeros=True)
def _strided_jvp(pads, primals, tangents):
    return _differentiate(_strided, _strided_tangent, _strided_plain, (pads,), primals, tangents)


def _strided_plain(x: Array, kernel: Array, pads: Pads) -> Array:
    return _plain(x, kernel, (2, 2), pads)


def _strided_tangent(
    x: Array, kernel: Array, dx: Array | None, dkernel: Array, pads: Pads
) -> Array:
    by_patches = functools.partial(convolution_by_patches, strides=(2, 2), pads=pads)
    return _bilinear_tangent(by_patches, x, kernel, dx, dkernel)


# Upsampled images, in float32 and float64.


@jax.custom_jvp
def _upsampled(x: Array, kernel: Array) -> Array:
    return jax.lax.platform_dependent(
        x, kernel, cpu=upsampled_by_differences, default=_upsampled_plain
    )


@functools.partial(_upsampled.defjvp, symbolic_zeros=True)
def _upsampled_jvp(primals, tangents):
    return _differentiate(_upsampled, _upsampled_tangent, _upsampled_plain, (), primals, tangents)


def _upsampled_plain(x: Array, kernel: Array) -> Array:
    return _by_phases(x, kernel, _plain)


def _upsampled_tangent(x: Array, kernel: Array, dx: Array | None, dkernel: Array) -> Array:
    return _bilinear_tangent(upsampled_by_differences, x, kernel, dx, dkernel)


# All three.


def _differentiate(
    convolve: Any, fast: Any, plain: Any, fixed: tuple[Any, ...], primals: Any, tangents: Any
) -> tuple[Array, Array]:
    """Returns the value of `convolve` and its tangent: `fast` on CPUs, that of `plain` elsewhere.

    When the kernel has no tangent, it is `convolve` of dx. When x has none, `fast` gets dx=None.
    """
    x, kernel = primals
    dx, dkernel = (None if isinstance(t, SymbolicZero) else t for t in tangents)
    y = convolve(x, kernel, *fixed)
    if dkernel is not None:
        return y, _tangent(fast, plain, fixed)(x, kernel, dx, dkernel)
    return y, jnp.zeros_like(y) if dx is None else convolve(dx, kernel, *fixed)


@functools.cache
def _tangent(fast: Any, plain: Any, fixed: tuple[Any, ...]) -> Any:
    """Makes the tangent function: `fast` on CPUs, that of `plain` elsewhere.

    The platform is chosen when XLA compiles. Each function is made once, so that JAX traces its
    branches once. `jax.checkpoint` costs nothing here, and keeps the intermediate copies out of
    what the forward pass saves for the backward pass.
    """

    def tangent(x, kernel, dx, dkernel):
        def cpu(x, kernel, dx, dkernel):
            return fast(x, kernel, dx, dkernel, *fixed)

        def default(x, kernel, dx, dkernel):
            return _bilinear_tangent(lambda x, k: plain(x, k, *fixed), x, kernel, dx, dkernel)

        return jax.lax.platform_dependent(x, kernel, dx, dkernel, cpu=cpu, default=default)

    return jax.checkpoint(tangent)


def _bilinear_tangent(
    convolve: Any, x: Array, kernel: Array, dx: Array | None, dkernel: Array
) -> Array:
    dy = convolve(x, dkernel)
    return dy if dx is None else dy + convolve(dx, kernel)


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
                f"{call} computes only plain convolutions of [B, H, W, C], got {name}={value!r}. "
                "Call jax.lax.conv_general_dilated."
            )
