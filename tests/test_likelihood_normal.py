"""Gaussian divergences and densities against SciPy, quadrature and closed forms, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from ddpm_jax.likelihood.normal import (
    discretized_log_likelihood,
    log_cdf,
    normal_kl,
    normal_log_density,
)

LEVELS = np.linspace(-1.0, 1.0, 256)
f32 = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
log_bin = jax.jit(discretized_log_likelihood, static_argnames="levels")
log_bin_and_slopes = jax.jit(
    jax.vmap(jax.value_and_grad(lambda m, lv, x: discretized_log_likelihood(x, m, lv), (0, 1)))
)


def reference_log_bin(x, mean, log_variance):
    """log(Φ(b) - Φ(a)) in float64, from the lighter tail, where b - a is small by quadrature."""
    x, mean, log_variance = (np.asarray(v, np.float64) for v in (x, mean, log_variance))
    std = np.exp(0.5 * log_variance)
    upper, lower = (x + 1 / 255 - mean) / std, (x - 1 / 255 - mean) / std
    flip = x > mean
    near, far = np.where(flip, -lower, upper), np.where(flip, -upper, lower)
    log_near = special.log_ndtr(near)
    gap = special.log_ndtr(far) - log_near
    wide = log_near + np.log(-np.expm1(np.minimum(gap, -1e-300)))
    # Eight-point Gauss-Legendre: exact to rounding for bins narrower than a tenth of a deviation.
    nodes, weights = np.polynomial.legendre.leggauss(8)
    half = (upper - lower)[..., None] / 2
    logs = stats.norm.logpdf((upper + lower)[..., None] / 2 + half * nodes)
    narrow = special.logsumexp(logs, b=weights * half, axis=-1)
    inside = np.where(upper - lower < 0.1, narrow, wide)
    edges = np.where(x < -0.999, special.log_ndtr(upper), special.log_ndtr(-lower))
    return np.where(np.abs(x) > 0.999, edges, inside)


@pytest.mark.parametrize(
    "first,second", [((0.3, -1.2), (-0.4, 0.9)), ((-1.0, 2.0), (2.0, -0.5)), ((0.0, 0.1), (0.0, 0))]
)
def test_kl_is_the_integral_of_the_log_ratio(first, second):
    """And not that of the other order, nor one that takes a variance for its logarithm."""

    def integral(p, q):
        p, q = (stats.norm(m, np.exp(0.5 * lv)) for m, lv in (p, q))
        a, b = p.mean() - 12 * p.std(), p.mean() + 12 * p.std()
        return integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), a, b)[0]

    np.testing.assert_allclose(normal_kl(*first, *second), integral(first, second), rtol=1e-5)
    np.testing.assert_allclose(normal_kl(*second, *first), integral(second, first), rtol=1e-5)
    assert abs(integral(first, second) / integral(second, first) - 1) > 0.01


def test_kl_is_never_negative_and_zero_for_equals():
    rng = np.random.default_rng(0)
    mean, other = f32(rng.normal(size=(2, 5000)))
    log_variance = f32(rng.uniform(-12, 3, 5000))
    np.testing.assert_array_equal(normal_kl(mean, log_variance, mean, log_variance), np.zeros(5000))
    near = log_variance + f32(rng.normal(0, 1e-3, 5000))
    close = normal_kl(mean, log_variance, mean, near)
    r = np.asarray(log_variance, np.float64) - np.asarray(near, np.float64)
    # ½(e^r - 1 - r) cancels to r²/4: what is left is off by one rounding of r.
    np.testing.assert_allclose(close, 0.5 * (np.expm1(r) - r), atol=1e-9)
    assert (close >= 0).all()
    assert (normal_kl(mean, log_variance, other, near) > 0).all()


def test_log_density_is_scipys():
    rng = np.random.default_rng(1)
    x, mean = rng.normal(size=(2, 100))
    log_variance = rng.uniform(-8, 4, 100)
    expected = stats.norm.logpdf(x, mean, np.exp(0.5 * log_variance))
    np.testing.assert_allclose(
        normal_log_density(f32(x), f32(mean), f32(log_variance)), expected, rtol=2e-5, atol=1e-5
    )


def test_the_bins_of_all_levels_sum_to_one():
    """From a σ of a millionth of a bin to one of ten thousand pixels, wherever the mean."""
    mean = np.array([-50, -3, -1.0, -0.999, -1 / 255, 0.0, 0.123, 0.007, 0.5, 1.0, 3, 50])
    log_variance = np.array([-40, -30, -20, -12, -9.4, -7, -4, 0, 2, 3, 8, 18.0])
    grid = [f32(v) for v in np.meshgrid(LEVELS, mean, log_variance, indexing="ij")]
    log_mass = np.asarray(log_bin(*grid), np.float64)
    assert (log_mass <= 1e-6).all()
    np.testing.assert_allclose(np.exp(log_mass).sum(0), 1.0, rtol=2e-5)


def test_the_discretised_likelihood_is_the_difference_of_the_cdfs():
    """At every level: near the mean against SciPy's cdf, and far out against its logarithm."""
    cases = [(0.1, -9.0), (0.1, -5.0), (-0.7, -2.0), (1.4, -6.0), (0.0, 0.0), (-0.2, 5.0), (0, 15)]
    mean, log_variance = (np.array(v, np.float64)[:, None] for v in zip(*cases, strict=True))
    got = log_bin(f32(LEVELS)[None], f32(mean), f32(log_variance))
    expected = reference_log_bin(LEVELS, mean, log_variance)
    std = np.exp(0.5 * log_variance)
    plain = np.diff(stats.norm.cdf(np.append(LEVELS - 1 / 255, 1 + 1 / 255), mean, std))
    seen = (plain > 1e-6) & (np.abs(LEVELS) < 0.999)
    np.testing.assert_allclose(expected[seen], np.log(plain[seen]), rtol=1e-5)
    # Rounding of x_0 - mean, an ulp of 1, in units of σ and times the slope of the logarithm.
    slope = (np.abs(LEVELS - mean) + 1 / 255) / std**2
    np.testing.assert_array_less(np.abs(got - expected), 5e-5 + 3e-7 * slope - 4e-7 * expected)


