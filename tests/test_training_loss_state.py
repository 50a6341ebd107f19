import collections
import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddpm_jax as dj
from ddpm_jax.keys import split_each
from ddpm_jax.losses import (
    importance_timesteps,
    init_loss_history,
    simple_loss,
    update_loss_history,
)
from ddpm_jax.training import (
    Checkpoints,
    DataParallel,
    MismatchedCheckpointError,
    init_state,
    make_chunk,
    make_train_step,
    stored_state,
)
from tests.oracles import Tables

DEVICES = tuple(jax.devices())
BETA = np.linspace(0.01, 0.6, 4)
SCHEDULE, TABLES = dj.schedule_from_beta(BETA), Tables(BETA)
STEPS, KEPT, BATCH, COUNT = 4, 3, 8, 6
DATA = np.random.default_rng(0).standard_normal((COUNT, BATCH, 3)).astype(np.float32)
OPTIMIZER = optax.sgd(0.02)
WHERE = {
    "jit": ("jit", 1),
    "pmap of 2": ("pmap", 2),
    "pmap of 4": ("pmap", 4),
    "shard_map of 2": ("shard_map", 2),
    "shard_map of 4": ("shard_map", 4),
}


def draws(keys, history):
    key_t, key_noise = split_each(keys, 2)
    t, weights = importance_timesteps(key_t, history)
    return t, weights, dj.normal_per_example(key_noise, (3,))


def loss_fn(params, batch, keys, history):
    """ε̂ = w x_t + b, with importance sampling of t."""
    t, weights, noise = draws(keys, history)

    def network(x_t, timesteps):
        return params["w"] * x_t + params["b"]

    losses = simple_loss(SCHEDULE, network, batch["x"], t, noise)
    return weights * losses, (t, losses)


def update(history, seen):
    return update_loss_history(history, *seen)


def start(optimizer=OPTIMIZER):
    params = {"w": jnp.float32(0.3), "b": jnp.float32(-0.1)}
    return init_state(params, optimizer, jax.random.key(5), init_loss_history(STEPS, KEPT))


TRAIN_STEP = make_train_step(loss_fn, OPTIMIZER, ema_decay=0.9, update_loss_state=update)


@functools.cache
def program(where):
    backend, count = WHERE[where]
    parallel = DataParallel(backend, DEVICES[:count])
    return parallel, parallel.wrap(make_chunk(TRAIN_STEP, lambda dataset, batch: batch))


def train(where, data=DATA, index=None, state=None, first=0, count=COUNT):
    """(state on the host, metrics) after `count` steps in one chunk, from step `first` on."""
    parallel, step = program(where)
    if index is None:
        index = np.tile(np.arange(BATCH, dtype=np.int32), (COUNT, 1))
    batches = parallel.place_batches(
        {"x": np.roll(data, -first, axis=0), "index": np.roll(index, -first, axis=0)}
    )
    state = parallel.replicate(start() if state is None else state)
    return jax.device_get(step(state, {}, batches, np.int32(count)))


@functools.cache
def by_hand():
    """The same run in float64 NumPy, the gradient of the linear network written out, one queue a
    step; only the random numbers come from JAX."""
    w, b = 0.3, -0.1
    queues = [collections.deque(maxlen=KEPT) for _ in range(STEPS)]
    weighted = 0
    for step in range(COUNT):
        full = all(len(queue) == KEPT for queue in queues)
        p = np.full(STEPS, 1 / STEPS)
        if full:
            size = np.array([np.sqrt(np.mean(np.square(queue))) for queue in queues])
            p = 0.999 * size / size.sum() + 0.001 / STEPS
            weighted += 1
        keys = dj.example_keys(jax.random.fold_in(jax.random.key(5), step), jnp.arange(BATCH))
        key_t, key_noise = split_each(keys, 2)
        u = np.asarray(jax.vmap(jax.random.uniform)(key_t), np.float64)
        t = np.searchsorted(np.cumsum(p), u, side="right")
        noise = np.asarray(dj.normal_per_example(key_noise, (3,)), np.float64)
        a = TABLES.alpha_bar[t][:, None]
        x_t = np.sqrt(a) * DATA[step] + np.sqrt(1 - a) * noise
        error = w * x_t + b - noise
        slope = 2 * error / (STEPS * p[t][:, None]) / (3 * BATCH)
        w, b = w - 0.02 * (slope * x_t).sum(), b - 0.02 * slope.sum()
        for i in range(BATCH):
            queues[t[i]].append(np.mean(error[i] ** 2))
    assert 2 <= weighted < COUNT
    return w, b, queues


def assert_history(history, queues):
    for step, queue in enumerate(queues):
        ring = np.roll(history.losses[step], -(int(history.count[step]) % KEPT))
        np.testing.assert_allclose(ring, queue, rtol=1e-5)
    assert history.count.sum() == COUNT * BATCH


