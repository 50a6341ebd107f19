"""Moments and Fréchet distances against closed forms, NumPy and SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from sklearn.datasets import load_digits

from ddpm_jax.evaluation import (
    Moments,
    bootstrap_interval,
    fitted_gaussian_images,
    frechet_distance,
    moments,
    pixel_features,
    update_moments,
)


def random_moments(rng, dim, rank=None):
    factor = rng.standard_normal((dim, dim if rank is None else rank))
    return Moments(rng.standard_normal(dim), factor @ factor.T, 100)


def random_rotation(rng, dim):
    return np.linalg.qr(rng.standard_normal((dim, dim)))[0]


@pytest.mark.parametrize("count, dim", [(2, 1), (5, 8), (300, 7)])
def test_moments_equal_numpy(count, dim):
    x = np.random.default_rng(count).standard_normal((count, dim)) * 3 + 5
    found = moments(x)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(
        found.covariance, np.cov(x, rowvar=False).reshape(dim, dim), atol=1e-12
    )
    assert found.count == count and found.covariance.dtype == np.float64


@pytest.mark.parametrize("cuts", [[1], [1, 2, 3], [50], [99], [7, 8, 60], list(range(1, 100))])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_merged_batches_equal_the_whole(cuts, offset):
    """Also one example at a time, and far from zero, where sums of squares would lose 8 digits."""
    x = np.random.default_rng(0).standard_normal((100, 6)) @ np.diag(np.arange(1.0, 7.0)) + offset
    running = None
    for batch in np.split(x, cuts):
        running = update_moments(running, batch)
    assert running is not None and running.count == 100
    np.testing.assert_allclose(running.mean, x.mean(axis=0), rtol=1e-12, atol=1e-12)
    tolerance = 1e-12 if offset == 0 else 1e-10  # the features themselves are rounded at 1e-12
    np.testing.assert_allclose(running.covariance, np.cov(x.T), rtol=tolerance, atol=tolerance)


def test_float32_features_are_summed_in_float64():
    """A float32 mean of a million values near 1000 would be off by 1e-2."""
    x = jnp.full((200_000, 1), 1000.1, jnp.float32)
    np.testing.assert_allclose(moments(x).mean, np.float64(np.float32(1000.1)), rtol=1e-14)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 3), (3, 0)])
def test_moments_refuse_other_shapes(shape):
    with pytest.raises(ValueError, match=r"moments needs features \[N, D\]"):
        moments(np.zeros(shape))


def test_moments_refuse_what_is_not_finite():
    x = np.zeros((5, 2))
    x[3, 1], x[4, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match="first in row 3"):
        moments(x)


def test_moments_of_one_feature_space_stay_there():
    with pytest.raises(ValueError, match="3 features and got a batch of 2"):
        update_moments(moments(np.eye(3)), np.eye(2))


@pytest.mark.parametrize("mean_a, sd_a, mean_b, sd_b", [(0, 1, 3, 1), (1, 2, 1, 5), (-2, 0, 4, 3)])
def test_one_dimension(mean_a, sd_a, mean_b, sd_b):
    """d² = (μ_a - μ_b)² + (σ_a - σ_b)², also for a point mass."""
    a = Moments(np.array([mean_a], float), np.array([[sd_a**2]], float), 9)
    b = Moments(np.array([mean_b], float), np.array([[sd_b**2]], float), 9)
    expected = (mean_a - mean_b) ** 2 + (sd_a - sd_b) ** 2
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_commuting_covariances(seed):
    """With common axes, d² = ‖μ_a - μ_b‖² + Σ_i (√λ_i - √κ_i)²; some of them are 0."""
    rng = np.random.default_rng(seed)
    axes = random_rotation(rng, 12)
    eig_a, eig_b = rng.exponential(size=(2, 12)) * (rng.random((2, 12)) < 0.7)
    a = Moments(rng.standard_normal(12), axes * eig_a @ axes.T, 100)
    b = Moments(rng.standard_normal(12), axes * eig_b @ axes.T, 100)
    expected = np.square(a.mean - b.mean).sum() + np.square(np.sqrt(eig_a) - np.sqrt(eig_b)).sum()
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-11)


@pytest.mark.parametrize("dim", [2, 10, 64])
def test_against_scipy_matrix_square_roots(dim):
    rng = np.random.default_rng(dim)
    a, b = random_moments(rng, dim), random_moments(rng, dim)
    cross = np.trace(scipy.linalg.sqrtm(a.covariance @ b.covariance)).real
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    expected = np.square(a.mean - b.mean).sum() + trace - 2 * cross
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-6)


def test_lines_at_an_angle():
    """For Σ_a = u uᵀ and Σ_b = v vᵀ the cross term is |uᵀv|; a root of Σ_a Σ_b fails here."""
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((2, 20))
    a = Moments(np.zeros(20), np.outer(u, u), 100)
    b = Moments(np.zeros(20), np.outer(v, v), 100)
    expected = u @ u + v @ v - 2 * abs(u @ v)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-12)


@pytest.mark.parametrize("rank", [None, 40, 3, 0])
def test_distance_to_itself_is_zero(rank):
    """Also where the covariance is singular, as with fewer images than features, or zero."""
    a = random_moments(np.random.default_rng(1), 64, rank)
    assert 0 <= frechet_distance(a, a) <= 1e-13 * np.trace(a.covariance)


@pytest.mark.parametrize("rank_a, rank_b", [(None, None), (5, None), (5, 7), (2, 2)])
def test_symmetry_rotation_and_scale(rank_a, rank_b):
    """d(a, b) = d(b, a) = d(Qa, Qb) = d(ca, cb)/c², and never less than the means' own distance."""
    rng = np.random.default_rng(2)
    a, b = random_moments(rng, 16, rank_a), random_moments(rng, 16, rank_b)
    distance = frechet_distance(a, b)
    rotation = random_rotation(rng, 16)

    def turned(m, by):
        return Moments(by @ m.mean, by @ m.covariance @ by.T, m.count)

    np.testing.assert_allclose(frechet_distance(b, a), distance, rtol=1e-12)
    for by, factor in [(rotation, 1.0), (0.5 * np.eye(16), 0.25)]:
        moved = frechet_distance(turned(a, by), turned(b, by))
        np.testing.assert_allclose(moved, factor * distance, rtol=1e-11)
    assert distance >= np.square(a.mean - b.mean).sum()