def test_the_outer_bins_are_open():
    sign = np.array([-1.0, 1.0])
    far = log_bin(f32(sign), f32(100 * sign), 0.0)
    half = log_bin(f32(sign), f32(sign * (1 - 1 / 255)), -8.0)
    np.testing.assert_allclose(far, [0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(half, np.log([0.5, 0.5]), rtol=1e-4)
    assert (log_bin(f32(LEVELS[[1, 254]]), f32(100 * sign), 0.0) < -90).all()


def test_other_numbers_of_levels():
    levels = np.linspace(-1, 1, 4)
    got = log_bin(f32(levels), 0.2, -1.0, levels=4)
    edges = stats.norm.cdf([-np.inf, -2 / 3, 0, 2 / 3, np.inf], 0.2, np.exp(-0.5))
    np.testing.assert_allclose(np.exp(got), np.diff(edges), rtol=1e-5)


def test_the_normal_cdf_and_its_slope_keep_their_digits_in_the_tail():
    """d log Φ/dx = √(2/π)/erfcx(-x/√2); Φ itself has long underflowed."""
    x = np.array([-1e6, -1e4, -300, -30, -12, -10.01, -10, -9.99, -5, -1, 0, 2, 5, 10.0])
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(log_cdf)))(f32(x))
    np.testing.assert_allclose(value, special.log_ndtr(x), rtol=1e-5, atol=1e-7)
    x = np.asarray(f32(x), np.float64)
    np.testing.assert_allclose(
        slope, np.sqrt(2 / np.pi) / special.erfcx(-x / np.sqrt(2)), rtol=1e-5
    )


