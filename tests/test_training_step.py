import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.keys import example_keys
from ddpm_jax.training import (
    DataParallel,
    choose_devices,
    ema_decay_at,
    init_state,
    learning_rate_schedule,
    make_chunk,
    make_optimizer,
    make_train_step,
    update_ema,
)
from tests import small

DEVICES = tuple(jax.devices())
SGD = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05))


def run(parallel, num_steps, chunk, optimizer=SGD):
    """Trains on the tiny problem: (final state on the host, metrics [num_steps])."""
    state = parallel.replicate(init_state(small.init_params(), optimizer, jax.random.key(5)))
    dataset = parallel.replicate({"image": jnp.asarray(small.IMAGES)})
    step = parallel.wrap(make_chunk(make_train_step(small.loss_fn, optimizer), small.fetch))
    every, seen = small.batches(num_steps), []
    for first in range(0, num_steps, chunk):
        part = {name: leaf[first : first + chunk] for name, leaf in every.items()}
        state, metrics = step(state, dataset, parallel.place_batches(part), np.int32(chunk))
        seen.append(jax.device_get(metrics))
    return state, {k: np.concatenate([m[k] for m in seen]) for k in seen[0]}


@pytest.fixture(scope="module")
def runs():
    return {
        "one": run(DataParallel("jit", DEVICES[:1]), 10, 1),
        "pmap": run(DataParallel("pmap", DEVICES), 10, 5),
        "shard_map": run(DataParallel("shard_map", DEVICES), 10, 5),
    }


def leaves(state):
    return [np.asarray(x) for x in jax.tree.leaves((state.params, state.ema_params))]


@pytest.mark.slow
def test_pmap_equals_shard_map_bitwise(runs):
    (a, metrics_a), (b, metrics_b) = runs["pmap"], runs["shard_map"]
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
    for name in metrics_a:
        np.testing.assert_array_equal(metrics_a[name], metrics_b[name])


