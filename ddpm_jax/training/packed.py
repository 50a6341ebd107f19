"""Trees of parameters as two long arrays, for devices where every operation has a cost of its own.

An optimiser and an average over 328 arrays are some 750 small kernels on a GPU, and a dozen over
two. A dispatch packs the state before its first step and unpacks it after its last, so outside it
nothing differs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.training.state import TrainState
from ddpm_jax.types import Array, PyTree

_STATIC: dict[str, Any] = {"metadata": {"static": True}}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """A tree of arrays of one dtype, joined.

    An Optax transformation that treats every number alike, as Adam and the norm of all gradients
    do, does the same to a `Packed` as to the tree. Kernels and vectors are apart because some
    decay kernels alone (`training.optimizer.decays`).

    Attributes:
        kernels: [1, N], all arrays with two or more axes. Kernels of convolutions [..., in, out]
            are stored as [out, ..., in], as GPUs read them.
        vectors: [M], all other arrays.
        structure, shapes: of the tree.
    """

    kernels: Array
    vectors: Array
    structure: Any = dataclasses.field(**_STATIC)
    shapes: tuple[tuple[int, ...], ...] = dataclasses.field(**_STATIC)


def pack(tree: PyTree) -> Packed:
    """Joins the arrays of a tree."""
    leaves, structure = jax.tree.flatten(tree)

    def joined(kernels: bool) -> Array:
        parts = [leaf for leaf in leaves if (leaf.ndim > 1) == kernels]
        flat = [part.transpose(_order(part.ndim)).ravel() for part in parts]
        return jnp.concatenate(flat) if flat else jnp.zeros(0, leaves[0].dtype)

    shapes = tuple(leaf.shape for leaf in leaves)
    return Packed(joined(True)[None], joined(False), structure, shapes)


@jax.custom_vjp
def unpack(packed: Packed) -> PyTree:
    """The tree that `pack` joined. Its gradient is the packed gradient of the tree.

    JAX's own gradient would add up one array of the full length per leaf.
    """
    return jax.tree.unflatten(packed.structure, list(_leaves(packed)))


unpack.defvjp(lambda packed: (unpack(packed), None), lambda _, gradient: (pack(gradient),))


def pack_state(state: TrainState) -> TrainState:
    """Packs the parameters, their averages, and what the optimiser keeps for every parameter.

    A state with a single parameter array, or with parameters of several dtypes, is returned as it
    is.
    """
    leaves, structure = jax.tree.flatten(state.params)
    if len(leaves) < 2 or len({leaf.dtype for leaf in leaves}) > 1:
        return state
    shapes = [leaf.shape for leaf in leaves]

    def like_params(tree: PyTree) -> bool:
        alike = jax.tree.structure(tree) == structure
        return alike and [leaf.shape for leaf in jax.tree.leaves(tree)] == shapes

    return jax.tree.map(lambda t: pack(t) if like_params(t) else t, state, is_leaf=like_params)


def unpack_state(state: TrainState) -> TrainState:
    """The state that `pack_state` was given."""
    return jax.tree.map(unpacked, state, is_leaf=_is_packed)


def unpacked(tree: PyTree) -> PyTree:
    """The tree that was packed, or the tree itself if it is not packed."""
    return unpack(tree) if _is_packed(tree) else tree


def _is_packed(tree: PyTree) -> bool:
    return isinstance(tree, Packed)


def _leaves(packed: Packed) -> Iterator[Array]:
    flat = {True: packed.kernels[0], False: packed.vectors}
    begin = {True: 0, False: 0}
    for shape in packed.shapes:
        kernel, order = len(shape) > 1, _order(len(shape))
        end = begin[kernel] + math.prod(shape)
        stored = flat[kernel][begin[kernel] : end].reshape([shape[axis] for axis in order])
        yield stored.transpose(np.argsort(order))
        begin[kernel] = end


def _order(ndim: int) -> tuple[int, ...]:
    """The order of the axes in which an array is stored."""
    axes = tuple(range(ndim))
    return (axes[-1], *axes[:-1]) if ndim > 2 else axes
