"""The training step as a function; jit, devices and files are left to the caller."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.forward.checks import check_flag, check_function, check_number, check_whole
from ddpm_jax.keys import example_keys
from ddpm_jax.training.collectives import AxisNames, Collectives, replicated
from ddpm_jax.training.fsdp import FullySharded
from ddpm_jax.training.packed import unpacked
from ddpm_jax.training.spikes import is_spike, watch_loss
from ddpm_jax.training.state import (
    TrainState,
    check_decay,
    check_optimizer,
    ema_decay_at,
    update_ema,
)
from ddpm_jax.types import Array, Key, PyTree

Batch = Mapping[str, Any]
LossFn = Callable[..., Any]
"""`(params, batch, keys [b]) -> losses [b]`; see `make_train_step` for losses with a state."""
UpdateLossState = Callable[[PyTree, PyTree], PyTree]


TrainStep = Callable[..., tuple[TrainState, dict[str, Array]]]
"""`train_step(state, batch, axis_name=None, layout=None) -> (state, metrics)`."""


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.9999,
    ema_warmup: bool = False,
    update_loss_state: UpdateLossState | None = None,
    num_microbatches: int = 1,
    spike_factor: float | None = None,
    extra_emas: Sequence[Callable[[Array], Array]] = (),
) -> TrainStep:
    """Builds `train_step(state, batch, axis_name=None, layout=None) -> (state, metrics)`.

    Args:
        loss_fn: `(params, batch, keys [b]) -> losses [b]`, one key and one loss per example.
        optimizer: any Optax transformation.
        ema_decay, ema_warmup: see `ema_decay_at`.
        update_loss_state: for a loss with a state. `loss_fn` then takes `state.loss_state` as its
            fourth argument and returns `(losses [b], seen)`, where `seen` is a pytree of [b, ...].
            `update_loss_state(loss_state, seen) -> loss_state` gets the `seen` of all devices, in
            the order of the global batch.
        num_microbatches: the number of parts into which each device's examples are divided. The
            parts pass through the network one after another and their gradients are averaged: the
            same step with less memory.
        spike_factor: a step whose loss exceeds this times its running mean is skipped
            (`training.spikes`); the state must come from `init_state(..., guard=...)`. None skips
            no steps.
        extra_emas: the decays of further averages as functions of the step (0-based), such as
            `power_ema_decay_at`; the state must come from `init_state(..., num_extra_emas=...)`.

    `batch` holds this device's examples, and under "index" [b] their positions in the global batch:
    example i of step s draws from `fold_in(fold_in(state.key, s), i)` on any device. With
    `axis_name` the step runs under `pmap` and `shard_map` and averages over that axis; with
    `layout` it runs under plain `jit` on arrays that are split as the layout says.

    Metrics are float32 scalars: loss, grad_norm (before clipping), finite and, with spike_factor,
    spike. If the loss or a gradient is not finite, or the loss is a spike, the step changes only
    the step count; parameters, average and optimiser keep their values. (optax.apply_if_finite
    applies the NaN after a number of such steps; this never does.)

    Raises ValueError for an ema_decay, num_microbatches or spike_factor that no run could use.
    """
    call = "make_train_step"
    check_function(call, "loss_fn", loss_fn, "(params, batch, keys [b]) -> losses [b]")
    check_optimizer(call, optimizer)
    check_decay(call, ema_decay)
    check_flag(call, "ema_warmup", ema_warmup)
    if update_loss_state is not None:
        signature = "(loss_state, seen) -> loss_state"
        check_function(call, "update_loss_state", update_loss_state, signature)
    num_microbatches = check_whole(
        call, "num_microbatches", num_microbatches, remedy="--devices.microbatches sets it."
    )
    if spike_factor is not None:
        remedy = "At 1 every other step would be a spike (--optimizer.spike-factor)."
        check_number(call, "spike_factor", spike_factor, remedy, within="(1, inf]")

    def gradients(params, loss_state, key, batch, collectives: Collectives | None = None):
        if collectives is not None:
            params = collectives.vary(params)

        keys = example_keys(key, batch["index"])

        def mean_loss(params, batch, keys):
            whole = unpacked(params if collectives is None else collectives.gather(params))
            if update_loss_state is None:
                return jnp.mean(loss_fn(whole, batch, keys)), ()
            losses, seen = loss_fn(whole, batch, keys, loss_state)
            return jnp.mean(losses), seen

        with_grad = jax.value_and_grad(mean_loss, has_aux=True)
        if num_microbatches == 1:
            (loss, seen), grads = with_grad(params, batch, keys)
        else:
            axes = None if collectives is None else collectives.axes
            loss, seen, grads = _accumulate(with_grad, params, batch, keys, num_microbatches, axes)
        if collectives is not None:
            loss, grads = jax.lax.pmean(loss, collectives.axes), collectives.mean(grads)
        seen = _gather(seen, batch["index"], None if collectives is None else collectives.axes)
        return loss, seen, grads

    def train_step(
        state: TrainState,
        batch: Batch,
        axis_name: AxisNames | None = None,
        layout: FullySharded | None = None,
    ):
        key = jax.random.fold_in(state.key, state.step)
        local = (state.params, state.loss_state, key, batch)
        if layout is not None:
            loss, seen, grads = layout.map_gradients(gradients)(*local)
        else:
            shared = None if axis_name is None else replicated(axis_name)
            loss, seen, grads = gradients(*local, shared)

        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        taken, guard = finite, state.guard
        metrics = {"loss": loss, "grad_norm": grad_norm, "finite": finite.astype(jnp.float32)}
        if spike_factor is not None:
            spike = is_spike(guard, loss, spike_factor)
            taken, guard = finite & ~spike, watch_loss(guard, loss)
            metrics["spike"] = spike.astype(jnp.float32)
        # Optax multiplies its integer counters with floats.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)

        def kept(new: PyTree, old: PyTree) -> PyTree:
            return jax.tree.map(lambda n, o: jnp.where(taken, n, o), new, old)

        proposed = optax.apply_updates(state.params, updates)
        params = kept(proposed, state.params)
        # With averages of the proposed parameters a TPU would write these, too. Both are the same
        # where a step is taken, but with the kept ones CPUs would round the averages differently.
        averaged = jax.lax.platform_dependent(
            proposed, params, tpu=lambda _, kept: kept, default=lambda proposed, _: proposed
        )
        decay = ema_decay_at(state.step, ema_decay, warmup=ema_warmup)
        extra = zip(state.extra_ema_params, extra_emas, strict=True)
        loss_state = state.loss_state
        if update_loss_state is not None:
            loss_state = update_loss_state(loss_state, seen)
        updated = dataclasses.replace(
            state,
            params=params,
            ema_params=update_ema(state.ema_params, averaged, decay),
            opt_state=opt_state,
            loss_state=loss_state,
            guard=guard,
            extra_ema_params=tuple(update_ema(ema, averaged, at(state.step)) for ema, at in extra),
        )
        # The key never changes, and typed keys have no `where`.
        updated, old = (dataclasses.replace(s, key=(), params=()) for s in (updated, state))
        state = dataclasses.replace(
            kept(updated, old), key=state.key, params=params, step=state.step + 1
        )
        return (state if layout is None else layout.constrain(state)), metrics

    return train_step


def _accumulate(
    with_grad: Any, params: PyTree, batch: Batch, keys: Key, count: int, axes: AxisNames | None
) -> tuple[Array, PyTree, PyTree]:
    """The mean loss, the loss's auxiliary output and the mean gradient, in `count` parts."""
    size = batch["index"].shape[0]
    if size % count:
        raise ValueError(
            f"a train step with {count} microbatches got {size} examples per device, not a "
            f"multiple. Use a multiple of {count} per device, or fewer microbatches."
        )
    parts = jax.tree.map(
        lambda leaf: leaf.reshape(count, size // count, *leaf.shape[1:]), (dict(batch), keys)
    )

    def zeros(leaf) -> Array:
        # shard_map must be told that the sums differ between devices.
        zero = jnp.zeros(leaf.shape, leaf.dtype)
        return zero if axes is None else jax.lax.pcast(zero, axes, to="varying")

    def add(carry, part):
        (loss, seen), grads = with_grad(params, *part)
        return jax.tree.map(jnp.add, carry, (loss, grads)), seen

    start = jax.tree.map(zeros, (jax.ShapeDtypeStruct((), jnp.float32), params))
    (loss, grads), seen = jax.lax.scan(add, start, parts)
    loss, grads = jax.tree.map(lambda leaf: leaf / count, (loss, grads))
    return loss, jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[2:]), seen), grads


def _gather(seen: PyTree, index: Array, axes: AxisNames | None) -> PyTree:
    """The auxiliary output of all devices, [B, ...] in the order of the global batch."""
    total = index.shape[0] * (1 if axes is None else jax.lax.axis_size(axes))

    def place(leaf: Array) -> Array:
        whole = jnp.zeros((total, *leaf.shape[1:]), leaf.dtype).at[index].set(leaf)
        # A sum of parts that do not overlap: shard_map knows that it is replicated, unlike the
        # result of an all_gather.
        return whole if axes is None else jax.lax.psum(whole, axes)

    return jax.tree.map(place, seen)
