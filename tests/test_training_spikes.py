"""Loss spikes and microbatches: what a step refuses, and what splitting it leaves unchanged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training import init_spike_guard, init_state, make_optimizer, make_train_step
from ddpm_jax.training.spikes import PATIENCE, is_spike, watch_loss

OPTIMIZER = make_optimizer(1e-2)


def loss_fn(params, batch, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key))(keys)
    return jnp.square(params["w"] * batch["x"] + noise) + 1.0


def guarded(factor=4.0):
    state = init_state(
        {"w": jnp.float32(0.3)}, OPTIMIZER, jax.random.key(0), (), init_spike_guard()
    )
    return state, jax.jit(make_train_step(loss_fn, OPTIMIZER, spike_factor=factor))


def batch(x, size=4):
    return {"x": jnp.full(size, x, jnp.float32), "index": jnp.arange(size)}


def assert_untouched(before, after):
    before, after = (dataclasses.replace(state, step=(), key=()) for state in (before, after))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_spike_changes_nothing_but_the_step():
    state, step = guarded()
    for _ in range(PATIENCE + 5):
        state, metrics = step(state, batch(1.0))
        assert metrics["spike"] == 0
    assert state.guard.count == PATIENCE + 5
    after, metrics = step(state, batch(100.0))
    assert metrics["spike"] == 1 and metrics["finite"] == 1 and after.step == state.step + 1
    assert_untouched(state, after)
    healed, metrics = step(after, batch(1.0))
    assert metrics["spike"] == 0 and healed.params["w"] != state.params["w"]


def test_nothing_is_a_spike_at_first():
    state, step = guarded()
    state, metrics = step(state, batch(100.0))
    assert metrics["spike"] == 0 and state.guard.count == 1


def test_not_a_number_is_no_spike_and_not_watched():
    state, step = guarded()
    after, metrics = step(state, batch(jnp.nan))
    assert (metrics["spike"], metrics["finite"]) == (0, 0)
    assert_untouched(state, after)


def test_the_mean_is_a_plain_one_and_then_forgets():
    """Of 1, 2, …, 60 the plain mean is 30.5; of a constant after long, the constant."""
    guard = init_spike_guard()
    for loss in range(1, 61):
        guard = watch_loss(guard, jnp.float32(loss))
    np.testing.assert_allclose(guard.mean, 30.5, rtol=1e-5)
    guard = jax.lax.fori_loop(0, 2000, lambda _, g: watch_loss(g, jnp.float32(7.0)), guard)
    np.testing.assert_allclose(guard.mean, 7.0, rtol=1e-4)
    assert not is_spike(guard, jnp.float32(13.9), 2.0) and is_spike(guard, jnp.float32(14.1), 2.0)


@pytest.mark.parametrize("count", [2, 4])
def test_microbatches_leave_the_step_as_it_is(count):
    """The mean of the parts' gradients is the gradient of the mean; also for losses that
    remember."""

    def remembering(params, batch, keys, loss_state):
        losses = loss_fn(params, batch, keys) * (1.0 + loss_state["seen"].sum())
        return losses, {"x": batch["x"], "index": batch["index"]}

    def run(count):
        step = make_train_step(
            remembering,
            optax.sgd(0.1),
            num_microbatches=count,
            update_loss_state=lambda old, seen: {"seen": old["seen"] + seen["x"] * seen["index"]},
        )
        state = init_state(
            {"w": jnp.float32(0.3)}, optax.sgd(0.1), jax.random.key(0), {"seen": jnp.zeros(8)}
        )
        examples = {"x": jnp.linspace(-1.0, 1.0, 8), "index": jnp.arange(8)[::-1]}
        step = jax.jit(step)
        for _ in range(3):
            state, metrics = step(state, examples)
        return state, metrics

    (one, metrics_one), (many, metrics_many) = run(1), run(count)
    for a, b in zip(
        jax.tree.leaves((one.params, one.loss_state, metrics_one)),
        jax.tree.leaves((many.params, many.loss_state, metrics_many)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert one.params["w"] != 0.3


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"spike_factor in \(1, inf\]"):
        make_train_step(loss_fn, OPTIMIZER, spike_factor=1.0)
    with pytest.raises(ValueError, match="num_microbatches, a whole number"):
        make_train_step(loss_fn, OPTIMIZER, num_microbatches=0)
    state, _ = guarded()
    step = make_train_step(loss_fn, OPTIMIZER, num_microbatches=3)
    with pytest.raises(ValueError, match="multiple of 3"):
        step(state, batch(1.0))