def test_gradients_are_right_in_both_tails_and_finite_far_out():
    def slopes(mean, log_variance, x):
        grid = np.meshgrid(mean, log_variance, x, indexing="ij")
        flat = [np.asarray(f32(v.ravel()), np.float64) for v in grid]
        return flat, log_bin_and_slopes(*(f32(v) for v in flat))

    levels = LEVELS[[0, 1, 100, 128, 254, 255]]
    (mean, log_variance, x), (_, got) = slopes([-2.0, -0.3, 0.21, 2.5], [-6.0, -3, 0, 4, 9], levels)
    h = 1e-5
    for argument, slope in enumerate(got):
        up, down = (
            reference_log_bin(
                x,
                mean + (argument == 0) * d * np.exp(log_variance / 2),
                log_variance + (argument == 1) * d,
            )
            for d in (h, -h)
        )
        expected = (up - down) / (2 * h) * (np.exp(-log_variance / 2) if argument == 0 else 1)
        scale = np.exp(-log_variance / 2) if argument == 0 else 1.0
        np.testing.assert_allclose(
            np.asarray(slope) / scale, expected / scale, rtol=2e-3, atol=2e-4
        )
    extreme = np.array([-70.0, -50, -30, -15, 15, 30, 60])
    _, (value, got) = slopes([-100.0, -1, 0.0, 0.3, 1, 100], extreme, levels)
    assert all(np.isfinite(v).all() for v in (value, *got))


def test_a_deviation_that_float32_cannot_hold():
    """Its inverse underflows or overflows; the logarithm, and its gradients, are ordinary numbers.

    A wide bin has the density times its width, an open one half of all; a narrow Gaussian lies in
    one bin as a whole.
    """
    log_variance = np.array([-1e4, -1000.0, -200.0, 150.0, 200.0, 1000.0, 1e4])
    for level, x in zip((100, 0, 255), LEVELS[[100, 0, 255]], strict=True):
        wide = np.log(2 / 255) - 0.5 * (log_variance[3:] + np.log(2 * np.pi))
        value, (by_mean, by_log_variance) = log_bin_and_slopes(
            f32(np.full(7, x + 1e-3)), f32(log_variance), f32(np.full(7, x))
        )
        expected = wide if level == 100 else np.full(4, np.log(0.5))
        np.testing.assert_allclose(value, [0.0, 0.0, 0.0, *expected], rtol=1e-6)
        np.testing.assert_allclose(by_mean, 0.0, atol=1e-30)
        slope = -0.5 if level == 100 else 0.0
        np.testing.assert_allclose(by_log_variance, [0.0] * 3 + [slope] * 4, atol=1e-30, rtol=1e-6)