@pytest.mark.parametrize("where", WHERE)
def test_training_with_a_history_is_what_it_is_by_hand(where):
    """Parameters and history after six steps, of which the first are uniform and the last weighted,
    on any number of devices: every device sees what all of them lost, in the batch's order."""
    w, b, queues = by_hand()
    state, metrics = train(where)
    np.testing.assert_allclose([state.params["w"], state.params["b"]], [w, b], rtol=1e-5)
    assert_history(state.loss_state, queues)
    assert (metrics["finite"] == 1).all()


@pytest.mark.parametrize("where", ["jit", "pmap of 4", "shard_map of 4"])
def test_the_order_is_that_of_the_global_batch(where):
    """Examples dealt to the devices in any order leave the same history: they go by their index,
    and more of one t come in a batch than the history keeps."""
    order = np.stack([np.random.default_rng(s).permutation(BATCH) for s in range(COUNT)])
    dealt = np.take_along_axis(DATA, order[..., None], axis=1)
    state, _ = train(where, data=dealt, index=order.astype(np.int32))
    assert_history(state.loss_state, by_hand()[2])


@pytest.mark.parametrize("where", ["jit", "pmap of 4", "shard_map of 4"])
def test_a_step_that_is_not_finite_leaves_no_trace_in_the_history(where):
    """Also where one device alone has seen it."""
    poisoned = DATA.copy()
    poisoned[3, 6, 1] = np.nan
    before, _ = train(where, count=3)
    after, metrics = train(where, data=poisoned, count=4)
    np.testing.assert_array_equal(metrics["finite"][:4], [1, 1, 1, 0])
    assert after.step == 4
    for name in ("loss_state", "params", "ema_params"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    assert after.loss_state.count.sum() == 3 * BATCH
    healed, _ = train(where, data=poisoned, count=5)
    assert healed.loss_state.count.sum() == 4 * BATCH


def test_a_loss_without_memory_leaves_the_state_as_it_is():
    plain = make_train_step(lambda params, batch, keys: params["w"] ** 2 * batch["x"], OPTIMIZER)
    state = start()
    new, _ = jax.jit(plain)(state, {"x": jnp.ones(2), "index": jnp.arange(2)})
    jax.tree.map(np.testing.assert_array_equal, new.loss_state, state.loss_state)
    assert init_state({"w": jnp.ones(())}, OPTIMIZER, jax.random.key(0)).loss_state == ()


@pytest.mark.parametrize("where", ["jit", "shard_map of 2"])
def test_a_run_goes_on_from_its_checkpoint_as_if_never_stopped(where, tmp_path):
    """Four steps, saved, restored and two more: bitwise the six in one go, history and all."""
    whole, _ = train(where)
    half, _ = train(where, count=4)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, half)
        for like in (start(), program(where)[0].placeholder(jax.eval_shape(start))):
            restored = checkpoints.restore(like)
            assert type(restored.loss_state) is type(half.loss_state)
            assert restored.loss_state.count.dtype == jnp.int32
            jax.tree.map(np.testing.assert_array_equal, restored.loss_state, half.loss_state)
            resumed, _ = train(where, state=restored, first=4, count=2)
            for name in ("step", "params", "ema_params", "loss_state"):
                jax.tree.map(
                    np.testing.assert_array_equal, getattr(resumed, name), getattr(whole, name)
                )


@flax.struct.dataclass
class EarlierState:
    """A state of the time before losses remembered."""

    step: jax.Array
    params: dict
    ema_params: dict
    opt_state: tuple
    key: jax.Array


@pytest.mark.parametrize("optimizer", [optax.adam(1e-3), OPTIMIZER], ids=["adam", "sgd"])
def test_checkpoints_from_before_there_was_a_history_still_restore(
    tmp_path, monkeypatch, optimizer
):
    """Into a state without one; into one with a history they are refused by name."""
    plain = start(optimizer).replace(loss_state=(), step=jnp.int32(2))
    fields = [field.name for field in dataclasses.fields(EarlierState)]
    earlier = EarlierState(**{name: getattr(plain, name) for name in fields})
    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            # Every field used to be written, an optimiser's that held nothing too.
            patch.setattr(stored_state, "_fields", lambda s: {n: getattr(s, n) for n in fields})
            checkpoints.save(2, earlier)
            checkpoints.wait()
        restored = checkpoints.restore(start(optimizer).replace(loss_state=()))
        assert restored.loss_state == () and restored.step == 2
        for name in ("params", "ema_params", "opt_state"):
            jax.tree.map(
                np.testing.assert_array_equal, getattr(restored, name), getattr(plain, name)
            )
        with pytest.raises(MismatchedCheckpointError, match=r"loss_state.*count.*stored nothing"):
            checkpoints.restore(start(optimizer))


def test_a_history_is_neither_dropped_nor_cut(tmp_path):
    """A checkpoint with a history fits no state without one, nor one of another length."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, start())
        with pytest.raises(MismatchedCheckpointError, match=r"loss_state.*wanted nothing"):
            checkpoints.restore(start().replace(loss_state=()))
        longer = start().replace(loss_state=init_loss_history(STEPS, KEPT + 1))
        with pytest.raises(MismatchedCheckpointError, match=r"losses.*\[4, 3\].*\[4, 4\]"):
            checkpoints.restore(longer)
