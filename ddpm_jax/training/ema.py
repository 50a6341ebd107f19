"""The exponential moving average of parameters that samples are drawn from (Ho et al. 2020, App.
B)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ddpm_jax.types import Array, ArrayLike, PyTree


def ema_decay_at(step: ArrayLike, decay: float, *, warmup: bool = False) -> Array:
    """The decay used after update number `step` (0-based): `decay`, or min(decay,
    (1+step)/(10+step)).

    The paper keeps 0.9999 from the first step, so for the first ten thousands of steps the average
    still remembers the initialisation. The warm-up forgets it at once; use it for short runs.
    """
    if not warmup:
        return jnp.asarray(decay, jnp.float32)
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def update_ema(ema_params: PyTree, params: PyTree, decay: ArrayLike) -> PyTree:
    """decay · average + (1 - decay) · params, leaf by leaf.

    Written as average + (1 - decay)(params - average): with 1 - decay = 1e-4 that keeps a constant
    constant, where two rounded products would let it drift.
    """
    return jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), ema_params, params)
