import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.denoisers.sigma import denoiser_from_sigma, sigma_denoiser, sigma_range
from ddpm_jax.likelihood.dequantization import bits_per_dim, dequantize
from ddpm_jax.likelihood.probability_flow import (
    probability_flow_encode,
    probability_flow_log_likelihood,
    probability_flow_sample,
)

LOW, HIGH = 0.01, 157.0
RANGE = {"sigma_min": LOW, "sigma_max": HIGH}
RNG = np.random.default_rng(0)


def gaussian(y, sigma, mean, variance, rotation):
    """E[x_0 | y] for data N(m, Q diag(c²) Qᵀ), one m, c² and Q an example."""
    gain = variance / (variance + sigma[:, None] ** 2)
    turned = jnp.einsum("bij,bi->bj", rotation, y - mean)
    return mean + jnp.einsum("bij,bj->bi", rotation, gain * turned)


def problem(batch):
    """Means, variances and rotations of `batch` Gaussians in three dimensions."""
    mean = RNG.uniform(-0.5, 0.5, (batch, 3))
    variance = RNG.uniform(0.05, 1.0, (batch, 3)) ** 2
    rotation = np.linalg.qr(RNG.standard_normal((batch, 3, 3)))[0]
    return tuple(value.astype(np.float32) for value in (mean, variance, rotation))


def quantile_map(y, sigma_from, sigma_to, mean, variance, rotation):
    turned = np.einsum("bij,bi->bj", rotation, np.asarray(y, np.float64) - mean)
    turned *= np.sqrt((variance + sigma_to**2) / (variance + sigma_from**2))
    return mean + np.einsum("bij,bj->bi", rotation, turned)


def log_density(y, sigma, mean, variance, rotation):
    turned = np.einsum("bij,bi->bj", rotation, np.asarray(y, np.float64) - mean)
    total = np.float64(variance) + sigma**2
    return -0.5 * (turned**2 / total + np.log(2 * np.pi * total)).sum(axis=1)


GAUSSIANS = problem(8)
Y_T = (HIGH * RNG.standard_normal((8, 3))).astype(np.float32)
Y_0 = quantile_map(Y_T, HIGH, LOW, *GAUSSIANS).astype(np.float32)


@jax.jit
def run_with_tolerance(y_T, conditions, tolerance):
    return probability_flow_sample(
        gaussian, y_T, **RANGE, rtol=tolerance, atol=tolerance, conditions=conditions
    )


def run_sample(y_T, conditions):
    return run_with_tolerance(y_T, conditions, 1e-6)


@jax.jit
def run_likelihood(y_0, probes, conditions):
    return probability_flow_log_likelihood(
        gaussian,
        y_0,
        **RANGE,
        trace="exact" if probes is None else "hutchinson",
        probes=probes,
        conditions=conditions,
    )


def moved_prior(result, conditions):
    """The likelihoods had the prior been the exact N(m, Q diag(c² + σ_max²) Qᵀ)."""
    y_T = np.asarray(result.y_T, np.float64)
    assumed = -0.5 * ((y_T / HIGH) ** 2 + np.log(2 * np.pi * HIGH**2)).sum(axis=1)
    return result.log_likelihood - assumed + log_density(y_T, HIGH, *conditions)


def test_samples_and_codes_of_gaussian_data_are_the_quantile_map():
    down = run_sample(Y_T, GAUSSIANS)
    assert down.converged.all()
    np.testing.assert_allclose(
        down.y, quantile_map(Y_T, HIGH, LOW, *GAUSSIANS), rtol=2e-5, atol=1e-5
    )
    up = jax.jit(lambda y, c: probability_flow_encode(gaussian, y, **RANGE, conditions=c))
    up = up(down.y, GAUSSIANS)
    np.testing.assert_allclose(
        up.y, quantile_map(down.y, LOW, HIGH, *GAUSSIANS), rtol=1e-4, atol=1e-4 * HIGH
    )
    np.testing.assert_allclose(up.y / HIGH, Y_T / HIGH, atol=2e-4)


