"""One stream per example: of one key, of each index alone, whatever JAX's default generator is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax import score
from ddpm_jax.keys import fold_in_each, make_key, split_each
from ddpm_jax.samplers.base import step_noise

KEYS = dj.example_keys(jax.random.key(0), jnp.arange(4))


def test_example_i_draws_the_same_in_every_batch():
    together = dj.normal_per_example(KEYS, (3,))
    alone = dj.normal_per_example(dj.example_keys(jax.random.key(0), jnp.array([2])), (3,))
    np.testing.assert_array_equal(together[2:3], alone)
    expected = jax.random.normal(jax.random.fold_in(jax.random.key(0), 2), (3,))
    np.testing.assert_array_equal(alone[0], expected)


def test_the_default_generator_does_not_change_a_seeds_key():
    plain = jax.random.key_data(make_key(7))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(jax.random.key_data(make_key(7)), plain)
        assert jax.random.key_data(jax.random.key(7)).shape != plain.shape


@pytest.mark.parametrize("number", [-1, 2**32, 2**40, 2**64, np.int64(-1), np.uint64(2**33)])
def test_a_seed_or_index_of_more_than_32_bits_is_not_cut(number):
    """JAX drops the higher bits: 2⁴⁰ would be the key of 0."""
    with pytest.raises(ValueError, match="make_key needs a seed in 0..2³²-1"):
        make_key(number)
    if abs(int(number)) < 2**63:
        with pytest.raises(ValueError, match="example_keys needs indices in 0..2³²-1"):
            dj.example_keys(jax.random.key(0), np.array([0, int(number)]))
    assert make_key(2**32 - 1).shape == make_key(np.int32(7)).shape == ()


ONE = jax.random.key(0)
TWO = jax.random.split(ONE, 2)
OTHER = [jax.random.split(jax.random.key(0, impl=impl), 4) for impl in ("rbg", "unsafe_rbg")]
BAD_KEYS = {
    "one key for the batch": (ONE, ValueError, r"example_keys\(key, jnp.arange\(B\)\)"),
    "keys [B, 1]": (KEYS[:, None], ValueError, r"shape \(4, 1\)"),
    "rbg": (OTHER[0], ValueError, "JAX_DEFAULT_PRNG_IMPL"),
    "unsafe_rbg": (OTHER[1], ValueError, "JAX_DEFAULT_PRNG_IMPL"),
    "raw keys": (jax.random.key_data(KEYS), TypeError, "Typed keys come from jax.random.key"),
    "a seed": (0, TypeError, "Typed keys"),
    "nothing": (None, TypeError, "Typed keys"),
}
TAKE_KEYS = {
    "fold_in_each": lambda keys: fold_in_each(keys, 1),
    "split_each": lambda keys: split_each(keys, 2),
    "normal_per_example": lambda keys: dj.normal_per_example(keys, (3,)),
    "initial_noise": lambda keys: dj.initial_noise(keys, (3,)),
    "projections": lambda keys: score.projections(keys, 2, (3,)),
}
TAKE_KEYS_OF_A_BATCH = {
    "step_noise": lambda keys: step_noise(keys, 3, jnp.zeros((4, 3))),
    "sample": lambda keys: dj.sample(
        dj.ancestral(dj.linear_schedule(5)), lambda x, t: 0.5 * x, jnp.zeros((4, 3)), keys=keys
    ),
    "sample_trajectory": lambda keys: dj.sample_trajectory(
        dj.ddim(dj.linear_schedule(5)), lambda x, t: 0.5 * x, jnp.zeros((4, 3)), keys=keys
    ),
    "advance": lambda keys: dj.samplers.advance(
        dj.ddim(dj.linear_schedule(5), eta=1.0),
        lambda x, t: 0.5 * x,
        jnp.zeros((4, 3)),
        (),
        np.array([4, 3]),
        keys=keys,
    ),
    "langevin": lambda keys: score.langevin(
        lambda x: -x, jnp.zeros((4, 3)), 0.1, num_steps=1, keys=keys
    ),
    "metropolis_adjusted_langevin": lambda keys: score.metropolis_adjusted_langevin(
        lambda x: -x.sum(-1), jnp.zeros((4, 3)), 0.1, num_steps=1, keys=keys
    ),
    "annealed_langevin_chains": lambda keys: score.annealed_langevin_chains(
        lambda x, level: -x,
        jnp.zeros((4, 3)),
        np.array([1.0, 0.5]),
        step_size=0.1,
        steps_per_level=1,
        keys=keys,
    ),
}


@pytest.mark.parametrize("bad", BAD_KEYS)
@pytest.mark.parametrize("call", TAKE_KEYS | TAKE_KEYS_OF_A_BATCH)
def test_keys_that_would_be_misread_are_refused(call, bad):
    keys, error, words = BAD_KEYS[bad]
    if keys is None and call in TAKE_KEYS_OF_A_BATCH and call != "step_noise":
        pytest.skip("no keys are allowed here, if noise is given or none is drawn")
    with pytest.raises(error, match=words) as raised:
        (TAKE_KEYS | TAKE_KEYS_OF_A_BATCH)[call](keys)
    assert str(raised.value).startswith(call.split(" ")[0])


@pytest.mark.parametrize("call", TAKE_KEYS_OF_A_BATCH)
@pytest.mark.parametrize("count", [1, 3, 5])
def test_keys_of_another_batch_are_refused(call, count):
    keys = dj.example_keys(jax.random.key(0), jnp.arange(count))
    with pytest.raises(ValueError, match=f"{call} needs keys .*B = 4; got keys of shape"):
        TAKE_KEYS_OF_A_BATCH[call](keys)


@pytest.mark.parametrize(
    "key,index,error",
    [
        (KEYS, np.arange(4), ValueError),
        (OTHER[0][0], np.arange(4), ValueError),
        (OTHER[1][0], np.arange(4), ValueError),
        (jax.random.key_data(ONE), np.arange(4), TypeError),
        (0, np.arange(4), TypeError),
        (ONE, 4, TypeError),
        (ONE, np.arange(4.0), TypeError),
        (ONE, np.zeros((2, 2), int), TypeError),
    ],
)
def test_example_keys_needs_one_key_and_indices(key, index, error):
    with pytest.raises(error, match="example_keys"):
        dj.example_keys(key, index)


@pytest.mark.parametrize(
    "shape,dtype", [(3, jnp.float32), ((2.5,), jnp.float32), ("3", jnp.float32), ((3,), jnp.int32)]
)
def test_noise_needs_one_events_shape_and_a_float_type(shape, dtype):
    with pytest.raises(TypeError, match="normal_per_example"):
        dj.normal_per_example(KEYS, shape, dtype)
