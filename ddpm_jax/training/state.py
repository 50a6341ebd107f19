"""The train state: everything a run needs to go on exactly where it stopped, as one pytree."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ddpm_jax.types import Array, Key, PyTree


@flax.struct.dataclass
class TrainState:
    """What a training step reads and writes.

    Attributes:
        step: int32 [], the number of steps taken.
        params: the network's parameters.
        ema_params: their exponential moving average, which sampling and evaluation use.
        opt_state: Optax's state.
        key: the run's key; step s draws from `fold_in(key, s)`.
        loss_state: what the loss remembers from step to step, such as a `LossHistory`; () for most.
        guard: a `SpikeGuard`, where steps of outlying loss are refused; else ().
    """

    step: Array
    params: PyTree
    ema_params: PyTree
    opt_state: PyTree
    key: Key
    loss_state: PyTree = ()
    guard: PyTree = ()


def init_state(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    key: Key,
    loss_state: PyTree = (),
    guard: PyTree = (),
) -> TrainState:
    """The state before the first step; the average starts at the parameters themselves."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: were both the same buffers, donating the state would donate them twice.
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        key=key,
        loss_state=loss_state,
        guard=guard,
    )