def test_tolerances_are_honoured():
    exact = quantile_map(Y_T, HIGH, LOW, *GAUSSIANS)
    errors, evaluations = [], []
    for tolerance in (1e-1, 1e-5, 1e-6):
        result = run_with_tolerance(Y_T, GAUSSIANS, tolerance)
        errors.append(np.abs(result.y - exact).max())
        evaluations.append(int(result.num_evaluations.max()))
    # Even the loosest must not step over the data as if they were not there.
    assert errors[0] < 1e-2 and errors[1] < 1e-4 and errors[2] < 1e-5
    assert errors[0] > errors[1] > 3 * errors[2]
    assert evaluations[0] < evaluations[1] < evaluations[2]


def test_rows_are_independent_and_their_evaluations_counted():
    calls = []

    def counting(y, sigma, *conditions):
        assert y.shape == (1, 3) and sigma.shape == (1,)
        jax.debug.callback(lambda: calls.append(1))
        return gaussian(y, sigma, *conditions)

    @jax.jit
    def one(y, conditions):
        return probability_flow_sample(
            counting, y, **RANGE, rtol=1e-6, atol=1e-6, conditions=conditions
        )

    together = run_sample(Y_T, GAUSSIANS)
    for i in (0, 5):
        calls.clear()
        row = one(Y_T[i : i + 1], tuple(value[i : i + 1] for value in GAUSSIANS))
        jax.effects_barrier()
        np.testing.assert_allclose(row.y, together.y[i : i + 1], rtol=1e-5, atol=1e-6)
        assert row.num_evaluations[0] == together.num_evaluations[i] == len(calls)


def test_a_bad_row_is_reported_and_spoils_no_other():
    mean, variance, rotation = GAUSSIANS
    bad = mean.copy()
    bad[3, 1] = np.nan
    result = run_sample(Y_T, (bad, variance, rotation))
    np.testing.assert_array_equal(result.converged, np.arange(8) != 3)
    assert np.isnan(result.y[3]).all() and result.num_evaluations[3] < 1000
    good = run_sample(Y_T, GAUSSIANS)
    np.testing.assert_allclose(np.delete(result.y, 3, 0), np.delete(good.y, 3, 0), rtol=1e-6)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_gaussian_likelihoods_are_exact(trace):
    """One Rademacher probe is exact where the covariance is isotropic; the full trace anywhere."""
    mean, variance, rotation = GAUSSIANS
    probes = None
    conditions = GAUSSIANS
    if trace == "hutchinson":
        conditions = (mean, np.repeat(variance[:, :1], 3, axis=1), rotation)
        probes = np.sign(RNG.standard_normal((64, 8, 3))).astype(np.float32)
    result = run_likelihood(Y_0, probes, conditions)
    assert result.converged.all()
    expected = log_density(Y_0, LOW, *conditions)
    np.testing.assert_allclose(moved_prior(result, conditions), expected, atol=1e-4)
    # The default prior neglects m and c, to the order the docstring states.
    np.testing.assert_allclose(result.log_likelihood, expected, atol=0.05)
    np.testing.assert_allclose(
        result.y_T, quantile_map(Y_0, LOW, HIGH, *conditions), atol=1e-4 * HIGH
    )


def test_hutchinson_is_unbiased_and_noisy():
    """Gaussian probes on one correlated Gaussian: 8 × 64 of them within four standard errors."""
    conditions = tuple(np.repeat(value[:1], 8, axis=0) for value in GAUSSIANS)
    y_0 = np.repeat(Y_0[:1], 8, axis=0)
    probes = RNG.standard_normal((64, 8, 3)).astype(np.float32)
    result = run_likelihood(y_0, probes, conditions)
    got = moved_prior(result, conditions)
    error = got.mean() - log_density(Y_0[:1], LOW, *(value[:1] for value in GAUSSIANS))[0]
    spread = got.std(ddof=1)
    assert spread > 0.01
    assert abs(error) < 4 * spread / np.sqrt(8)


def test_an_image_has_the_density_of_its_sixteen_pixels_with_a_given_prior():
    mean = np.linspace(-0.5, 0.5, 16).reshape(4, 4, 1).astype(np.float32)
    std = 0.3
    y_0 = mean + std * RNG.standard_normal((2, 4, 4, 1)).astype(np.float32)

    def denoise(y, sigma):
        return mean[None] + std**2 / (std**2 + sigma[:, None, None, None] ** 2) * (y - mean[None])

    result = jax.jit(
        lambda y: probability_flow_log_likelihood(
            denoise, y, **RANGE, trace="exact", prior_mean=mean, prior_std=np.hypot(std, HIGH)
        )
    )(y_0)
    total = std**2 + LOW**2
    expected = -0.5 * ((y_0 - mean) ** 2 / total + np.log(2 * np.pi * total)).sum((1, 2, 3))
    np.testing.assert_allclose(result.log_likelihood, expected, rtol=0, atol=3e-4)


