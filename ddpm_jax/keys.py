"""Random numbers per example: every example draws from its own key.

Example i of a batch uses `fold_in(key, i)`, where i counts over the global batch. Its random
numbers therefore depend neither on the batch it is computed in nor on the number of devices.
That needs a generator whose numbers under `vmap` depend on each row's key alone: threefry, JAX's
default. "rbg" and "unsafe_rbg" draw a whole batch from its first key, and are refused.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.types import Array, ArrayLike, Key, as_array, describe


def is_key(x: Any) -> bool:
    """Whether x is a typed key, or an array, shape or tracer of them.

    >>> dj.keys.is_key(jax.random.key(0))
    True
    """
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def make_key(seed: ArrayLike) -> Key:
    """The key of a seed [], always threefry's: JAX_DEFAULT_PRNG_IMPL does not change it.

    Raises TypeError unless the seed is one integer, ValueError unless it is in 0..2³²-1: JAX drops
    the higher bits, so that seeds 2³² apart would give the same key. Traced seeds are not checked.

    >>> dj.keys.make_key(0).shape
    ()
    """
    _check_integer("make_key", "a seed", seed)
    _check_32_bits("make_key", "a seed", seed)
    return jax.random.key(seed, impl="threefry2x32")


def example_keys(key: Key, index: ArrayLike) -> Key:
    """One key per example [B], from one key [] and the examples' global indices, int [B].

    Raises TypeError if `key` is not a typed key or `index` not of integers, and ValueError for
    other shapes, for keys of "rbg" generators, and for NumPy indices outside 0..2³²-1.

    >>> dj.example_keys(jax.random.key(0), jnp.arange(4)).shape
    (4,)
    """
    _check_key("example_keys", key, "one key [], such as jax.random.key(0)", ())
    given, index = index, as_array("example_keys", "index", index)
    if not jnp.issubdtype(index.dtype, jnp.integer) or index.ndim != 1:
        raise TypeError(
            "example_keys needs the examples' indices, int [B], such as jnp.arange(B); got "
            f"{describe(index)}."
        )
    _check_32_bits("example_keys", "indices", given)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def fold_in_each(keys: Key, data: ArrayLike) -> Key:
    """Folds the same number `data` [] into every key [B]: a new stream per example.

    Raises as `check_keys` does, and TypeError unless `data` is one integer.

    >>> dj.keys.fold_in_each(dj.example_keys(jax.random.key(0), jnp.arange(4)), 7).shape
    (4,)
    """
    check_keys("fold_in_each", keys)
    _check_integer("fold_in_each", "data", data)
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, jnp.asarray(data))


def split_each(keys: Key, num: int) -> tuple[Key, ...]:
    """Splits every key [B] into `num` independent streams, one [B] array per purpose.

    Raises as `check_keys` does, and TypeError unless `num` is a whole number of at least 1.

    >>> [k.shape for k in dj.keys.split_each(dj.example_keys(jax.random.key(0), jnp.arange(4)), 2)]
    [(4,), (4,)]
    """
    check_keys("split_each", keys)
    if not isinstance(num, int) or isinstance(num, bool) or num < 1:
        raise TypeError(f"split_each needs num, a whole number of at least 1, got {describe(num)}.")
    return tuple(fold_in_each(keys, purpose) for purpose in range(num))


def normal_per_example(keys: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Standard normal noise [B, *shape], row i from keys[i] alone.

    `shape` is one event's, without the batch. Raises as `check_keys` does, and TypeError for a
    shape that is not a tuple of whole numbers or a dtype that is not floating point.

    >>> dj.normal_per_example(dj.example_keys(jax.random.key(0), jnp.arange(4)), (8, 8, 1)).shape
    (4, 8, 8, 1)
    """
    shape = check_draw("normal_per_example", keys, shape, dtype)
    return jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys)


def check_draw(call: str, keys: Key, shape: tuple[int, ...], dtype=jnp.float32) -> tuple[int, ...]:
    """One event's shape as a tuple. Raises, in the name of the call, as `normal_per_example`."""
    check_keys(call, keys)
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = (-1,)
    if any(size < 0 for size in sizes):
        raise TypeError(
            f"{call} needs one event's shape as a tuple of whole numbers, such as (32, 32, 3), or "
            f"() for scalars; got {describe(shape)}."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{call} needs a floating-point dtype, got {dtype}.")
    return sizes


def check_keys(call: str, keys: Key, count: int | None = None) -> None:
    """Raises, in the name of the call, unless `keys` is [B] typed keys, B = count if given.

    TypeError for anything but typed keys; ValueError for another shape, such as one key [] for a
    whole batch, and for generators that under `vmap` draw all rows from the first key.
    """
    wanted = "keys [B], one per example: example_keys(key, jnp.arange(B))"
    if count is not None:
        wanted += f", B = {count}"
    _check_key(call, keys, wanted, None if count is None else (count,))


def _check_integer(call: str, name: str, value: ArrayLike) -> None:
    number = as_array(call, name, value) if not isinstance(value, int) else None
    if isinstance(value, bool) or not (
        number is None or (number.ndim == 0 and jnp.issubdtype(number.dtype, jnp.integer))
    ):
        raise TypeError(f"{call} needs {name}, one integer [], got {describe(value)}.")


def _check_32_bits(call: str, name: str, value: ArrayLike) -> None:
    """Raises ValueError for a Python or NumPy number outside 0..2³²-1; JAX arrays pass."""
    host = np.zeros(1, int) if isinstance(value, jax.Array) else np.asarray(value)
    if host.size and not (0 <= host.min() and host.max() < 2**32):
        raise ValueError(f"{call} needs {name} in 0..2³²-1, got {host.min()}..{host.max()}.")


def _check_key(call: str, key: Key, wanted: str, shape: tuple[int, ...] | None) -> None:
    if not is_key(key):
        raise TypeError(
            f"{call} needs {wanted}; got {describe(key)}. Typed keys come from jax.random.key, not "
            "from PRNGKey."
        )
    if key.shape != shape if shape is not None else key.ndim != 1:
        raise ValueError(f"{call} needs {wanted}; got keys of shape {key.shape}.")
    if "rbg" in (impl := str(jax.random.key_impl(key))):
        raise ValueError(
            f"{call} got a key of the generator {impl!r}, which draws a whole batch from its first "
            "key, so that an example would depend on its batch. Unset JAX_DEFAULT_PRNG_IMPL "
            "(jax_default_prng_impl), or make the key with jax.random.key(seed, "
            "impl='threefry2x32')."
        )
