"""The training state: a pytree of everything a run needs to resume exactly, and its average."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.forward.checks import check_flag, check_number, check_real, check_steps, is_number
from ddpm_jax.keys import is_key
from ddpm_jax.types import Array, ArrayLike, Key, PyTree, describe


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


def check_tree(call: str, name: str, tree: PyTree) -> None:
    """Raises TypeError unless this is a tree of at least one array."""
    leaves = jax.tree.leaves(tree)
    if not leaves or not all(hasattr(leaf, "dtype") and hasattr(leaf, "shape") for leaf in leaves):
        raise TypeError(f"{call} needs {name}, a tree of arrays, got {describe(tree)}.")


def check_optimizer(call: str, optimizer: optax.GradientTransformation) -> None:
    """Raises TypeError for anything but an Optax transformation."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"{call} needs an Optax transformation, as make_optimizer(2e-4) makes it, got "
            f"{describe(optimizer)}."
        )


def init_state(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    key: Key,
    loss_state: PyTree = (),
    guard: PyTree = (),
    num_extra_emas: int = 0,
) -> TrainState:
    """The state before the first step; every average starts at the parameters themselves.

    Raises TypeError for parameters that are not arrays, for anything but an Optax transformation,
    and for anything but one typed key.
    """
    check_tree("init_state", "params", params)
    check_optimizer("init_state", optimizer)
    if not is_key(key) or key.shape:
        raise TypeError(
            "init_state needs one typed key, as jax.random.key(seed) makes it, got "
            f"{describe(key)}."
        )
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


def check_decay(call: str, decay: float) -> None:
    """Raises ValueError unless 0 <= decay < 1."""
    remedy = "At 1 the average would never move (--optimizer.ema-decay)."
    check_number(call, "the decay of the average", decay, remedy, within="[0, 1)")


def ema_decay_at(step: ArrayLike, decay: float, *, warmup: bool = False) -> Array:
    """The decay of the average at update `step` (0-based), for the parameters sampled from.

    `decay`, or min(decay, (1 + step) / (10 + step)) with `warmup`. Ho et al. (2020, App. B) use
    0.9999 from the first step, so that the initial parameters stay in the average for tens of
    thousands of steps. With warm-up they vanish at once; use it for short runs.

    Raises TypeError for steps that are not integers, ValueError for a decay outside [0, 1).
    """
    check_decay("ema_decay_at", decay)
    check_flag("ema_decay_at", "warmup", warmup)
    check_steps("ema_decay_at", step, 2**31)
    if not warmup:
        return jnp.asarray(decay, jnp.float32)
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def update_ema(ema_params: PyTree, params: PyTree, decay: ArrayLike) -> PyTree:
    """decay · average + (1 - decay) · params, leaf by leaf.

    Written as average + (1 - decay)(params - average): with 1 - decay = 1e-4 a constant then stays
    constant, where two rounded products would drift. Raises ValueError for trees of different
    structure or shapes, and for a decay outside [0, 1] that the host can read.
    """
    call = "update_ema"
    for name, tree in (("ema_params", ema_params), ("params", params)):
        check_tree(call, name, tree)
    ours, theirs = (jax.tree.map(jnp.shape, tree) for tree in (ema_params, params))
    if ours != theirs:
        raise ValueError(f"{call} needs two trees of equal shapes, got {ours} and {theirs}.")
    check_real(call, decay=decay)
    if jnp.shape(decay) or (is_number(decay) and not 0.0 <= float(np.asarray(decay)) <= 1.0):
        raise ValueError(f"{call} needs one decay in [0, 1], got {describe(decay)}.")
    return jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), ema_params, params)