def test_distance_needs_like_with_like():
    a, b = moments(np.eye(3)), moments(np.eye(2))
    with pytest.raises(ValueError, match="same features, got 3 and 2"):
        frechet_distance(a, b)
    with pytest.raises(ValueError, match="at least two examples on each side, got 3 and 1"):
        frechet_distance(a, moments(np.ones((1, 3))))


def test_pixel_features_are_the_models_own_range():
    images = np.arange(12, dtype=np.uint8).reshape(2, 1, 2, 3)
    images[0, 0, 0, 0], images[1, 0, 1, 2] = 0, 255
    features = pixel_features(images)
    assert features.shape == (2, 6) and features.dtype == np.float64
    np.testing.assert_array_equal(features, images.reshape(2, 6) / 127.5 - 1)
    assert features.min() == -1 and features.max() == 1


@pytest.mark.parametrize("function", [pixel_features, lambda x: fitted_gaussian_images(x, 1, 0)])
def test_floats_and_flat_images_are_refused(function):
    with pytest.raises(TypeError, match="float32.*\n?.*to_pixels"):
        function(np.zeros((4, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match=r"\[N, H, W, C\]"):
        function(np.zeros((4, 8, 8), np.uint8))


@pytest.mark.parametrize("number", [500, 9000])
def test_fitted_gaussian_has_the_moments_of_its_images(number):
    """Far from 0 and 255 only rounding changes them, which adds 1/12 to the variances.

    Sorted, so that no part of the images has the moments of all.
    """
    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((8, 12)) * 6
    levels = 128 + rng.standard_normal((number, 8)) @ mixing + rng.uniform(-20, 20, 12)
    levels = levels[np.argsort(levels[:, 0])]
    images = np.rint(np.clip(levels, 0, 255)).astype(np.uint8).reshape(number, 2, 2, 3)
    count = 40_000
    drawn = fitted_gaussian_images(images, count, seed=0)
    assert drawn.dtype == np.uint8 and drawn.shape == (count, 2, 2, 3)
    data, fitted = (moments(x.reshape(len(x), -1)) for x in (images, drawn))
    deviation = np.sqrt(np.diag(data.covariance))
    assert (np.abs(fitted.mean - data.mean) < 5 * deviation / np.sqrt(count)).all()
    error = fitted.covariance - data.covariance - np.eye(12) / 12
    assert (np.abs(error) < 5 * np.outer(deviation, deviation) * np.sqrt(2 / count)).all()


def test_fitted_gaussian_follows_its_seed_and_keeps_constant_pixels():
    images = np.random.default_rng(4).integers(0, 256, (20, 6, 6, 1)).astype(np.uint8)
    images[:, 0] = 17
    first, same, other = (fitted_gaussian_images(images, 9, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    assert (first[:, 0] == 17).all() and first.min() == 0 and first.max() == 255


def test_fitted_gaussian_needs_a_spread():
    with pytest.raises(ValueError, match="at least two images"):
        fitted_gaussian_images(np.zeros((1, 8, 8, 1), np.uint8), 4, seed=0)
    with pytest.raises(ValueError, match="count, .*got 0"):
        fitted_gaussian_images(np.zeros((2, 8, 8, 1), np.uint8), 0, seed=0)


def test_held_out_digits_are_nearer_than_a_gaussian():
    """Equal counts, in [-1, 1]: every real sample's distance is below every fitted sample's."""
    digits = np.rint(load_digits().images * 255 / 16).astype(np.uint8)[..., None]
    digits = digits[np.random.default_rng(0).permutation(len(digits))]
    train, heldout = digits[360:], digits[:360]
    reference = moments(pixel_features(train))

    def distance(images):
        return frechet_distance(reference, moments(pixel_features(images)))

    drawn = [distance(fitted_gaussian_images(train, 360, seed)) for seed in range(5)]
    assert 0.2 < distance(heldout) < 0.6 < min(drawn) and max(drawn) < 1.3
    noise = np.random.default_rng(0).integers(0, 256, heldout.shape).astype(np.uint8)
    assert distance(noise) > 30


def test_bootstrap_finds_the_standard_error_of_a_mean():
    """95 % of a normal mean lies within 1.96 s/√n of it, whatever the order of the examples."""
    x = np.random.default_rng(5).standard_normal(400) * 3 + 2
    found = bootstrap_interval(np.mean, [x], seed=0, repeats=4000)
    half = 1.96 * x.std() / np.sqrt(400)
    assert found.estimate == x.mean()
    np.testing.assert_allclose(found.high - x.mean(), half, rtol=0.08)
    np.testing.assert_allclose(x.mean() - found.low, half, rtol=0.08)
    assert found == bootstrap_interval(np.mean, [x], seed=0, repeats=4000)
    assert found != bootstrap_interval(np.mean, [x], seed=1, repeats=4000)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    """Of 300 intervals at 80 %, 73 % to 87 % hold the true mean (three standard errors)."""
    rng = np.random.default_rng(6)
    held = 0
    for seed in range(300):
        x = rng.exponential(size=(60, 1))
        found = bootstrap_interval(np.mean, [x], seed=seed, repeats=100, level=0.8)
        held += found.low <= 1.0 <= found.high
    assert 0.73 < held / 300 < 0.87


def test_bootstrap_resamples_arrays_apart_and_keeps_rows_whole():
    """The variance of a difference of independent means is the sum of theirs."""
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((200, 1)), rng.standard_normal((50, 1))
    pair = np.concatenate([x, -x], axis=1)
    found = bootstrap_interval(
        lambda a, b: float(a[:, 0].mean() - b.mean() + (a[:, 0] + a[:, 1]).sum()),
        [pair, y],
        seed=0,
        repeats=4000,
    )
    expected = 1.96 * np.sqrt(x.var() / 200 + y.var() / 50)
    np.testing.assert_allclose((found.high - found.low) / 2, expected, rtol=0.08)


def test_bootstrap_leaves_out_the_bias_that_resampling_adds():
    """Of 100 different values a resample holds about 63; the interval still lies about the 100."""
    found = bootstrap_interval(lambda x: len(np.unique(x)), [np.arange(100)], seed=0)
    assert found.estimate == 100 and 90 < found.low < 98 and 102 < found.high < 110


@pytest.mark.parametrize("options", [{"repeats": 1}, {"level": 1.0}, {"level": 0.0}])
def test_bootstrap_refuses_what_gives_no_interval(options):
    with pytest.raises(ValueError, match="repeats|level in"):
        bootstrap_interval(np.mean, [np.ones(3)], seed=0, **options)


@pytest.mark.parametrize("arrays", [[], [np.ones(0)], [np.ones(3), np.float64(1)]])
def test_bootstrap_refuses_arrays_without_examples(arrays):
    with pytest.raises(ValueError, match="arrays of at least one example"):
        bootstrap_interval(np.mean, arrays, seed=0)
