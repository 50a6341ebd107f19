"""The training state: a pytree of everything a run needs to resume exactly, and its average."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ddpm_jax.types import Array, ArrayLike, Key, PyTree


@flax.struct.dataclass
class TrainState:
    """What a training step reads and writes.

    Attributes:
        step: int32 [], the number of steps taken.
        params: the network's parameters.
        ema_params: their exponential moving average, which sampling and evaluation use.
        opt_state: Optax's state.
        key: the run's key; step s draws from `fold_in(key, s)`.
        loss_state: the state of losses that have one, such as a `LossHistory`; else ().
        guard: a `SpikeGuard` if steps with outlying losses are skipped; else ().
        extra_ema_params: further averages, a tuple of trees like `ema_params`.
    """

    step: Array
    params: PyTree
    ema_params: PyTree
    opt_state: PyTree
    key: Key
    loss_state: PyTree = ()
    guard: PyTree = ()
    extra_ema_params: PyTree = ()


def init_state(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    key: Key,
    loss_state: PyTree = (),
    guard: PyTree = (),
    num_extra_emas: int = 0,
) -> TrainState:
    """The state before the first step; every average starts at the parameters themselves."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: donating the state would otherwise donate the same buffers twice.
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        key=key,
        loss_state=loss_state,
        guard=guard,
        extra_ema_params=tuple(jax.tree.map(jnp.copy, params) for _ in range(num_extra_emas)),
    )


def ema_decay_at(step: ArrayLike, decay: float, *, warmup: bool = False) -> Array:
    """The decay of the average at update `step` (0-based), for the parameters sampled from.

    `decay`, or min(decay, (1 + step) / (10 + step)) with `warmup`. Ho et al. (2020, App. B) use
    0.9999 from the first step, so that the initial parameters stay in the average for tens of
    thousands of steps. With warm-up they vanish at once; use it for short runs.
    """
    if not warmup:
        return jnp.asarray(decay, jnp.float32)
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def update_ema(ema_params: PyTree, params: PyTree, decay: ArrayLike) -> PyTree:
    """decay · average + (1 - decay) · params, leaf by leaf.

    Written as average + (1 - decay)(params - average): with 1 - decay = 1e-4 a constant then stays
    constant, where two rounded products would drift.
    """
    return jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), ema_params, params)
