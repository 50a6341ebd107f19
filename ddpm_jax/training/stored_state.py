"""A train state as Orbax stores it: dictionaries by field name, with random keys as integers."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import numpy as np

from ddpm_jax.keys import is_key
from ddpm_jax.types import PyTree

T = TypeVar("T")


def stored_tree(state: PyTree) -> dict[str, Any]:
    """The arrays of a state as they are stored."""
    raw = lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf  # noqa: E731
    return _fields(jax.tree.map(raw, state))


def stored_shapes(like: PyTree) -> dict[str, Any]:
    """The ShapeDtypeStructs of `stored_tree`, placed where `like` is placed."""

    def describe(leaf):
        sharding = getattr(leaf, "sharding", None)
        if is_key(leaf):
            data = jax.eval_shape(jax.random.key_data, leaf)
            if isinstance(leaf, jax.Array):
                sharding = jax.random.key_data(leaf).sharding
            return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)

    return _fields(jax.tree.map(describe, like))


def from_stored(tree: dict[str, Any], like: T) -> T:
    """The state whose `stored_tree` this is; fields that are not stored are those of `like`."""
    empty = {n: getattr(like, n) for n in like.__dataclass_fields__ if n not in tree}  # type: ignore[attr-defined]
    return jax.tree.map(
        lambda leaf, wanted: (
            jax.random.wrap_key_data(leaf, impl=_key_impl(wanted)) if is_key(wanted) else leaf
        ),
        type(like)(**tree, **empty),
        like,
    )


def _fields(tree: PyTree) -> PyTree:
    """The same leaves in dictionaries by field name, which every version of Orbax stores alike.

    Optional fields that hold nothing are left out: a state may gain one and still be restored. The
    others are written even so, as the state of an optimiser without memory always was.
    """
    return {
        field.name: getattr(tree, field.name)
        for field in dataclasses.fields(tree)
        if field.default is dataclasses.MISSING or jax.tree.leaves(getattr(tree, field.name))
    }


def _key_impl(key):
    if isinstance(key, jax.Array):
        return jax.random.key_impl(key)
    # A ShapeDtypeStruct does not name its generator. JAX's default may be another one than ours.
    words = jax.eval_shape(jax.random.key_data, key).shape[-1]
    return {2: "threefry2x32", 4: "rbg"}.get(words)
