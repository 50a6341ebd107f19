"""Nearest neighbours against a written-out search in whole numbers and scikit-learn's."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from ddpm_jax.evaluation import nearest_neighbours, neighbours


def random_images(count, side=4, channels=1, top=256, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, top, (count, side, side, channels)).astype(np.uint8)


@pytest.mark.parametrize("at_once", [(1024, 4096), (7, 5), (1, 1), (50, 3)])
@pytest.mark.parametrize("k", [1, 4, 60])
def test_search_is_exact_whatever_the_blocks(at_once, k, monkeypatch):
    """Three levels only, so that most distances are shared: ties come by ascending index."""
    monkeypatch.setattr(neighbours, "_SAMPLES_AT_ONCE", at_once[0])
    monkeypatch.setattr(neighbours, "_TRAIN_AT_ONCE", at_once[1])
    samples, train = random_images(23, top=3), random_images(60, top=3, seed=1)
    a, b = samples.reshape(23, -1).astype(int), train.reshape(60, -1).astype(int)
    squared = np.square(a[:, None] - b[None]).sum(axis=-1)
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    found = nearest_neighbours(samples, train, k)
    np.testing.assert_array_equal(found.indices, order)
    expected = np.sqrt(np.take_along_axis(squared, order, axis=1)).astype(np.float32)
    np.testing.assert_array_equal(found.distances, expected)
    assert found.distances.dtype == np.float32 and found.indices.shape == (23, k)


def test_agrees_with_scikit_learn():
    samples, train = random_images(40, 8, 3), random_images(300, 8, 3, seed=1)
    a, b = (x.reshape(len(x), -1).astype(float) for x in (samples, train))
    distances, indices = NearestNeighbors(n_neighbors=5).fit(b).kneighbors(a)
    found = nearest_neighbours(samples, train, 5)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-6)


def test_copies_are_at_zero_and_almost_copies_at_one():
    """Bright 32×32×3 images, whose squared norms of 2e8 float32 cannot hold to the unit."""
    train = np.full((4, 32, 32, 3), 255, np.uint8) - random_images(4, 32, 3, top=9)
    samples = train[[2, 0]].copy()
    samples[1, 5, 5, 1] -= 1
    found = nearest_neighbours(samples, train)
    np.testing.assert_array_equal(found.indices, [[2], [0]])
    np.testing.assert_array_equal(found.distances, [[0.0], [1.0]])


@pytest.mark.parametrize("k", [0, 6, -1])
def test_k_has_bounds(k):
    with pytest.raises(ValueError, match=rf"k, .*got {k}|1 ≤ k ≤ 5, the size of train, got k={k}"):
        nearest_neighbours(random_images(2), random_images(5), k)


def test_only_like_images_are_compared():
    with pytest.raises(ValueError, match=r"samples \(4, 4, 1\) and train \(4, 4, 3\)"):
        nearest_neighbours(random_images(2), random_images(5, channels=3))
    with pytest.raises(TypeError, match="nearest_neighbours needs uint8.*to_pixels"):
        nearest_neighbours(random_images(2) / 255, random_images(5))
