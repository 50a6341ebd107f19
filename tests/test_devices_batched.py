"""Batches split over devices: each row is computed once, by itself, whatever the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ddpm_jax.devices.batched import RowSplit, batches
from ddpm_jax.devices.mesh import AXES, ROWS, WHOLE, fetch

ROWS_OF_DATA = np.random.default_rng(0).standard_normal((21, 3)).astype(np.float32)


@pytest.mark.parametrize("count, size", [(1, 4), (4, 4), (9, 4), (21, 21), (3, 8)])
def test_batches_cover_each_row_once_and_in_order(count, size):
    parts = [list(range(count))[rows] for rows in batches(count, size)]
    assert sum(parts, []) == list(range(count))
    assert all(len(part) == size for part in parts[:-1]) and 1 <= len(parts[-1]) <= size


@pytest.mark.parametrize("devices, size", [(1, 21), (1, 5), (3, 7), (8, 1), (8, 8), (5, 64)])
def test_every_row_is_computed_whatever_the_batch_and_devices(devices, size):
    split = RowSplit(jax.devices()[:devices])
    size = split.round_up(size)
    assert size % devices == 0
    compute = split.map(lambda w, x: {"y": w * x.sum(axis=1)}, (WHOLE, ROWS))
    weight = split.replicate(np.float32(2.0))
    found = [
        fetch(compute(weight, split.put(ROWS_OF_DATA[rows], size)))["y"][: rows.stop - rows.start]
        for rows in batches(21, size)
    ]
    np.testing.assert_allclose(np.concatenate(found), 2 * ROWS_OF_DATA.sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("devices, size, expected", [(1, 5, 5), (4, 1, 4), (4, 4, 4), (4, 5, 8)])
def test_batches_are_rounded_up_to_the_devices(devices, size, expected):
    assert RowSplit(jax.devices()[:devices]).round_up(size) == expected


def test_padding_repeats_the_last_row_and_leaves_out_none():
    split = RowSplit(jax.devices()[:4])
    rows, labels = split.put((ROWS_OF_DATA[:6], None), 8)
    assert labels is None and len(rows.sharding.device_set) == 4
    np.testing.assert_array_equal(rows, ROWS_OF_DATA[[0, 1, 2, 3, 4, 5, 5, 5]])


def test_one_program_serves_all_batches():
    split, traces = RowSplit(jax.devices()[:2]), []
    compute = split.map(lambda x: traces.append(1) or x + 1, (ROWS,))
    for rows in batches(21, 8):
        compute(split.put(ROWS_OF_DATA[rows], 8))
    assert len(traces) == 1


def test_results_may_be_split_along_another_axis():
    split = RowSplit(jax.devices()[:4])
    compute = split.map(
        lambda x: jnp.stack([x.min(axis=1), x.max(axis=1)]), (ROWS,), PartitionSpec(None, AXES)
    )
    found = fetch(compute(split.put(ROWS_OF_DATA[:8], 8)))
    np.testing.assert_array_equal(found, [ROWS_OF_DATA[:8].min(1), ROWS_OF_DATA[:8].max(1)])
