"""One training step as a function: jit, devices and files belong to the caller."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.keys import example_keys
from ddpm_jax.training.ema import ema_decay_at, update_ema
from ddpm_jax.training.state import TrainState
from ddpm_jax.types import Array, PyTree

Batch = Mapping[str, Any]
LossFn = Callable[..., Any]
"""`(params, batch, keys [b]) -> losses [b]`; see `make_train_step` for losses that remember."""
UpdateLossState = Callable[[PyTree, PyTree], PyTree]


class TrainStep(Protocol):
    """`train_step(state, batch, axis_name=None) -> (state, metrics)`."""

    def __call__(
        self, state: TrainState, batch: Batch, axis_name: str | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """Takes one step."""
        ...


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.9999,
    ema_warmup: bool = False,
    update_loss_state: UpdateLossState | None = None,
) -> TrainStep:
    """Builds `train_step(state, batch, axis_name=None) -> (state, metrics)`.

    Args:
        loss_fn: `(params, batch, keys [b]) -> losses [b]`, one key and one loss per example.
        optimizer: any Optax transformation.
        ema_decay, ema_warmup: see `ema_decay_at`.
        update_loss_state: for a loss that remembers. `loss_fn` then also takes the state's
            `loss_state` and returns `(losses [b], seen)`, `seen` a pytree of [b, ...]; what all
            devices saw, in the order of the global batch, goes to
            `update_loss_state(loss_state, seen) -> loss_state`.

    `batch` holds this device's examples, and under "index" [b] their places in the global batch:
    example i of step s draws from `fold_in(fold_in(state.key, s), i)` on whichever device it lands.
    With `axis_name` the step runs unchanged under `pmap` and `shard_map`, averaging over that axis.

    Metrics are float32 scalars: loss, grad_norm (before clipping), and finite. Where the loss or
        any gradient
    is not finite the step changes nothing but the step count: parameters, average and optimiser
    stay as they were (optax.apply_if_finite gives up and applies the NaN after a while; this never
    does).
    """
    if not 0.0 <= ema_decay < 1.0:
        raise ValueError(
            f"make_train_step needs 0 <= ema_decay < 1, got {ema_decay}. At 1 the average would "
            "never move."
        )

    def train_step(state: TrainState, batch: Batch, axis_name: str | None = None):
        keys = example_keys(jax.random.fold_in(state.key, state.step), batch["index"])
        params = state.params
        if axis_name is not None:
            # Without this, shard_map sums the gradients of replicated parameters over the axis by
            # itself, and the pmean below would leave them N times too large, a fault that Adam
            # hides.
            params = jax.lax.pcast(params, axis_name, to="varying")

        def mean_loss(params):
            if update_loss_state is None:
                return jnp.mean(loss_fn(params, batch, keys)), ()
            losses, seen = loss_fn(params, batch, keys, state.loss_state)
            return jnp.mean(losses), seen

        (loss, seen), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        if axis_name is not None:
            loss, grads = jax.lax.pmean((loss, grads), axis_name)

        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new_params = optax.apply_updates(state.params, updates)
        decay = ema_decay_at(state.step, ema_decay, warmup=ema_warmup)
        loss_state = state.loss_state
        if update_loss_state is not None:
            seen = _gather(seen, batch["index"], axis_name)
            loss_state = update_loss_state(loss_state, seen)
        ema_params = update_ema(state.ema_params, new_params, decay)
        updated = (new_params, ema_params, opt_state, loss_state)
        kept = (state.params, state.ema_params, state.opt_state, state.loss_state)
        new_params, ema_params, opt_state, loss_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), updated, kept
        )
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=new_params,
            ema_params=ema_params,
            opt_state=opt_state,
            loss_state=loss_state,
        )
        return state, {"loss": loss, "grad_norm": grad_norm, "finite": finite.astype(jnp.float32)}

    return train_step


def _gather(seen: PyTree, index: Array, axis_name: str | None) -> PyTree:
    """What the examples of all devices left, [B, ...] by their places in the global batch."""
    total = index.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))

    def place(leaf: Array) -> Array:
        whole = jnp.zeros((total, *leaf.shape[1:]), leaf.dtype).at[index].set(leaf)
        # A sum of parts that do not overlap: replicated also in the eyes of shard_map, which does
        # not take the result of an all_gather for that.
        return whole if axis_name is None else jax.lax.psum(whole, axis_name)

    return jax.tree.map(place, seen)
