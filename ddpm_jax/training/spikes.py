"""A guard against loss spikes: a step whose loss is far above what it has been changes nothing.

One bad batch can throw Adam's moments off for thousands of steps. The guard keeps a running mean of
the losses of the steps that were taken, and refuses a step whose loss is more than `factor` times
that mean.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp

from ddpm_jax.types import Array

DECAY = 0.99
PATIENCE = 50
"""Steps taken before anything is called a spike: a fresh network's loss falls steeply."""


@flax.struct.dataclass
class SpikeGuard:
    """What the guard remembers: float32 [] mean of the losses, int32 [] number of steps taken."""

    mean: Array
    count: Array


def init_spike_guard() -> SpikeGuard:
    """A guard that has seen nothing."""
    return SpikeGuard(mean=jnp.zeros((), jnp.float32), count=jnp.zeros((), jnp.int32))


def is_spike(guard: SpikeGuard, loss: Array, factor: float) -> Array:
    """Whether loss > factor · mean, once 50 steps were taken; bool []."""
    return (guard.count >= PATIENCE) & (loss > factor * guard.mean)


def watch_loss(guard: SpikeGuard, loss: Array) -> SpikeGuard:
    """The guard after a step of this loss was taken.

    A plain mean at first, then one that forgets as 0.99ⁿ.
    """
    share = jnp.maximum(1.0 / (guard.count + 1), 1.0 - DECAY)
    return SpikeGuard(mean=guard.mean + share * (loss - guard.mean), count=guard.count + 1)
