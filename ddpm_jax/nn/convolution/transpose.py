"""Tangents written as the transpose of their gradients, for reverse mode to find just those."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.types import Array, PyTree


def transpose_of(
    gradients: Callable[[Array], PyTree],
    bilinear: Callable[..., Array],
    x: Array,
    kernel: Array,
    directions: PyTree,
) -> Array:
    """Maps `directions` to `bilinear(x, kernel)`'s shape by the transpose of `gradients`.

    `gradients` maps the gradient by that output to one by each of the directions. Of `bilinear`
    only the output's shape and dtype are computed.
    """
    output = jax.eval_shape(bilinear, x, kernel)
    # The sum of no numbers is 0, and within `shard_map` says of what it is added to that it may
    # differ from device to device as x and the kernel do.
    nothing = jnp.ravel(x)[:0].sum() + jnp.ravel(kernel)[:0].sum()
    directions = jax.tree.map(lambda direction: direction + nothing, directions)
    return jax.linear_transpose(gradients, output)(directions)[0]
