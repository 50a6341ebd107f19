"""KID against its definition written out, and its promise: no bias at any sample size."""

import numpy as np
import pytest

from ddpm_jax.evaluation import kernel_distance, kid, polynomial_mmd


def mmd_by_loops(x, y):
    """The definition, one pair of examples at a time."""
    k = lambda a, b: (float(a @ b) / len(a) + 1.0) ** 3  # noqa: E731
    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    xy = sum(k(a, b) for a in x for b in y)
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


@pytest.mark.parametrize("rows", [4, 7, 2048])
def test_equals_the_definition(monkeypatch, rows):
    """Also where the blocks divide neither side evenly, and in float32 as features come."""
    monkeypatch.setattr(kid, "_ROWS", rows)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((19, 5)), rng.standard_normal((13, 5)) * 1.5 + 0.3
    np.testing.assert_allclose(polynomial_mmd(x, y), mmd_by_loops(x, y), rtol=1e-12)
    x, y = x.astype(np.float32), y.astype(np.float32)
    expected = mmd_by_loops(x.astype(np.float64), y.astype(np.float64))
    np.testing.assert_allclose(polynomial_mmd(x, y), expected, rtol=1e-12)


def test_points_apart():
    """One-dimensional point masses at a and b: MMD² = k(a,a) + k(b,b) - 2 k(a,b)."""
    a, b = 1.0, 3.0
    expected = (a * a + 1) ** 3 + (b * b + 1) ** 3 - 2 * (a * b + 1) ** 3
    np.testing.assert_allclose(polynomial_mmd(np.full((5, 1), a), np.full((9, 1), b)), expected)


def test_no_bias_between_equal_distributions():
    """Of 3000 estimates from 8 examples a side the mean is within four standard errors of zero.

    With the diagonals counted it would be far outside, and a Fréchet distance far above zero.
    """
    rng = np.random.default_rng(1)
    values = [polynomial_mmd(*rng.standard_normal((2, 8, 3))) for _ in range(3000)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(3000)
    assert min(values) < 0


def test_subsets_of_everything_are_the_estimate_itself():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((20, 4)), rng.standard_normal((20, 4)) + 1
    found = kernel_distance(x, y, num_subsets=3, subset_size=20)
    np.testing.assert_allclose(found.mean, polynomial_mmd(x, y), rtol=1e-12)
    assert found.std < 1e-12 and found[2:] == (3, 20)


def test_subsets_average_to_the_estimate_and_follow_the_seed():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((60, 4)), rng.standard_normal((50, 4)) + 0.5
    found = kernel_distance(x, y, num_subsets=400, subset_size=10)
    assert abs(found.mean - polynomial_mmd(x, y)) < 4 * found.std / 20
    assert found.std > 0
    assert found == kernel_distance(x, y, num_subsets=400, subset_size=10)
    assert found != kernel_distance(x, y, num_subsets=400, subset_size=10, seed=1)


def test_refusals_say_what_to_do():
    x = np.zeros((5, 2))
    with pytest.raises(ValueError, match=r"subset_size, a whole number in 2\.\.5.*Lower it"):
        kernel_distance(x, x)
    with pytest.raises(ValueError, match="num_subsets, a whole number"):
        kernel_distance(x, x, subset_size=3, num_subsets=0)
    with pytest.raises(ValueError, match="equally many features on both sides, got 2 and 3"):
        polynomial_mmd(x, np.zeros((5, 3)))
    with pytest.raises(ValueError, match="at least 2 examples"):
        polynomial_mmd(x, x[:1])
    with pytest.raises(ValueError, match=r"real \[N, D\]"):
        polynomial_mmd(x[0], x)
    bad = x.copy()
    bad[3, 1] = np.inf
    with pytest.raises(ValueError, match="finite generated.*first in row 3"):
        polynomial_mmd(x, bad)
