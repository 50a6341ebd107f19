"""Packed parameters: the same arrays, gradients and training steps as of the tree itself."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training import (
    DataParallel,
    init_spike_guard,
    init_state,
    make_chunk,
    make_optimizer,
    make_train_step,
)
from ddpm_jax.training.packed import Packed, pack, pack_state, unpack, unpack_state

DEVICES = tuple(jax.devices())


def tree(dtype=jnp.float32):
    sizes = {"conv": (3, 3, 4, 5), "line": (3, 2, 7), "dense": (6, 2), "bias": (5,), "gain": ()}
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.standard_normal(size), dtype) for name, size in sizes.items()}


@pytest.mark.parametrize(
    "given",
    [
        tree(),
        tree(jnp.bfloat16),
        {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones((1, 0, 4))},
        [jnp.arange(3.0), jnp.zeros(2)],
        {"a": {"b": jnp.ones((2, 2))}, "c": (jnp.float32(3.0), None)},
    ],
    ids=["several", "bfloat16", "kernels alone", "vectors alone", "nested"],
)
def test_unpacking_gives_the_tree_that_was_packed(given):
    packed = pack(given)
    back = unpack(packed)
    assert jax.tree.structure(back) == jax.tree.structure(given)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(given), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    sizes = [leaf.size for leaf in jax.tree.leaves(given)]
    assert packed.kernels.size + packed.vectors.size == sum(sizes)
    assert packed.kernels.ndim == 2 and packed.vectors.ndim == 1


def test_kernels_of_convolutions_are_stored_with_their_outputs_first():
    kernel = jnp.arange(360.0).reshape(3, 3, 4, 10)
    stored = pack({"kernel": kernel, "bias": jnp.zeros(10)}).kernels[0]
    np.testing.assert_array_equal(stored[:36], kernel[..., 0].ravel())


def test_the_gradient_is_the_packed_gradient_and_takes_one_join():
    def loss(params):
        return sum(jnp.sum(jnp.sin(leaf) * (i + 1)) for i, leaf in enumerate(params.values()))

    gradient = jax.grad(lambda packed: loss(unpack(packed)))
    assert isinstance(gradient(pack(tree())), Packed)
    for one, other in zip(
        jax.tree.leaves(unpack(gradient(pack(tree())))),
        jax.tree.leaves(jax.grad(loss)(tree())),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    text = str(jax.make_jaxpr(gradient)(pack(tree())))
    assert text.count("concatenate") == 2 and " pad" not in text and "add_any" not in text


def loss_fn(params, batch, keys):
    shift = params["bias"][None, :2] * params["gain"]
    hidden = jnp.tanh(batch["x"] @ params["dense"] + shift)
    noise = jax.vmap(lambda key: jax.random.normal(key, (), hidden.dtype))(keys)
    kernels = jnp.mean(params["conv"] ** 4) + jnp.mean(jnp.cos(params["line"]))
    return jnp.sum(jnp.square(hidden), -1) + noise * kernels + kernels


OPTIMISERS = {
    "adam": make_optimizer(0.1),
    "weight decay": make_optimizer(0.1, weight_decay=0.3),
    "momentum": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9)),
    "schedule": optax.adam(optax.linear_schedule(0.1, 0.0, 10)),
}
STEPS = {
    "plain": {},
    "microbatches": {"num_microbatches": 2},
    "spikes and averages": {
        "spike_factor": 1.01,
        "extra_emas": (lambda step: 1.0 / (1.0 + step), lambda step: 0.5 + 0.0 * step),
    },
}


def both_ways(optimizer, state, batches, count, parallel=None, **options):
    """(state, metrics) after `count` steps on the tree, and on packed parameters."""
    parallel = parallel or DataParallel("jit", DEVICES[:1])
    train_step = make_train_step(loss_fn, optimizer, ema_decay=0.9, **options)
    for packed in (False, True):
        run = parallel.wrap(make_chunk(train_step, lambda _, batch: batch, packed=packed))
        after, metrics = run(parallel.place(state), (), parallel.place_batches(batches), count)
        yield dataclasses.replace(after, key=()), metrics


def batches_of(dtype):
    x = jax.random.normal(jax.random.key(2), (4, 8, 6), dtype)
    return {"x": np.asarray(x), "index": np.tile(np.arange(8, dtype=np.int32), (4, 1))}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_packed_steps_are_the_steps_of_the_tree(optimiser):
    """In float64, where another order of summation differs by less than 1e-12."""
    with jax.enable_x64(True):
        state = init_state(tree(jnp.float64), OPTIMISERS[optimiser], jax.random.key(1))
        found = list(both_ways(OPTIMISERS[optimiser], state, batches_of(jnp.float64), 3))
        assert jax.tree.structure(found[0]) == jax.tree.structure(found[1])
        for one, other in zip(*map(jax.tree.leaves, found), strict=True):
            assert one.dtype == other.dtype and one.shape == other.shape
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)
        moved = np.abs(found[1][0].params["conv"] - state.params["conv"])
        assert np.max(moved) > 1e-4


@pytest.mark.parametrize(
    "backend,count,options",
    [
        ("jit", 1, "microbatches"),
        ("jit", 1, "spikes and averages"),
        ("pmap", 4, "plain"),
        ("shard_map", 4, "microbatches"),
    ],
)
def test_packed_steps_on_devices(backend, count, options):
    """Places and shapes of the state are the same; sums in another order differ a little."""
    keywords = STEPS[options]
    guard = init_spike_guard() if "spike_factor" in keywords else ()
    extra = len(keywords.get("extra_emas", ()))
    optimizer = OPTIMISERS["momentum"]
    state = init_state(tree(), optimizer, jax.random.key(5), (), guard, num_extra_emas=extra)
    parallel = DataParallel(backend, DEVICES[:count])
    found = list(both_ways(optimizer, state, batches_of(jnp.float32), 3, parallel, **keywords))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shards,same", [(1, False), (2, True)])
def test_parameters_that_are_split_over_devices_are_not_packed(shards, same):
    parallel = DataParallel("shard_map", DEVICES[:4], shards)
    optimizer = make_optimizer(0.1)
    step = make_train_step(loss_fn, optimizer)
    state = parallel.place(init_state(tree(), optimizer, jax.random.key(0)))
    arguments = state, (), parallel.place_batches(batches_of(jnp.float32)), 3
    chunks = (make_chunk(step, lambda _, batch: batch, packed=packed) for packed in (False, True))
    one, other = (parallel.wrap(chunk).lower(*arguments).as_text() for chunk in chunks)
    assert (one == other) is same


@pytest.mark.parametrize("platform,packed", [("gpu", True), ("cpu", False), ("tpu", False)])
def test_programs_pack_on_gpus_alone(platform, packed):
    assert DataParallel("jit", DEVICES[:1]).packed is False
    device = SimpleNamespace(platform=platform)
    assert DataParallel.packed.fget(SimpleNamespace(devices=(device,))) is packed


def test_a_packed_chunk_updates_all_arrays_at_once():
    """In the loop's body as JAX writes it: a root per array, and for the norm of all."""
    optimizer = make_optimizer(1e-2)
    params = {str(i): jnp.full((3 + i, 4), 0.1 * i) for i in range(30)}

    def loss(params, batch, keys):
        total = sum(jnp.mean(jnp.square(leaf)) for leaf in params.values())
        return total * batch["x"]

    state = init_state(params, optimizer, jax.random.key(0))
    batches = {"x": jnp.ones((2, 4)), "index": jnp.tile(jnp.arange(4), (2, 1))}
    counts = []
    for packed in (False, True):
        chunk = make_chunk(make_train_step(loss, optimizer), lambda _, b: b, packed=packed)
        text = jax.jit(chunk).lower(state, None, batches, 2).as_text()
        body = text[text.index("stablehlo.while") :]
        counts.append(body.count("stablehlo.sqrt"))
    assert counts[0] >= 30 and counts[1] <= 4


@pytest.mark.parametrize(
    "params",
    [
        {"w": jnp.ones((2, 2))},
        jnp.float32(1.0),
        {"a": jnp.ones((2, 2)), "b": jnp.ones(2, jnp.bfloat16)},
    ],
    ids=["one array", "one number", "two dtypes"],
)
def test_what_cannot_be_packed_stays_as_it_is(params):
    state = init_state(params, make_optimizer(0.1), jax.random.key(0))
    assert jax.tree.structure(pack_state(state)) == jax.tree.structure(state)


def test_all_that_is_kept_per_parameter_is_packed():
    state = init_state(tree(), make_optimizer(0.1), jax.random.key(0), num_extra_emas=1)
    packed = pack_state(state)
    assert isinstance(packed.params, Packed) and isinstance(packed.extra_ema_params[0], Packed)
    arrays = [leaf for leaf in jax.tree.leaves(packed) if leaf.size > 1]
    assert len(arrays) == 2 * 5  # parameters, average, extra average and two moments
    back = unpack_state(packed)
    assert jax.tree.structure(back) == jax.tree.structure(state)