WEIGHTS, CENTRES = np.array([0.3, 0.7]), np.array([-0.6, 0.5])


def mixture(y, sigma, std):
    """E[x_0 | y] for scalars [B] from Σ w_k N(μ_k, std²), one std an example."""
    total = (std**2 + sigma**2)[:, None]
    offset = y[:, None] - jnp.asarray(CENTRES, jnp.float32)[None]
    logits = jnp.log(jnp.asarray(WEIGHTS, jnp.float32))[None] - offset**2 / (2 * total)
    means = y[:, None] - sigma[:, None] ** 2 / total * offset
    return jnp.sum(jax.nn.softmax(logits, axis=1) * means, axis=1)


def pixel_gaussian(y, sigma, std):
    return std**2 / (std**2 + sigma**2) * y


@pytest.fixture(scope="module")
def scalar_likelihood():
    def denoise(y, sigma, std, is_mixture):
        return jnp.where(is_mixture, mixture(y, sigma, std), pixel_gaussian(y, sigma, std))

    # The mixture as seen from σ_max: its first two moments are all that is left of it.
    mean = float(WEIGHTS @ CENTRES)
    spread = float(WEIGHTS @ (CENTRES - mean) ** 2)

    @jax.jit
    def run(y, std, is_mixture):
        return probability_flow_log_likelihood(
            denoise,
            y,
            **RANGE,
            trace="exact",
            prior_mean=jnp.where(is_mixture[0], mean, 0.0),
            prior_std=np.hypot(HIGH, np.sqrt(spread)),
            rtol=1e-6,
            atol=1e-6,
            conditions=(std, is_mixture),
        ).log_likelihood

    return run


def test_a_mixture_has_its_density(scalar_likelihood):
    y = np.linspace(-1.2, 1.2, 256).astype(np.float32)
    got = scalar_likelihood(y, np.full(256, 0.2, np.float32), np.ones(256, bool))
    total = 0.2**2 + LOW**2
    parts = np.exp(-((y[:, None] - CENTRES) ** 2) / (2 * total)) / np.sqrt(2 * np.pi * total)
    np.testing.assert_allclose(got, np.log(parts @ WEIGHTS), rtol=0, atol=5e-4)


def test_bits_of_dequantised_pixels_bound_their_entropy(scalar_likelihood):
    """64 neighbouring levels, all as likely: entropy 6 bits. Under the Gaussian of the same
    variance the bound is 6 + ½ log2(2πe/12) bits, the uniform's distance from a Gaussian."""
    pixels = jnp.repeat(dj.from_pixels(np.arange(96, 160, dtype=np.uint8)), 4)
    uniform = jnp.tile((jnp.arange(4) + 0.5) / 4, 64)
    x_0 = dequantize(pixels, uniform)
    width = 64 * 2 / 255
    np.testing.assert_allclose(np.diff(np.sort(x_0)), width / 256, rtol=1e-3)
    std = np.sqrt(width**2 / 12 - LOW**2)
    got = bits_per_dim(
        scalar_likelihood(x_0, np.full(256, std, np.float32), np.zeros(256, bool)), ()
    )
    expected = 6 + 0.5 * np.log2(2 * np.pi * np.e / 12)
    np.testing.assert_allclose(np.mean(got), expected, rtol=0, atol=1e-3)
    assert np.mean(got) > 6


