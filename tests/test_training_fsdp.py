"""Parameters in parts: the same training as with whole ones, less memory, and the communication
that was counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from ddpm_jax.training import (
    DataParallel,
    bytes_per_step,
    fsdp,
    init_state,
    make_chunk,
    make_train_step,
    parameter_spec,
)
from tests import small_mlp as small
from tests.collectives import bytes_of_collectives

DEVICES = tuple(jax.devices())
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3))


@pytest.fixture(scope="module", autouse=True)
def split_small_arrays_too():
    """The test network's arrays are all small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsdp, "SMALLEST", 64)
        yield


def train(parallel, *, steps=4, chunk=1, num_microbatches=1):
    """(state, metrics [steps], the compiled chunk) on the tiny problem."""
    step = make_train_step(small.loss_fn, OPTIMIZER, num_microbatches=num_microbatches)
    state = parallel.place(init_state(small.init_params(), OPTIMIZER, jax.random.key(5)))
    dataset = parallel.replicate({"image": jnp.asarray(small.IMAGES)})
    every, seen, compiled = small.batches(steps), [], None
    for first in range(0, steps, chunk):
        part = {name: leaf[first : first + chunk] for name, leaf in every.items()}
        arguments = (state, dataset, parallel.place_batches(part), np.int32(chunk))
        if compiled is None:
            compiled = parallel.wrap(make_chunk(step, small.fetch)).lower(*arguments).compile()
        state, metrics = compiled(*arguments)
        seen.append(jax.device_get(metrics))
    return state, {k: np.concatenate([m[k] for m in seen]) for k in seen[0]}, compiled


@pytest.fixture(scope="module")
def whole():
    return train(DataParallel("jit", DEVICES[:1]))


@pytest.fixture(scope="module")
def parts():
    return train(DataParallel("shard_map", DEVICES[:4], parameter_shards=2), chunk=2)


@pytest.mark.slow
def test_parameters_in_parts_train_alike(whole, parts):
    """Two by two devices against one: losses, norms, and every array of the state."""
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(parts[1][name], whole[1][name], rtol=1e-5)
    a, b = (dataclasses.replace(state, key=()) for state in (parts[0], whole[0]))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_each_device_keeps_its_part(parts):
    state = parts[0]
    for tree in (state.params, state.ema_params, optax.tree.get(state.opt_state, "mu")):
        for leaf in jax.tree.leaves(tree):
            held = leaf.addressable_shards[0].data.size
            assert held == leaf.size // (1 if parameter_spec(leaf.shape, 2) == P() else 2)
    split = [leaf for leaf in jax.tree.leaves(state.params) if parameter_spec(leaf.shape, 2) != P()]
    assert len(split) > 5


def test_communication_is_what_was_counted(parts):
    """The collectives of the compiled program against the formula."""
    counted = bytes_per_step(parts[0].params, data=2, shards=2)
    found = bytes_of_collectives(parts[2].as_text())
    for kind in ("all_gather", "reduce_scatter"):
        assert found[kind] == counted[kind] > 10_000
    # XLA sees that biases added in one place have one gradient, and averages it once.
    assert 0.97 * counted["all_reduce"] < found["all_reduce"] <= counted["all_reduce"]


def test_counted_bytes_of_data_parallelism():
    """Ring all-reduce: 2 (N-1)/N of the parameters' bytes; nothing else."""
    params = {"w": np.zeros((10, 10), np.float32)}
    counted = bytes_per_step(params, data=8)
    assert counted == {"all_reduce": 2 * 400 * 7 / 8, "all_gather": 0, "reduce_scatter": 0}


@pytest.mark.parametrize(
    "shape,spec",
    [
        ((3, 3, 128, 256), P(None, None, None, "fsdp")),
        ((3, 3, 256, 128), P(None, None, "fsdp", None)),
        ((3, 3, 128, 3), P(None, None, "fsdp", None)),
        ((128, 128), P(None, "fsdp")),
        ((9, 7), P()),
        ((16,), P()),
    ],
)
def test_the_longest_divisible_axis_is_split(shape, spec):
    assert parameter_spec(shape, 8) == spec


@pytest.mark.parametrize("backend,count,shards", [("shard_map", 4, 3), ("pmap", 4, 2)])
def test_impossible_splits_are_named(backend, count, shards):
    with pytest.raises(ValueError, match="parameter.shards"):
        DataParallel(backend, DEVICES[:count], parameter_shards=shards)


def test_microbatches_and_parts_together(whole):
    """Two microbatches of two examples on each of four devices."""
    parallel = DataParallel("shard_map", DEVICES[:4], parameter_shards=2)
    _, metrics, _ = train(parallel, num_microbatches=2, steps=2)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], whole[1][name][:2], rtol=1e-5)
