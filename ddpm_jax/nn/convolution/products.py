"""What the hand-written convolutions share: products over the last axis, and their tangents.

With several axes before C, XLA computes the kernel's gradient from a transposed copy of the
output's gradient, and on CPU fuses the ops producing it into that copy: 17 ms where the product
takes 3. Flattened first, no copy is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.types import Array, PyTree


def flat(x: Array) -> Array:
    """Reshapes x [..., C] to [N, C], also for N = 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def matmul_last_axis(x: Array, kernel: Array, *_: Any, **options: Any) -> Array:
    """Multiplies x [..., C] by kernel [C, C']: [..., C'], as one product of matrices.

    Fits `flax.linen.Dense(dot_general=...)`.
    """
    y = jax.lax.dot_general(flat(x), kernel, (((1,), (0,)), ((), ())), **options)
    return y.reshape(*x.shape[:-1], kernel.shape[1])


def jvp_from_vjp(
    vjp: Callable[[Array], PyTree],
    bilinear: Callable[..., Array],
    x: Array,
    kernel: Array,
    directions: PyTree,
) -> Array:
    """Computes a JVP along `directions` as the transpose of a hand-written VJP.

    So reverse mode, which transposes the JVP, recovers exactly that VJP. `vjp` maps the gradient
    with respect to `bilinear(x, kernel)` to one gradient per direction. `bilinear` itself is never
    computed, only its output's shape and dtype.
    """
    output = jax.eval_shape(bilinear, x, kernel)
    # Adding an empty sum (0) marks the directions as device-varying inside `shard_map`, as x and
    # kernel are.
    nothing = jnp.ravel(x)[:0].sum() + jnp.ravel(kernel)[:0].sum()
    directions = jax.tree.map(lambda direction: direction + nothing, directions)
    return jax.linear_transpose(vjp, output)(directions)[0]