def test_pixels_equally_likely_cost_eight_bits():
    """The uniform density on [-1 - 1/255, 1 + 1/255]^d, where dequantised pixels lie."""
    log_likelihood = -48 * np.log(512 / 255)
    np.testing.assert_allclose(bits_per_dim(log_likelihood, (4, 4, 3)), 8.0, rtol=1e-6)
    np.testing.assert_allclose(
        bits_per_dim(log_likelihood, (4, 4, 3), bin_width=1.0), np.log2(512 / 255), rtol=1e-6
    )
    edges = dequantize(jnp.array([-1.0, 1.0]), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(edges, [-1 - 1 / 255, 1 + 1 / 255], rtol=1e-6)
    assert dj.to_pixels(dequantize(jnp.array([-0.2]), jnp.array([0.999]))) == dj.to_pixels(
        jnp.array([-0.2])
    )


def test_ddim_converges_to_the_flow():
    """Both solve one ODE for a network that is no posterior mean of anything: DDIM at first order,
    so that two grids extrapolate to the flow's answer."""

    def network(y, sigma):
        sigma = sigma[:, None]
        return 0.6 * jnp.tanh(y / (1 + 0.5 * sigma**2)) + 0.1 * jnp.cos(y / (1 + sigma))

    x_T = jnp.linspace(-2, 2, 8)[:, None]

    def ddim(num_steps):
        levels = np.geomspace(LOW, HIGH, num_steps)
        schedule = dj.schedule_from_alpha_bar(1 / (1 + levels**2))
        denoise = denoiser_from_sigma(schedule, network)
        return jax.jit(lambda x: dj.sample(dj.ddim(schedule), denoise, x))(x_T)

    flow = jax.jit(
        lambda y: probability_flow_sample(
            network, y, **RANGE, rtol=1e-6, atol=1e-6, final_denoise=True
        )
    )(np.hypot(1, HIGH) * x_T)
    coarse, fine = ddim(101), ddim(201)
    assert np.abs(fine - flow.y).max() < 0.6 * np.abs(coarse - flow.y).max()
    assert np.abs(coarse - flow.y).max() > 2e-3
    np.testing.assert_allclose(2 * fine - coarse, flow.y, rtol=0, atol=1e-4)


def test_a_discrete_process_in_double_precision():
    """From an ε-network to its samples, to eight digits: N(0, c²) data, σ told by t alone."""
    std = 0.5
    with jax.enable_x64(True):
        schedule = dj.linear_schedule(dtype=jnp.float64)
        low, high = sigma_range(schedule)
        log_sigma = -0.5 * schedule.log_snr

        def apply_fn(x, t):
            sigma = jnp.exp(jnp.interp(t, jnp.arange(1000.0), log_sigma))[:, None]
            return sigma * jnp.hypot(1.0, sigma) * x / (std**2 + sigma**2)

        y_T = high * jnp.array([[1.0], [-0.3]])
        result = probability_flow_sample(
            sigma_denoiser(schedule, apply_fn),
            y_T,
            sigma_min=low,
            sigma_max=high,
            rtol=1e-10,
            atol=1e-10,
        )
        slope = np.sqrt((std**2 + low**2) / (std**2 + high**2))
        assert result.y.dtype == jnp.float64
        np.testing.assert_allclose(result.y, slope * y_T, rtol=1e-8)


LIKELIHOOD = functools.partial(probability_flow_log_likelihood, gaussian, jnp.ones((2, 3)), **RANGE)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda d, y: probability_flow_sample(d, y, sigma_min=1.0, sigma_max=0.5), "sigma_range"),
        (lambda d, y: probability_flow_encode(d, y, sigma_min=0.0, sigma_max=0.5), "sigma_min"),
        (
            lambda d, y: probability_flow_encode(d, jnp.zeros((2, 3), jnp.uint8), **RANGE),
            "from_pixels",
        ),
        (lambda d, y: probability_flow_sample(d, jnp.ones(()), **RANGE), r"\[B"),
        (lambda d, y: probability_flow_sample(d, y, **RANGE, solver=diffrax.Euler()), "adaptive"),
        (lambda d, y: probability_flow_sample(d, y, **RANGE, solver=diffrax.Kvaerno5()), "Dopri5"),
        (
            lambda d, y: probability_flow_sample(lambda y, s: y + jnp.ones((2, 3)), y, **RANGE),
            "conditions",
        ),
        (lambda d, y: LIKELIHOOD(trace="full"), "hutchinson"),
        (lambda d, y: LIKELIHOOD(), "rademacher"),
        (lambda d, y: LIKELIHOOD(probes=jnp.ones((2, 3))), "K >= 1"),
        (lambda d, y: LIKELIHOOD(trace="exact", probes=jnp.ones((1, 2, 3))), "no probes"),
        (lambda d, y: LIKELIHOOD(trace="exact", prior_std=0.0), "prior_std"),
        (lambda d, y: dequantize(y, jnp.ones(2)), "uniform"),
        (lambda d, y: bits_per_dim(y, (2, 3), bin_width=0.0), "2/255"),
    ],
)
def test_bad_calls_are_named(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call(lambda y, sigma: 0.5 * y, jnp.ones((2, 3)))
