"""The vocabulary every module shares: arrays, keys, the denoiser, and how shapes are read.

Shape legend, used by every docstring:

    B           batch
    H, W, C     height, width, channels (images are NHWC)
    T           number of steps of the diffusion process
    [B, ...]    a batch of events of any shape: images, vectors, or plain scalars [B]
    t           int32 step, [B] for one step per example or [] for one step shared by all;
                0-based, so the code's t is the papers' t+1
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
Key = jax.Array  # a typed key, as `jax.random.key` makes them
Device = Any  # a jax.Device: that name is a function's value to type checkers
PyTree = Any


class ApplyFn(Protocol):
    """A network with its parameters bound: `apply_fn(x_t, timesteps) -> output`.

    `timesteps` [B] are the numbers of the process the network was trained on
    (`schedule.timesteps[t]`), whatever grid a sampler walks on.
    """

    def __call__(self, x_t: Array, timesteps: Array, /) -> Array:
        """Evaluates the network."""
        ...


class Denoiser(Protocol):
    """A network seen through its estimate of the clean data: `denoise(x_t, t) -> x_0_hat` [B, ...].

    `t` [B] counts steps of the full process the denoiser is bound to. A denoiser of a model that
    also learned its variance returns the pair `(x_0_hat, variance_output)`.
    """

    def __call__(self, x_t: Array, t: Array, /) -> Any:
        """Estimates x_0."""
        ...


def bcast_right(x: ArrayLike, ndim: int) -> Array:
    """Appends axes of size one to x until it has `ndim` axes, so that [B] meets [B, H, W, C].

    Raises ValueError when x already has more axes than `ndim`.
    """
    x = jnp.asarray(x)
    if x.ndim > ndim:
        raise ValueError(
            f"bcast_right cannot fit shape {x.shape} into {ndim} axes: it appends axes and drops "
            "none. Per-example values have shape [B] (or []), and events [B, ...]."
        )
    return jnp.reshape(x, x.shape + (1,) * (ndim - x.ndim))


def mean_per_example(x: Array) -> Array:
    """Averages x [B, ...] over every axis but the first, in float32 or wider: [B]."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))
