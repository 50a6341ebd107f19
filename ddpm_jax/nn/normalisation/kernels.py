"""Triton kernels for group normalisation, SiLU and dropout on NVIDIA GPUs.

One program has one example and as many whole groups as fit into a tile's lanes. It goes over the
positions several times, tile by tile; after the first time they come from the caches. Sums over a
group are over all pairs of lanes, because a group's size need not be a power of 2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ddpm_jax.types import Array

MOST_LANES, ROWS = 64, 128


class _Tiles:
    """What one program has of arrays [B, N, C]: some groups' channels, and the positions in tiles.

    Groups are `size` channels; lanes past the last whole group stay idle.
    """

    def __init__(self, positions: int, channels: int, groups: int):
        self.size = channels // groups
        self.positions, self.channels = positions, channels
        # Few lanes: the two programs that a multiprocessor has at a time then leave what they
        # return to in the L2 cache (an H200's: 132 × 2 × 64 KiB of 50 MB at 32×32 in bfloat16).
        self.lanes = 32 if self.size <= 32 else MOST_LANES
        self.width = self.lanes // self.size * self.size
        self.rows = min(ROWS, pl.next_power_of_2(positions))
        self.warps = max(1, min(16, self.rows * self.lanes // 256))

    def start(self) -> None:
        """Finds the program's own channels."""
        lane = jnp.arange(self.lanes)
        self.column = pl.program_id(1) * self.width + lane
        self.used = (lane < self.width) & (self.column < self.channels)
        group = lane // self.size
        self.together = (group[:, None] == group[None, :]) & self.used[None, :]

    def place(self, i: Array) -> tuple[Any, Array]:
        row = i * self.rows + jnp.arange(self.rows)
        inside = (row < self.positions)[:, None] & self.used[None, :]
        return (0, row[:, None], self.column[None, :]), inside

    def load(self, ref: Any, i: Array) -> Array:
        """Tile i of an array, in float32."""
        where, inside = self.place(i)
        return plgpu.load(ref.at[where], mask=inside, other=0).astype(jnp.float32)

    def vector(self, ref: Any, *where: int) -> Array:
        """The program's part of a vector, in float32."""
        return plgpu.load(ref.at[(*where, self.column)], mask=self.used, other=0).astype(
            jnp.float32
        )

    def store(self, ref: Any, values: Array, *where: int) -> None:
        """Stores the program's part of a vector."""
        plgpu.store(ref.at[(0, *where, self.column)], values.astype(ref.dtype), mask=self.used)

    def sums(self, of: Callable[[Array], tuple[Array, ...]], count: int) -> tuple[Array, ...]:
        """Sums of a tile's `count` values over all positions, for each channel."""

        def add(i, totals):
            _, inside = self.place(i)
            values = of(i)
            return tuple(
                t + jnp.sum(jnp.where(inside, v, 0.0), axis=0)
                for t, v in zip(totals, values, strict=True)
            )

        zeros = (jnp.zeros((self.lanes,), jnp.float32),) * count
        return jax.lax.fori_loop(0, pl.cdiv(self.positions, self.rows), add, zeros)

    def each(self, ref: Any, values: Callable[[Array], Array]) -> None:
        """Stores tiles."""

        def write(i, _):
            where, inside = self.place(i)
            plgpu.store(ref.at[where], values(i).astype(ref.dtype), mask=inside)

        jax.lax.fori_loop(0, pl.cdiv(self.positions, self.rows), write, None)

    def group_mean(self, sums: Array) -> Array:
        """The mean over positions and group of what was summed for each channel."""
        of_group = jnp.sum(jnp.where(self.together, sums[None, :], 0.0), axis=1)
        return of_group / (self.size * self.positions)


def _forward(*refs, form: Any, tiles: _Tiles) -> None:
    x, scale, bias, shift, *keep, y, mean_ref, inverse_ref = refs
    tiles.start()
    moved = tiles.vector(shift, 0)[None, :]
    h = lambda i: tiles.load(x, i) + moved  # noqa: E731
    mean = tiles.group_mean(*tiles.sums(lambda i: (h(i),), 1))
    centred = lambda i: h(i) - mean[None, :]  # noqa: E731
    variance = tiles.group_mean(*tiles.sums(lambda i: (jnp.square(centred(i)),), 1))
    inverse = jax.lax.rsqrt(variance + form.epsilon)
    gain, offset = inverse * tiles.vector(scale), tiles.vector(bias)

    def result(i):
        r = centred(i) * gain[None, :] + offset[None, :]
        r = r * jax.nn.sigmoid(r) if form.silu else r
        return r * tiles.load(keep[0], i) / (1.0 - form.rate) if keep else r

    tiles.each(y, result)
    tiles.store(mean_ref, mean)
    tiles.store(inverse_ref, inverse)


