"""Inverse problems with Gaussian data, where p(x_0 | x_t, y) is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.denoisers import dps, pi_gdm
from ddpm_jax.forward import rescale_zero_terminal_snr

SCHEDULE = dj.linear_schedule(100, 1e-3, 0.15)
ALPHA_BAR = np.asarray(SCHEDULE.alpha_bar, np.float64)
rng = np.random.default_rng(0)
# Three measurements of a 2 × 2 event, neither orthogonal nor of one size.
MATRIX = rng.standard_normal((3, 4)) * np.array([[1.0], [0.5], [2.0]])
MEAN, STD, NOISE = 0.3, 0.6, 0.2
T = np.array([0, 20, 60, 99])
X_T = rng.standard_normal((4, 2, 2))
Y = rng.standard_normal((4, 3))


def operator(x):
    return jnp.asarray(MATRIX, x.dtype) @ x.ravel()


def moments(alpha_bar, prior):
    """Gain of x̂_0 in x_t and the covariance of x_0 given x_t [4, 4], for data N(m, prior)."""
    gain = (
        np.sqrt(alpha_bar) * prior @ np.linalg.inv(alpha_bar * prior + (1 - alpha_bar) * np.eye(4))
    )
    return gain, prior - np.sqrt(alpha_bar) * gain @ prior


def denoiser(prior):
    """E[x_0 | x_t] of data N(m, prior), prior [4, 4]."""
    gains = jnp.asarray(np.stack([moments(a, prior)[0] for a in ALPHA_BAR]), jnp.float32)

    def denoise(x_t, t):
        away = x_t.reshape(-1, 4) - SCHEDULE.signal_scale[t][:, None] * MEAN
        return (MEAN + jnp.einsum("bij,bj->bi", gains[t], away)).reshape(x_t.shape)

    return denoise


def truth(prior, uncertain, noise):
    """x̂_0 + Σ_t Aᵀ (A Σ' Aᵀ + σ_y² I)⁻¹ (y - A x̂_0), Σ' = Σ_t if uncertain, else 0, in float64."""
    rows = []
    for x_t, t, y in zip(X_T, T, Y, strict=True):
        gain, covariance = moments(ALPHA_BAR[t], prior)
        x_0_hat = MEAN + gain @ (x_t.ravel() - np.sqrt(ALPHA_BAR[t]) * MEAN)
        inner = uncertain * MATRIX @ covariance @ MATRIX.T + noise**2 * np.eye(3)
        pull = np.linalg.solve(inner, y - MATRIX @ x_0_hat)
        rows.append((x_0_hat + covariance @ MATRIX.T @ pull).reshape(2, 2))
    return np.stack(rows)


CORRELATED = np.cov(rng.standard_normal((4, 12))) * 0.5


@pytest.mark.parametrize("noise", [NOISE, 0.0])
def test_pi_gdm_is_the_exact_conditional_denoiser_of_data_of_one_variance(noise):
    """E[x_0 | x_t, y] for data N(m, c² I), and for any A: r_t² I is then Cov[x_0 | x_t]."""
    prior = STD**2 * np.eye(4)
    guided = pi_gdm(SCHEDULE, denoiser(prior), operator, jnp.float32(Y), noise=noise, data_std=STD)
    got = jax.jit(guided)(jnp.float32(X_T), jnp.asarray(T))
    expected = truth(prior, uncertain=True, noise=noise)
    np.testing.assert_allclose(got, expected, atol=5e-4)
    plain = denoiser(prior)(jnp.float32(X_T), jnp.asarray(T))
    assert np.abs(plain - expected).max() > 0.3


def test_a_constant_in_the_operator_shifts_the_measurement():
    x, t = jnp.float32(X_T), jnp.asarray(T)
    for make in (dps, pi_gdm):
        both = [
            make(SCHEDULE, lambda x, t: 0.5 * x, shifted, jnp.float32(Y) + by, noise=NOISE)(x, t)
            for shifted, by in ((operator, 0.0), (lambda x: operator(x) + 1.5, 1.5))
        ]
        np.testing.assert_allclose(both[0], both[1], rtol=1e-3, atol=1e-3)


def test_pi_gdm_of_correlated_data_takes_r_for_what_is_unknown():
    """With Cov[x_0 | x_t] ≠ r_t² I it is Σ_t Aᵀ (r_t² A Aᵀ + σ_y² I)⁻¹ (y - A x̂_0)."""
    got = pi_gdm(
        SCHEDULE, denoiser(CORRELATED), operator, jnp.float32(Y), noise=NOISE, data_std=STD
    )(jnp.float32(X_T), jnp.asarray(T))
    rows = []
    for x_t, t, y in zip(X_T, T, Y, strict=True):
        gain, covariance = moments(ALPHA_BAR[t], CORRELATED)
        r2 = moments(ALPHA_BAR[t], STD**2 * np.eye(4))[1][0, 0]
        x_0_hat = MEAN + gain @ (x_t.ravel() - np.sqrt(ALPHA_BAR[t]) * MEAN)
        inner = r2 * MATRIX @ MATRIX.T + NOISE**2 * np.eye(3)
        pull = np.linalg.solve(inner, y - MATRIX @ x_0_hat)
        rows.append((x_0_hat + covariance @ MATRIX.T @ pull).reshape(2, 2))
    np.testing.assert_allclose(got, np.stack(rows), atol=5e-4)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_dps_is_bayes_rule_as_if_x_0_were_its_estimate(scale):
    """For any Gaussian data, Σ_t Aᵀ (y - A x̂_0)/σ_y²: exact but for A Σ_t Aᵀ beside σ_y² I."""
    guided = dps(SCHEDULE, denoiser(CORRELATED), operator, jnp.float32(Y), noise=NOISE, scale=scale)
    got = np.asarray(guided(jnp.float32(X_T), jnp.asarray(T)), np.float64)
    plain = np.asarray(denoiser(CORRELATED)(jnp.float32(X_T), jnp.asarray(T)), np.float64)
    full = truth(CORRELATED, uncertain=False, noise=NOISE)
    expected = plain + scale * (full - plain)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-3)


def test_dps_is_exact_where_the_noise_outweighs_what_is_unknown():
    """σ_y² ≫ A Σ_t Aᵀ; and it takes an A that is not linear."""
    guided = dps(SCHEDULE, denoiser(CORRELATED), operator, jnp.float32(Y), noise=60.0)
    got = np.asarray(guided(jnp.float32(X_T), jnp.asarray(T)), np.float64)
    plain = np.asarray(denoiser(CORRELATED)(jnp.float32(X_T), jnp.asarray(T)), np.float64)
    exact = truth(CORRELATED, uncertain=True, noise=60.0)
    np.testing.assert_allclose((got - plain)[1:], (exact - plain)[1:], rtol=0.02, atol=1e-5)
    bent = dps(SCHEDULE, lambda x, t: 0.5 * x, lambda x: jnp.sum(x**2), 1.0, noise=1.0)
    x, t = jnp.float32(X_T), jnp.asarray(T)
    squares = 0.25 * np.sum(X_T**2, axis=(1, 2))
    factor = ((1 - ALPHA_BAR) / np.sqrt(ALPHA_BAR))[T] * (1 - squares) * 0.5
    expected = 0.5 * X_T + factor[:, None, None] * X_T
    np.testing.assert_allclose(bent(x, t), expected, rtol=1e-3, atol=1e-4)


def test_samples_with_pi_gdm_have_the_posterior_of_the_data():
    """Mean and covariance of x_0 given y, for data N(m, c² I), with an ancestral sampler."""
    prior, count = STD**2 * np.eye(4), 4096
    gain = prior @ MATRIX.T @ np.linalg.inv(MATRIX @ prior @ MATRIX.T + NOISE**2 * np.eye(3))
    mean = MEAN + gain @ (Y[0] - MATRIX @ np.full(4, MEAN))
    covariance = prior - gain @ MATRIX @ prior
    guided = pi_gdm(
        SCHEDULE, denoiser(prior), operator, jnp.float32(Y[0]), noise=NOISE, data_std=STD
    )
    keys = dj.example_keys(jax.random.key(0), jnp.arange(count))
    x_T = dj.initial_noise(keys, (2, 2))
    sampler = dj.ancestral(SCHEDULE, variance="fixed_small")
    got = jax.jit(lambda x, k: dj.sample(sampler, guided, x, keys=k))(x_T, keys).reshape(count, 4)
    got = np.asarray(got, np.float64)
    # Standard errors are 0.01 and 0.006 at most; 100 steps narrow the widest direction a little.
    np.testing.assert_allclose(got.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(got.T), covariance, atol=0.03)
    assert np.abs(mean - MEAN).max() > 0.3


@pytest.mark.parametrize("make", [dps, pi_gdm])
def test_where_nothing_is_left_of_x_0_a_measurement_changes_nothing(make):
    schedule = rescale_zero_terminal_snr(SCHEDULE)

    def denoise(x, t):
        return 0.3 + schedule.signal_scale[t][:, None, None] * x

    guided = make(schedule, denoise, operator, jnp.float32(Y), noise=0.5)
    got = guided(jnp.float32(X_T), jnp.full(4, 99))
    np.testing.assert_array_equal(got, np.full((4, 2, 2), np.float32(0.3)))


OTHER = dj.make_denoiser(dj.linear_schedule(100, 0.1, 0.2), lambda x, t: 0.5 * x)
HALF = {"schedule": SCHEDULE, "denoise": lambda x, t: 0.5 * x, "operator": operator}


@pytest.mark.parametrize(
    "make,given,error,words",
    [
        (dps, {"noise": 0.0}, ValueError, r"dps needs noise in \(0, inf\)"),
        (dps, {"noise": float("nan")}, ValueError, r"dps needs noise in \(0, inf\)"),
        (dps, {"noise": 1.0, "scale": -1.0}, ValueError, r"dps needs scale in \[0, inf\)"),
        (pi_gdm, {"noise": -1.0}, ValueError, r"pi_gdm needs noise in \[0, inf\)"),
        (pi_gdm, {"data_std": 0.0}, ValueError, r"pi_gdm needs data_std in \(0, inf\)"),
        (
            pi_gdm,
            {"operator": jnp.sin, "measured": X_T},
            TypeError,
            "pi_gdm needs a linear operator",
        ),
        (pi_gdm, {"operator": lambda x: x * x, "measured": X_T}, TypeError, "linear operator"),
        (pi_gdm, {"measured": Y[:2]}, ValueError, "pi_gdm needs measurements of"),
        (dps, {"measured": Y[:, :2], "noise": 1.0}, ValueError, "dps needs measurements of"),
        (dps, {"noise": 1.0, "scale": np.inf}, ValueError, "dps needs scale in"),
        (dps, {"noise": np.inf}, ValueError, "dps needs noise in"),
        (pi_gdm, {"data_std": np.inf}, ValueError, "pi_gdm needs data_std in"),
        (pi_gdm, {"noise": np.inf}, ValueError, "pi_gdm needs noise in"),
        *(
            (make, {"noise": 1.0} | wrong, error, f"{make.__name__}(:| needs) {words}")
            for make in (dps, pi_gdm)
            for wrong, error, words in (
                ({"measured": np.full(3, np.nan)}, ValueError, "finite measured"),
                ({"operator": lambda x: (x, x)}, TypeError, "an operator that returns one"),
                ({"operator": lambda x: None}, TypeError, "an operator that returns one"),
                ({"operator": lambda x: x.astype(int)}, TypeError, "an operator that returns one"),
                ({"operator": jnp.fft.fft}, TypeError, r"an operator .*z\.real, z\.imag"),
                ({"denoise": OTHER}, ValueError, r"at timestep \d+ the grid has"),
            )
        ),
    ],
)
def test_bad_values_are_named(make, given, error, words):
    arguments = HALF | {"measured": Y} | given
    with pytest.raises(error, match=words):
        make(**arguments)(jnp.float32(X_T), jnp.asarray(T))


@pytest.mark.parametrize("make", [dps, pi_gdm])
def test_a_learned_variance_stays_the_networks(make):
    x, t = jnp.float32(X_T), jnp.asarray(T)

    def denoise(x, t):
        return dj.Denoised(0.5 * x, jnp.sin(x))

    plain = make(SCHEDULE, lambda x, t: 0.5 * x, operator, jnp.float32(Y), noise=NOISE)(x, t)
    guided = make(SCHEDULE, denoise, operator, jnp.float32(Y), noise=NOISE)(x, t)
    np.testing.assert_array_equal(guided.x_0, plain)
    np.testing.assert_array_equal(guided.variance_output, jnp.sin(x))
