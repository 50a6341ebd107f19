"""Random numbers by example: every example draws from a key of its own.

Example i of a batch uses `fold_in(key, i)`, i counting over the global batch. What it draws
therefore depends neither on the size of the batch it happens to be computed in nor on how many
devices share the work.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ddpm_jax.types import Array, ArrayLike, Key


def example_keys(key: Key, index: ArrayLike) -> Key:
    """One key per example [B], from one key and the examples' global indices [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(index))


def fold_in_each(keys: Key, data: ArrayLike) -> Key:
    """Folds the same number `data` [] into every key [B]: a new stream per example."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, jnp.asarray(data))


def split_each(keys: Key, num: int) -> tuple[Key, ...]:
    """Splits every key [B] into `num` independent streams, one [B] array a purpose."""
    return tuple(fold_in_each(keys, purpose) for purpose in range(num))


def normal_per_example(keys: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Standard normal noise [B, *shape], row i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)
