"""Skips training steps whose loss is far above its running mean.

One bad batch can distort Adam's moments for thousands of steps. The guard keeps a running mean of
the losses of the steps that were taken, and skips a step whose loss exceeds `factor` times that
mean.
"""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp

from ddpm_jax.types import Array

DECAY = 0.99
PATIENCE = 50
"""Steps before any is called a spike: the loss of a new network falls steeply."""


@flax.struct.dataclass
class SpikeGuard:
    """The running mean of the losses, float32 [], and the number of steps taken, int32 []."""

    mean: Array
    count: Array


def init_spike_guard() -> SpikeGuard:
    """The guard before the first step."""
    return SpikeGuard(mean=jnp.zeros((), jnp.float32), count=jnp.zeros((), jnp.int32))


def is_spike(guard: SpikeGuard, loss: Array, factor: float) -> Array:
    """Whether loss > factor · mean, bool []; never within the first 50 steps."""
    return (guard.count >= PATIENCE) & (loss > factor * guard.mean)


def watch_loss(guard: SpikeGuard, loss: Array) -> SpikeGuard:
    """The guard after a step with this loss.

    The mean is plain at first, then exponential with decay 0.99.
    """
    share = jnp.maximum(1.0 / (guard.count + 1), 1.0 - DECAY)
    return SpikeGuard(mean=guard.mean + share * (loss - guard.mean), count=guard.count + 1)
