"""Precision, recall, density and coverage: against brute force, and where the answer is known."""

import importlib

import numpy as np
import pytest

from ddpm_jax.evaluation import density_coverage, precision_recall

module = importlib.import_module("ddpm_jax.evaluation.precision_recall")


def brute_force(real, generated, k):
    """Distances one by one; the k-th nearest other point by sorting."""

    def distance(a, b):
        return np.array([[np.linalg.norm(x - y) for y in b] for x in a])

    def radii(x):
        between = distance(x, x)
        return np.array([np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(between)])

    d = distance(real, generated)
    r, g = radii(real), radii(generated)
    precision = np.mean([(d[:, j] <= r).any() for j in range(len(generated))])
    recall = np.mean([(d[i] <= g).any() for i in range(len(real))])
    density = np.mean([(d[:, j] < r).sum() / k for j in range(len(generated))])
    coverage = np.mean([(d[i] < r[i]).any() for i in range(len(real))])
    return precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("rows, columns", [(1024, 4096), (7, 5), (4, 30)])
def test_equal_brute_force(monkeypatch, k, rows, columns):
    """Also in blocks that divide neither side, far from the origin, and with unequal counts."""
    monkeypatch.setattr(module, "_ROWS", rows)
    monkeypatch.setattr(module, "_COLUMNS", columns)
    rng = np.random.default_rng(k)
    real, generated = rng.standard_normal((31, 3)), rng.standard_normal((22, 3)) * 0.8 + 0.9
    expected = brute_force(real, generated, k)
    assert 0 < min(expected[:2]) and max(expected[:2]) < 1, "the case decides nothing"
    found = precision_recall(real + 100, generated + 100, k=k)
    np.testing.assert_allclose(found, (*expected[:2], k), rtol=1e-12)
    found = density_coverage(real + 100, generated + 100, k=k)
    np.testing.assert_allclose(found, (*expected[2:], k), rtol=1e-12)


@pytest.mark.parametrize("nudged", [False, True])
def test_a_set_with_itself(nudged):
    """All are 1: an open ball holds its centre and k-1 neighbours, so density is k/k.

    The k-th neighbour lies on the surface, where rounding must not decide: not when every number is
    moved to the next one that float64 has, as another linear algebra library would.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 64)) + 3
    again = rng.permutation(x)
    if nudged:
        again = np.nextafter(again, rng.choice([-np.inf, np.inf], size=again.shape))
    assert precision_recall(x, again) == (1.0, 1.0, 3)
    np.testing.assert_allclose(density_coverage(x, again), (1.0, 1.0, 5), rtol=1e-12)


def test_disjoint_sets_are_zero():
    rng = np.random.default_rng(1)
    real, generated = rng.standard_normal((2, 50, 4))
    assert precision_recall(real, generated + 100)[:2] == (0.0, 0.0)
    assert density_coverage(real, generated + 100)[:2] == (0.0, 0.0)


def two_modes(seed, count):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 2))
    x[: count // 2] += 100
    return x


def test_a_dropped_mode_costs_recall_and_coverage_only():
    real, generated = two_modes(0, 200), two_modes(1, 200)[:100]
    precision, recall, _ = precision_recall(real, generated)
    assert precision > 0.85 and 0.4 < recall <= 0.5
    density, coverage, _ = density_coverage(real, generated)
    assert 0.8 < density < 1.2 and 0.4 < coverage <= 0.5


def test_an_invented_mode_costs_precision_and_density_only():
    real, generated = two_modes(0, 200)[:100], two_modes(1, 200)
    precision, recall, _ = precision_recall(real, generated)
    assert 0.4 < precision <= 0.5 and recall > 0.85
    density, coverage, _ = density_coverage(real, generated)
    assert 0.4 < density < 0.6 and coverage > 0.9


def test_expectation_of_density_and_coverage():
    """Of equal distributions, N = M: density 1, coverage 1 - Π_{i=1..k} (N-i)/(2N-i), exactly.

    The other 2N - 1 points are exchangeable, so that none of the k nearest is generated has the
    probability of k draws without replacement.
    """
    rng = np.random.default_rng(2)
    n, k, repeats = 20, 2, 400
    found = np.array(
        [density_coverage(*rng.standard_normal((2, n, 2)), k=k)[:2] for _ in range(repeats)]
    )
    expected = (1.0, 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)]))
    error = found.std(axis=0) / np.sqrt(repeats)
    assert (np.abs(found.mean(axis=0) - expected) < 4 * error).all(), (found.mean(axis=0), expected)


def test_duplicates_are_neighbours():
    """Of four copies each has three at distance 0, so a ball of k = 3 is a point: in, if closed."""
    x = np.repeat(np.eye(3) * 5, 4, axis=0)
    assert precision_recall(x, x, k=3)[:2] == (1.0, 1.0)
    assert density_coverage(x, x, k=3)[:2] == (0.0, 0.0)
    assert precision_recall(x, x + 1e-3, k=3)[:2] == (0.0, 0.0)


def test_refusals_say_what_to_do():
    x = np.zeros((5, 2))
    for function in (precision_recall, density_coverage):
        with pytest.raises(ValueError, match="at least 6 examples.*Take more images"):
            function(x, x, k=5)
        with pytest.raises(ValueError, match="needs k, a whole number"):
            function(x, x, k=0)
        with pytest.raises(ValueError, match="equally many features"):
            function(x, np.zeros((5, 3)), k=1)