def test_a_mean_outside_is_pulled_back():
    """In the tail the slope is that of a Gaussian, (x-m)/σ², whichever side it lies on."""
    mean, x = np.array([-5.0, 5.0]), LEVELS[[100, 100]]
    _, (slope, _) = log_bin_and_slopes(f32(mean), f32([-10.0, -10.0]), f32(x))
    np.testing.assert_allclose(slope, (x - mean) * np.exp(10.0), rtol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_decoder_of_half_precision_is_that_of_the_same_numbers_in_float64(dtype):
    """Rounded once, at the end."""
    mean, log_variance = np.float64(jnp.asarray([0.125, -0.5, 1.25], dtype)), np.float64(-4.5)
    x = np.float64(jnp.asarray([-1.0, 0.25, 1.0], dtype))
    got = discretized_log_likelihood(*(jnp.asarray(v, dtype) for v in (x, mean, log_variance)))
    assert got.dtype == dtype
    with jax.enable_x64(True):
        wanted = discretized_log_likelihood(*map(jnp.asarray, (x, mean, log_variance)))
    np.testing.assert_allclose(np.float64(got), wanted, rtol=float(jnp.finfo(dtype).eps))


EXTREMES = {
    # Where 1/v overflows and the means agree, the distance is 0; where it does not, it is ordinary.
    "equal": ((0.0, -100.0, 0.0, -100.0), 0.0, (0.0, 0.0, 0.0, 0.0)),
    "equal, narrower": ((0.3, -1000.0, 0.3, -1000.0), 0.0, (0.0, 0.0, 0.0, 0.0)),
    "nearly": ((1e-20, -100.0, 0.0, -100.0), 5e-41 * np.exp(100), (1e-20 * np.exp(100), 0, 0, 0)),
    # Infinite, with a gradient that does not turn the batch's into NaN.
    "too wide": ((0.3, 0.0, 0.2, -100.0), np.inf, (0.0, 0.0, 0.0, 0.0)),
    "far too wide": ((0.3, 0.0, 0.3, -1000.0), np.inf, (0.0, 0.0, 0.0, 0.0)),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_kl_and_its_gradient_where_the_precision_overflows(name):
    arguments, expected, slopes = EXTREMES[name]
    value, got = jax.value_and_grad(normal_kl, (0, 1, 2, 3))(*map(f32, arguments))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(got[0], slopes[0], rtol=1e-5)
    assert np.isfinite(got).all()
    density = jax.grad(normal_log_density, (0, 1, 2))(*map(f32, (0.3, 0.3, arguments[3])))
    np.testing.assert_array_equal(density, [0.0, 0.0, -0.5])


def test_a_pixel_without_any_probability_leaves_the_gradients_finite():
    """The logarithm overflows: -∞. A mean far out on an open bin's own side is certain of it."""
    x, mean = LEVELS[[100, 0, 255, 0, 255]], np.array([0.3, 0.3, -0.3, -3.0, 3.0])
    for log_variance in (-95.0, -1000.0, -1e5):
        value, slopes = log_bin_and_slopes(f32(mean), f32(np.full(5, log_variance)), f32(x))
        np.testing.assert_array_equal(value, [-np.inf] * 3 + [0.0] * 2)
        np.testing.assert_array_equal(np.abs(slopes), np.zeros((2, 5)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rounded_once_at_the_end(dtype):
    """Also where one argument alone is of half precision."""
    half = [jnp.asarray(v, dtype) for v in (0.3, -1.1, -0.7, -3.3)]
    for function, count in ((normal_kl, 4), (normal_log_density, 3), (log_bin, 3)):
        wide = [f32(v) for v in half[-count:]]
        got = function(*half[-count:])
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, function(*wide).astype(dtype))
        np.testing.assert_array_equal(function(*wide[:-1], half[-1]), function(*wide))


def test_the_decoder_is_float64_in_float64():
    """Wide and narrow bins, near the mean and 1e5 deviations away, with their slopes."""
    rng = np.random.default_rng(5)
    x, mean = LEVELS[rng.integers(0, 256, 5000)], rng.uniform(-1.2, 1.2, 5000)
    log_variance = rng.uniform(-20, 3, 5000)
    half, std = 1 / 255, np.exp(0.5 * log_variance)
    center, delta = np.abs(x - mean) / std, half / std
    # The bin by quadrature with 200 nodes where the density changes little over it; else as the
    # difference of the tails of SciPy, which then lose no digits; the two open bins are one tail.
    nodes, weights = np.polynomial.legendre.leggauss(200)
    logs = -0.5 * (center[:, None] + delta[:, None] * nodes) ** 2 - 0.5 * np.log(2 * np.pi)
    smooth = special.logsumexp(logs, b=weights * delta[:, None], axis=1)
    near, far = special.log_ndtr(delta - center), special.log_ndtr(-delta - center)
    gap = np.minimum(far - near, -1e-300)
    inside = np.where((center + 1) * delta < 5, smooth, near + np.log(-np.expm1(gap)))
    first = special.log_ndtr((x - mean + half) / std)
    last = special.log_ndtr((mean - x + half) / std)
    expected = np.where(x < -0.999, first, np.where(x > 0.999, last, inside))
    assert center.max() > 1e4 and delta.min() < 0.01 and delta.max() > 10
    with jax.enable_x64(True):
        got, (slope, _) = log_bin_and_slopes(
            jnp.asarray(mean), jnp.asarray(log_variance), jnp.asarray(x)
        )
        step = 1e-6 * std
        up, down = (
            discretized_log_likelihood(x, mean + s * step, log_variance) for s in (0.5, -0.5)
        )
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)
        scale = np.maximum(np.abs(got), 1.0) * 1e-9 / step
        assert (np.abs(slope - (up - down) / step) <= scale).all()
