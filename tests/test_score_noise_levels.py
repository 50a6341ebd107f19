"""Ladders of noise against the published ones, and step sizes against chains followed by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats
from scipy.spatial.distance import pdist

from ddpm_jax.score import (
    geometric_noise_levels,
    geometric_ratio,
    langevin_step_size,
    largest_pairwise_distance,
    ncsnv2_noise_levels,
)

# NCSNv2's published settings: image side, σ_1, L; T and ε where Technique 4 set them.
PUBLISHED = [
    (32, 50, 232, 5, 6.2e-6),
    (64, 90, 500, 5, 3.3e-6),
    (96, 140, 788, None, None),
    (128, 190, 1086, 3, 1.8e-6),
    (256, 348, 2311, 3, 0.9e-6),
]


def test_a_ladder_falls_by_one_ratio_between_its_ends():
    sigmas = np.asarray(geometric_noise_levels(1.0, 0.01, 10), np.float64)
    assert geometric_noise_levels(1.0, 0.01, 10).dtype == jnp.float32
    np.testing.assert_allclose(sigmas[[0, -1]], [1.0, 0.01], rtol=1e-7)
    np.testing.assert_allclose(sigmas[:-1] / sigmas[1:], 100 ** (1 / 9), rtol=1e-6)


@pytest.mark.parametrize("shape,block", [((50, 3, 4), 7), ((40, 5), 1024), ((2, 3), 1)])
def test_the_largest_distance_is_that_of_all_pairs(shape, block):
    """Far from the origin, where the products of float32 alone would be wrong."""
    data = 1e4 + np.random.default_rng(0).standard_normal(shape)
    expected = pdist(data.reshape(len(data), -1)).max()
    np.testing.assert_allclose(largest_pairwise_distance(data, block_size=block), expected)


def test_the_distance_of_uint8_does_not_wrap():
    data = np.array([[0, 0], [255, 0], [250, 250]], np.uint8)
    np.testing.assert_allclose(largest_pairwise_distance(data), np.hypot(250, 250))


@pytest.mark.parametrize("dim", [5, 12, 784, 3072, 196608])
@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.9])
def test_the_ratio_solves_technique_2(dim, overlap):
    def condition(ratio):
        shift = np.sqrt(2 * dim) * (ratio - 1)
        cdf = stats.norm.cdf
        return cdf(shift + 3 * ratio) - cdf(shift - 3 * ratio) - overlap

    expected = optimize.brentq(condition, 1.0, 1e3, xtol=1e-14)
    np.testing.assert_allclose(geometric_ratio(dim, overlap=overlap), expected, rtol=1e-9)


@pytest.mark.parametrize("side,sigma_max,num_levels,_,__", PUBLISHED)
def test_the_published_numbers_of_levels(side, sigma_max, num_levels, _, __):
    """The paper's C ≈ 0.5 was 0.567; by 0.5 itself there are 6 % fewer."""
    dim = 3 * side**2
    sigmas = np.asarray(ncsnv2_noise_levels(sigma_max, 0.01, dim, overlap=0.567))
    assert abs(len(sigmas) - num_levels) <= 1
    np.testing.assert_allclose(sigmas[[0, -1]], [sigma_max, 0.01], rtol=1e-6)
    half = ncsnv2_noise_levels(sigma_max, 0.01, dim)
    np.testing.assert_allclose(len(half) / num_levels, 0.945, atol=0.002)


@pytest.mark.parametrize("_,sigma_max,num_levels,steps,size", [p for p in PUBLISHED if p[3]])
def test_the_published_step_sizes(_, sigma_max, num_levels, steps, size):
    """Twice the paper's ε, whose step is x + ε s + √(2ε) z; given to two digits there."""
    sigmas = geometric_noise_levels(sigma_max, 0.01, num_levels)
    np.testing.assert_allclose(langevin_step_size(sigmas, steps), 2 * size, rtol=0.02)


@pytest.mark.parametrize("ratio,steps", [(1.3, 1), (1.3, 5), (2.0, 3), (5.0, 100), (1.01, 1000)])
def test_no_other_step_size_keeps_the_variance_better(ratio, steps):
    """The variance of a chain with data at one point, followed level by level, step by step."""
    sigmas = 7.0 * ratio ** -np.arange(5.0)

    def misfit(step_size):
        variance, worst = sigmas[0] ** 2, []
        for previous, sigma in zip(sigmas[:-1], sigmas[1:], strict=True):
            size, variance = step_size * sigma**2 / sigmas[-1] ** 2, previous**2
            for _ in range(steps):
                variance = (1 - size / (2 * sigma**2)) ** 2 * variance + size
            worst.append(abs(variance / sigma**2 - 1))
        np.testing.assert_allclose(worst, worst[0], rtol=1e-6)
        return worst[0]

    best = langevin_step_size(sigmas, steps)
    others = 2 * sigmas[-1] ** 2 * np.geomspace(1e-5, 1.9, 60)
    assert misfit(best) <= min(misfit(size) for size in others) * (1 + 1e-9)
    assert misfit(best) < min(misfit(0.9 * best), misfit(1.1 * best))


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: geometric_noise_levels(0.01, 1.0, 10), r"sigma_max in \(sigma_min=1.0, inf\)"),
        (lambda: geometric_noise_levels(1.0, 0.0, 10), r"sigma_min in \(0, inf\)"),
        (lambda: geometric_noise_levels(1.0, 0.01, 1), "at least 2, got 1"),
        (lambda: geometric_noise_levels(1.0001, 1.0, 10_000), "float32"),
        (lambda: largest_pairwise_distance(np.zeros((1, 3))), "N >= 2"),
        (lambda: largest_pairwise_distance(np.array([[0.0], [np.nan]])), "finite"),
        (lambda: geometric_ratio(4), "dim, a whole number of at least 5"),
        (lambda: geometric_ratio(10, overlap=1.0), "overlap"),
        (lambda: ncsnv2_noise_levels(1.0, 2.0, 10), "ncsnv2_noise_levels needs"),
        (lambda: langevin_step_size([1.0, 0.5, 0.1], 5), "geometric levels"),
        (lambda: langevin_step_size([0.1, 1.0], 5), "geometric levels"),
        (lambda: langevin_step_size([1.0, 0.5], 0), "num_steps_per_level, a whole"),
        (lambda: langevin_step_size([1.0], 3), "L >= 2"),
    ],
)
def test_bad_calls_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
