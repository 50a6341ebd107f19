"""Numbers of steps, examples and devices may be NumPy's integers, or floats such as 2.0.

Both pass the checks. They must then count like Python's integers, which do not overflow.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.data import PrefetchedBatches, ShuffledIndices, make_dataset
from ddpm_jax.training import (
    Checkpoints,
    Hook,
    TrainState,
    choose_devices,
    init_state,
    make_train_step,
    train_loop,
)
from ddpm_jax.training.fsdp import bytes_per_step

BILLION = {"w": jax.ShapeDtypeStruct((10**9, 2), jnp.float32)}


def shuffled(two):
    indices = ShuffledIndices(two, two, two)
    return indices(2**31 + 5).tolist(), indices.epoch(2**31 + 5), indices.chunk(two, two).tolist()


def prefetched(two):
    data = make_dataset(np.zeros((4, 2, 2, 1), np.uint8), None, None, "toy")
    options = {"chunk_length": lambda step: two if step < 6 else 0}
    with PrefetchedBatches(data, ShuffledIndices(4, 2, 0), start_step=two, **options) as chunks:
        return [(chunk.step, chunk.indices.tolist()) for chunk in chunks]


def looped(two):
    seen = []

    def run(state, first, count):
        seen.append((first, count, list(range(count))))
        ones = np.ones(count)
        return state, {"loss": ones, "grad_norm": ones, "finite": ones}

    state = TrainState(jnp.int32(0), jnp.float32(0), jnp.float32(0), (), jax.random.key(0))
    hooks = [Hook(two, lambda state, step: seen.append(step))]
    train_loop(state, run, num_steps=two * 2, max_chunk=two, hooks=hooks, max_bad_steps=two)
    return seen


def stepped(two):
    def loss(params, batch, keys):
        return batch["x"] * params["w"]

    optimizer = optax.sgd(0.1)
    state = init_state({"w": jnp.ones(())}, optimizer, jax.random.key(0))
    batch = {"x": jnp.arange(4.0), "index": jnp.arange(4)}
    return float(
        make_train_step(loss, optimizer, num_microbatches=two)(state, batch)[0].params["w"]
    )


def kept(two, folder):
    state = init_state({"w": jnp.ones(3)}, optax.sgd(0.1), jax.random.key(0))
    with Checkpoints(folder, keep=two, keep_every=two) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state)
        checkpoints.wait()
        return checkpoints.steps()


CALLS = {
    "ShuffledIndices": shuffled,
    "PrefetchedBatches": prefetched,
    "train_loop": looped,
    "make_train_step": stepped,
    "choose_devices": lambda two: choose_devices(count=two).devices,
    "bytes_per_step": lambda two: bytes_per_step(BILLION, data=two, shards=two, microbatches=two),
}


@pytest.mark.parametrize("kind", [float, np.int8])
@pytest.mark.parametrize("name", CALLS)
def test_all_kinds_of_whole_numbers_count_alike(name, kind):
    assert CALLS[name](kind(2)) == CALLS[name](2)


@pytest.mark.parametrize("kind", [float, np.int8])
def test_all_kinds_of_whole_numbers_keep_the_same_checkpoints(kind, tmp_path):
    assert kept(kind(2), tmp_path) == [2, 3, 4]