@pytest.mark.parametrize("many", ["pmap", "shard_map"])
def test_eight_devices_equal_one(runs, many):
    """Losses, gradient norms and, under SGD, parameters: a gradient eight times too large would
    show. The eight run five steps per dispatch and the one a single step: these are equal, too."""
    (a, one), (b, eight) = runs["one"], runs[many]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(eight[name], one[name], rtol=1e-5)
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_where_chunks_end_leaves_no_trace():
    """One compiled loop serves every length: 3 + 5 + 2 steps are bitwise 5 + 5."""
    parallel = DataParallel("jit", DEVICES[:1])
    step = parallel.wrap(make_chunk(make_train_step(small.loss_fn, SGD), small.fetch))
    dataset = parallel.replicate({"image": jnp.asarray(small.IMAGES)})
    every = small.batches(10)

    def go(lengths):
        state = parallel.replicate(init_state(small.init_params(), SGD, jax.random.key(5)))
        first = 0
        for count in lengths:
            part = {
                k: np.resize(v[first : first + count], (5, *v.shape[1:])) for k, v in every.items()
            }
            state, metrics = step(state, dataset, parallel.place_batches(part), np.int32(count))
            assert np.isnan(metrics["loss"][count:]).all()
            first += count
        return state

    for x, y in zip(leaves(go([3, 5, 2])), leaves(go([5, 5])), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_noise_and_batches_are_the_same_on_any_number_of_devices(count):
    parallel = DataParallel("shard_map", DEVICES[:count])
    batch = small.batches(1)
    host = {k: v[0] for k, v in batch.items()}
    host["image"] = small.IMAGES[host["example"]]
    key = jax.random.fold_in(jax.random.key(5), 0)
    expected = small.draws(host, example_keys(key, host["index"]))

    def draws(batch, key):
        batch = {k: v[0] for k, v in batch.items()}
        *arrays, dropout = small.draws(batch, example_keys(key, batch["index"]))
        return (*arrays, jax.random.key_data(dropout))

    spec = jax.sharding.PartitionSpec
    mapped = jax.shard_map(
        draws, mesh=parallel.mesh, in_specs=(spec(None, "data"), spec()), out_specs=spec("data")
    )
    placed = parallel.place_batches({**batch, "image": small.IMAGES[batch["example"]]})
    got = jax.jit(mapped)(placed, key)
    for a, b in zip(got, (*expected[:3], jax.random.key_data(expected[3])), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_step_is_gradient_descent_on_the_mean_loss():
    """Against jax.grad of the plain mean, without clipping."""
    optimizer = optax.sgd(0.1)
    state = init_state(small.init_params(), optimizer, jax.random.key(5))
    batch = {k: v[0] for k, v in small.batches(1).items()}
    batch["image"] = small.IMAGES[batch["example"]]
    keys = example_keys(jax.random.fold_in(jax.random.key(5), 0), batch["index"])
    grads = jax.jit(jax.grad(lambda p: small.loss_fn(p, batch, keys).mean()))(state.params)
    step = jax.jit(make_train_step(small.loss_fn, optimizer, ema_decay=0.9))
    new, metrics = step(state, batch)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    for e, p, q in zip(
        *(jax.tree.leaves(x) for x in (new.ema_params, state.params, new.params)), strict=True
    ):
        np.testing.assert_allclose(e, 0.9 * p + 0.1 * q, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_step_does_not_depend_on_how_numbers_are_promoted():
    """JAX_NUMPY_DTYPE_PROMOTION=strict: Optax multiplies its integer counters with floats."""
    rate = learning_rate_schedule(1e-2, warmup_steps=2, num_steps=9, decay="cosine")
    optimizer = make_optimizer(rate)
    state, batch = init_state(small.init_params(), optimizer, jax.random.key(5)), small.batches(1)
    batch = {k: v[0] for k, v in batch.items()}
    batch["image"] = small.IMAGES[batch["example"]]
    results = []
    for promotion in ("standard", "strict"):
        with jax.numpy_dtype_promotion(promotion):
            step = jax.jit(make_train_step(small.loss_fn, optimizer, ema_decay=0.9))
            results.append(step(state, batch)[0].params)
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_losses_change_nothing_but_the_step(bad):
    optimizer = make_optimizer(1e-2)

    def loss(params, batch, keys):
        return params["w"] ** 2 * batch["x"]

    train_step = jax.jit(make_train_step(loss, optimizer))
    state = init_state({"w": jnp.float32(2.0)}, optimizer, jax.random.key(0))
    state, _ = train_step(state, {"x": jnp.ones(2), "index": jnp.arange(2)})
    poisoned, metrics = train_step(state, {"x": jnp.array([1.0, bad]), "index": jnp.arange(2)})
    assert metrics["finite"] == 0 and poisoned.step == 2
    before, after = state.replace(step=0, key=0), poisoned.replace(step=0, key=0)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)
    healed, metrics = train_step(poisoned, {"x": jnp.ones(2), "index": jnp.arange(2)})
    assert metrics["finite"] == 1 and healed.params["w"] != state.params["w"]


def test_each_step_draws_fresh_noise():
    _, metrics = run(DataParallel("jit", DEVICES[:1]), 2, 1, optimizer=optax.sgd(0.0))
    assert metrics["loss"][0] != metrics["loss"][1]


def test_ema_closed_form():
    """A constant 1 averaged from 0: after n updates 1 - decay^n."""
    average = jnp.float32(0.0)
    for _ in range(50):
        average = update_ema(average, jnp.float32(1.0), 0.9)
    np.testing.assert_allclose(average, 1 - 0.9**50, rtol=1e-5)
    assert update_ema(jnp.float32(0.1), jnp.float32(0.1), 0.9999) == jnp.float32(0.1)


def test_ema_warmup_reaches_the_decay():
    np.testing.assert_allclose(ema_decay_at(0, 0.9999, warmup=True), 0.1, rtol=1e-6)
    np.testing.assert_allclose(ema_decay_at(90, 0.9999, warmup=True), 0.91, rtol=1e-6)
    np.testing.assert_allclose(ema_decay_at(10**6, 0.9999, warmup=True), 0.9999, rtol=1e-6)
    np.testing.assert_allclose(ema_decay_at(0, 0.9999), 0.9999, rtol=1e-6)


def test_learning_rates():
    rate = learning_rate_schedule(2e-4, warmup_steps=5000, num_steps=800_000)
    np.testing.assert_allclose(
        [rate(0), rate(2500), rate(5000), rate(10**6)], [0, 1e-4, 2e-4, 2e-4]
    )
    rate = learning_rate_schedule(1.0, warmup_steps=10, num_steps=110, decay="cosine")
    np.testing.assert_allclose([rate(10), rate(60), rate(110)], [1.0, 0.5, 0.0], atol=1e-6)
    assert learning_rate_schedule(0.3, warmup_steps=0, num_steps=5)(0) == np.float32(0.3)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
@pytest.mark.parametrize(
    "warmup,num_steps,decay_steps",
    [(10, 110, None), (10, 110, 100), (10, 110, 40), (0, 50, None), (0, 50, 20), (1, 2, 1)],
)
def test_a_decay_takes_the_last_steps_and_ends_at_zero(decay, warmup, num_steps, decay_steps):
    rate = learning_rate_schedule(
        2.0, warmup_steps=warmup, num_steps=num_steps, decay=decay, decay_steps=decay_steps
    )
    length = num_steps - warmup if decay_steps is None else decay_steps

    def expected(step):
        if step < warmup:
            return 2 * step / warmup
        left = min(1.0, (num_steps - step) / length)
        return 2 * left if decay == "linear" else 1 - math.cos(math.pi * left)

    steps = range(num_steps + 1)
    np.testing.assert_allclose([rate(s) for s in steps], list(map(expected, steps)), atol=1e-6)


def test_until_its_decay_a_schedule_is_the_constant_one():
    """So a constant run that is continued with a decay is the run that was begun with it."""
    constant = learning_rate_schedule(5e-4, warmup_steps=7, num_steps=999)
    decayed = learning_rate_schedule(
        5e-4, warmup_steps=7, num_steps=40, decay="linear", decay_steps=10
    )
    assert all(jax.jit(constant)(s) == jax.jit(decayed)(s) for s in range(31))
    assert decayed(31) < constant(31)


def test_adam_of_the_paper_on_a_known_gradient():
    """Adam's first step is the learning rate times the gradient's sign; a clipped gradient has norm
    1."""
    optimizer = make_optimizer(2e-4)
    params = {"w": jnp.array([3.0, -4.0])}
    updates, state = optimizer.update(
        {"w": jnp.array([30.0, -40.0])}, optimizer.init(params), params
    )
    np.testing.assert_allclose(updates["w"], [-2e-4, 2e-4], rtol=1e-4)
    np.testing.assert_allclose(optax.tree.get(state, "mu")["w"], [0.1 * 0.6, -0.1 * 0.8], rtol=1e-5)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: DataParallel("xmap", DEVICES), "shard_map"),
        (lambda: DataParallel("jit", DEVICES), "one"),
        (lambda: DataParallel("pmap", DEVICES).check_batch_size(12), "multiple of 8"),
        (lambda: choose_devices(count=9), "1..8"),
        (lambda: make_train_step(small.loss_fn, SGD, ema_decay=1.0), "never move"),
        (lambda: make_optimizer(1e-3, clip_norm=0.0), "clip_norm"),
        (lambda: learning_rate_schedule(-1.0, warmup_steps=0, num_steps=1), "peak"),
        (
            lambda: learning_rate_schedule(1.0, warmup_steps=9, num_steps=9, decay="cosine"),
            "warm-up",
        ),
        (lambda: learning_rate_schedule(1.0, warmup_steps=0, num_steps=9, decay="step"), "cosine"),
        (lambda: learning_rate_schedule(1.0, warmup_steps=0, num_steps=9, decay_steps=3), "linear"),
        (
            lambda: learning_rate_schedule(
                1.0, warmup_steps=4, num_steps=9, decay="linear", decay_steps=6
            ),
            "leaves 5 of 9 for the linear decay of 6. Train longer .*decay-steps",
        ),
    ],
)
def test_bad_values_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_train_step_is_traced_once():
    def loss(params, batch, keys):
        return params["w"] * batch["x"]

    optimizer = make_optimizer(1e-3)
    step = jax.jit(chex.assert_max_traces(make_train_step(loss, optimizer), n=1))
    state = init_state({"w": jnp.float32(1.0)}, optimizer, jax.random.key(0))
    for value in (1.0, 2.0, 3.0):
        state, _ = step(state, {"x": jnp.full(4, value), "index": jnp.arange(4)})
    assert int(state.step) == 3