def _backward(*refs, form: Any, tiles: _Tiles) -> None:
    x, scale, bias, shift, *keep, mean_ref, inverse_ref, gradient_ref = refs[:-3]
    dx, daffine, dshift = refs[-3:]
    tiles.start()
    mean, inverse = tiles.vector(mean_ref, 0), tiles.vector(inverse_ref, 0)
    gain, offset = tiles.vector(scale), tiles.vector(bias)
    origin = (mean - tiles.vector(shift, 0))[None, :]

    def both(i):
        """The normalised tile, and the gradient with respect to what SiLU is applied to."""
        normal = (tiles.load(x, i) - origin) * inverse[None, :]
        gradient = tiles.load(gradient_ref, i)
        if keep:
            gradient = gradient * tiles.load(keep[0], i) / (1.0 - form.rate)
        if form.silu:
            h = normal * gain[None, :] + offset[None, :]
            s = jax.nn.sigmoid(h)
            gradient = gradient * s * (1.0 + h * (1.0 - s))
        return normal, gradient

    def moments(i):
        normal, gradient = both(i)
        return gradient, gradient * normal, normal

    of_gradient, of_product, normals = tiles.sums(moments, 3)
    level = tiles.group_mean(of_gradient * gain)[None, :]
    slope = tiles.group_mean(of_product * gain)[None, :]

    def of_x(i):
        normal, gradient = both(i)
        return inverse[None, :] * (gradient * gain[None, :] - level - normal * slope)

    tiles.each(dx, of_x)
    tiles.store(daffine, of_product, 0)
    tiles.store(daffine, of_gradient, 1)
    n = tiles.positions
    tiles.store(dshift, inverse * (of_gradient * gain - n * level[0] - normals * slope[0]))


def _call(kernel: Any, arrays: Any, results: Any, form: Any) -> list[Array]:
    batch, positions, channels = arrays[0].shape
    tiles = _Tiles(positions, channels, form.groups)

    def spec(array: Any) -> pl.BlockSpec:
        """An example's part of an array, or all of a vector."""
        if array.ndim == 1:
            return pl.BlockSpec(array.shape, lambda b, _: (0,))
        return pl.BlockSpec((1, *array.shape[1:]), lambda b, _: (b, *(0,) * (array.ndim - 1)))

    return pl.pallas_call(
        functools.partial(kernel, form=form, tiles=tiles),
        out_shape=results,
        grid=(batch, math.ceil(channels / tiles.width)),
        in_specs=list(map(spec, arrays)),
        out_specs=list(map(spec, results)),
        compiler_params=plgpu.CompilerParams(num_warps=tiles.warps),
        interpret=form.interpret,
        name=kernel.__name__.strip("_"),
    )(*arrays)


def forward(*arrays: Array, form: Any) -> list[Array]:
    """The result [B, N, C], and each channel's mean and 1 / √(variance + ε), [B, C]."""
    x = arrays[0]
    vectors = jax.ShapeDtypeStruct((x.shape[0], x.shape[2]), jnp.float32)
    results = [jax.ShapeDtypeStruct(x.shape, form.dtype), vectors, vectors]
    return _call(_forward, arrays, results, form)


def backward(*arrays: Array, form: Any) -> list[Array]:
    """The gradients of x, scale, bias and shift, from forward's arguments, moments and ȳ."""
    x, scale, bias, shift = arrays[:4]
    batch, channels = shift.shape
    # The terms of scale and bias in one array, which one operation adds up.
    shapes = (x.shape, x.dtype), ((batch, 2, channels), jnp.float32), (shift.shape, jnp.float32)
    results = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    dx, daffine, dshift = _call(_backward, arrays, results, form)
    dscale, dbias = daffine.sum(0)
    return [dx, dscale.astype(scale.dtype), dbias.astype(bias.dtype), dshift.astype(shift.dtype)]
