"""Shuffling as a function of (seed, step): each example once an epoch, nothing to save."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_jax.data import ShuffledIndices
from ddpm_jax.data.shuffle import permutation


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 2**64 - 1))
def test_every_epoch_visits_each_example_once(num_examples, batch_size, seed):
    """For any N and B, dividing or not, B > N included: N consecutive positions are one epoch."""
    indices = ShuffledIndices(num_examples, batch_size, seed)
    num_steps = -(-3 * num_examples // batch_size)
    stream = np.concatenate([indices(step) for step in range(num_steps)])
    for epoch in range(3):
        part = stream[epoch * num_examples : (epoch + 1) * num_examples]
        np.testing.assert_array_equal(np.sort(part), np.arange(num_examples))


@given(st.integers(0, 50), st.integers(1, 9))
def test_a_chunk_is_its_steps(step, length):
    indices = ShuffledIndices(10, 7, seed=3)
    chunk = indices.chunk(step, length)
    assert chunk.shape == (length, 7)
    assert chunk.dtype == np.int32
    for k in range(length):
        np.testing.assert_array_equal(chunk[k], indices(step + k))


def test_steps_are_independent_of_the_order_they_are_asked_in():
    forward = ShuffledIndices(11, 4, seed=5)
    expected = {step: forward(step) for step in range(20)}
    backward = ShuffledIndices(11, 4, seed=5)
    for step in reversed(range(20)):
        np.testing.assert_array_equal(backward(step), expected[step])


def test_the_epoch_is_that_of_the_first_example():
    indices = ShuffledIndices(10, 4, seed=0)
    assert [indices.epoch(step) for step in range(8)] == [0, 0, 0, 1, 1, 2, 2, 2]


def test_steps_far_beyond_32_bits_work():
    """Step 2³¹ at a batch of 2¹⁶ is position 2⁴⁷: no 32-bit arithmetic may hide here.

    Of the 65.5 epochs in the batch at least 64 are whole.
    """
    indices = ShuffledIndices(1000, 2**16, seed=0)
    step = 2**31 + 7
    assert indices.epoch(step) == (step * 2**16) // 1000
    assert np.all(np.bincount(indices(step), minlength=1000) >= 64)


def test_epochs_and_seeds_are_unrelated():
    """Two independent permutations agree in Poisson(1) places: 66 pairs have mean 1 ± 5·0.12."""
    drawn = [permutation(1000, seed, epoch) for seed in range(3) for epoch in range(4)]
    pairs = [(a == b).sum() for i, a in enumerate(drawn) for b in drawn[:i]]
    assert abs(np.mean(pairs) - 1) < 0.6
    assert max(pairs) < 8


def test_first_places_are_uniform():
    """Over 4,000 epochs of 8 examples each example leads 500 ± 5·√(500·7/8) times."""
    counts = np.bincount([permutation(8, 1, epoch)[0] for epoch in range(4000)], minlength=8)
    assert np.all(np.abs(counts - 500) < 105)


def test_the_permutation_sorts_philox_words():
    """Philox4x64-10 written out in Python integers: the stream is a published function."""

    def philox(counter, key):
        x0, x1, x2, x3 = counter
        k0, k1 = key
        mask = 2**64 - 1
        for _ in range(10):
            p0, p1 = 0xD2E7470EE14C6C93 * x0, 0xCA5A826395121157 * x2
            x0, x1, x2, x3 = (p1 >> 64) ^ x1 ^ k0, p1 & mask, (p0 >> 64) ^ x3 ^ k1, p0 & mask
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
        return [x0, x1, x2, x3]

    seed, epoch = 2**63 + 12345, 77
    words = [w for block in range(1, 6) for w in philox([block, 0, 0, 0], (seed, epoch))]
    np.testing.assert_array_equal(
        permutation(20, seed, epoch), sorted(range(20), key=words.__getitem__)
    )


def test_the_rule_is_frozen_comparable_and_picklable():
    indices = ShuffledIndices(10, 4, seed=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        indices.seed = 1  # type: ignore
    for twin in (pickle.loads(pickle.dumps(indices)), copy.deepcopy(indices)):
        assert twin == indices
        np.testing.assert_array_equal(twin(3), indices(3))
    other = dataclasses.replace(indices, seed=1)
    assert other != indices
    assert not np.array_equal(other.chunk(0, 5), indices.chunk(0, 5))


def test_a_cached_permutation_cannot_be_spoiled():
    indices = ShuffledIndices(10, 4, seed=0)
    batch, before = indices(0), indices(0).copy()
    batch[:] = -1
    np.testing.assert_array_equal(indices(0), before)
    with pytest.raises(ValueError, match="read-only"):
        permutation(10, 0, 0)[0] = 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0, 4, 0), "num_examples"),
        ((2**31, 4, 0), "int32"),
        ((10, 0, 0), "batch_size, a whole number of at least 1, got 0"),
        ((10, 4, -1), "seed"),
        ((10, 4, 2**64), "seed"),
    ],
)
def test_impossible_rules_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        ShuffledIndices(*arguments)


def test_impossible_steps_are_refused():
    indices = ShuffledIndices(10, 4, 0)
    with pytest.raises(ValueError, match="step, .*got -1"):
        indices(-1)
    with pytest.raises(ValueError, match="length, .*got 0"):
        indices.chunk(0, 0)
