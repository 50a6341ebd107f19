"""The best reverse variances against the bound they minimise, and against Bao et al.'s theorem."""

import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.denoisers.optimal_variance import optimal_log_variance, x_0_mse_from_epsilon
from ddpm_jax.likelihood.bound import bound_term
from tests.oracles import GaussianBound, GaussianData, Tables

T, MEAN, STD = 1000, 0.2, 0.5
BETA = np.linspace(1e-4, 0.02, T)
SCHEDULE, TRUTH = dj.linear_schedule(), Tables(BETA)
DATA = GaussianData(MEAN, STD, TRUTH.alpha_bar)
FULL = GaussianBound(MEAN, STD, TRUTH)
GRIDS = [np.arange(T), dj.spaced_timesteps(T, 10), dj.spaced_timesteps(T, 50, "quadratic")]
grids = pytest.mark.parametrize("steps", GRIDS, ids=["1000", "10", "50 quadratic"])


def tables_of(steps):
    alpha_bar = TRUTH.alpha_bar[steps]
    return Tables(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))


@grids
def test_it_is_the_variance_of_the_step_back(steps):
    """For Gaussian data q(x_{t-1} | x_t) is known, and joint with it: Var(x_s) - Cov²/Var(x_t)."""
    a = TRUTH.alpha_bar[steps]
    before = np.append(1.0, a[:-1])
    var_t, var_s = a * STD**2 + 1 - a, before * STD**2 + 1 - before
    expected = var_s - (a / before) * var_s**2 / var_t
    table = optimal_log_variance(dj.respace(SCHEDULE, steps), FULL.mmse)
    np.testing.assert_allclose(np.exp(table), expected, rtol=1e-5)
    assert table.shape == (len(steps),) and table.dtype == jnp.float32


@grids
def test_it_is_theorem_1_of_bao_et_al(steps):
    """λ² + (√(β̄_n/α_n) - √(β̄_{n-1} - λ²))² (1 - β̄_n E‖∇log q_n‖²/d), λ² = β̃, β̄ = 1-ᾱ."""
    tables = tables_of(steps)
    noise, before = 1 - tables.alpha_bar, 1 - tables.alpha_bar_prev
    # The score of N(√ᾱ m, v) is -(x - √ᾱ m)/v, its mean square 1/v.
    score = 1 / (tables.alpha_bar * STD**2 + noise)
    lam = tables.posterior_variance
    gain = (np.sqrt(noise / (1 - tables.beta)) - np.sqrt(np.maximum(before - lam, 0))) ** 2
    table = optimal_log_variance(dj.respace(SCHEDULE, steps), FULL.mmse)
    np.testing.assert_allclose(np.exp(table), lam + gain * (1 - noise * score), rtol=1e-5)
    # And from Γ_n = β̄_n E‖∇log q_n‖²/d, as the estimator has it.
    full_noise = 1 - TRUTH.alpha_bar
    gamma = full_noise / (TRUTH.alpha_bar * STD**2 + full_noise)
    mse = x_0_mse_from_epsilon(SCHEDULE, gamma)
    np.testing.assert_allclose(mse, FULL.mmse, rtol=1e-5)
    np.testing.assert_allclose(
        optimal_log_variance(dj.respace(SCHEDULE, steps), mse), table, atol=1e-5
    )


@grids
def test_no_other_table_makes_the_bound_smaller(steps):
    """The closed form of the terms has its minimum there, step by step."""
    expected = GaussianBound(MEAN, STD, tables_of(steps))
    table = np.asarray(optimal_log_variance(dj.respace(SCHEDULE, steps), FULL.mmse), np.float64)
    least = expected.terms(np.exp(table))
    for shift in (-0.02, 0.02, -1.0, 1.0):
        assert (expected.terms(np.exp(table + shift)) > least).all()
    slope = (expected.terms(np.exp(table + 1e-3)) - expected.terms(np.exp(table - 1e-3))) / 2e-3
    np.testing.assert_allclose(slope, 0.0, atol=2e-6)


def test_the_measured_error_gives_the_measured_minimum():
    """A denoiser that is wrong: with its own mean squared error, on the very data it was measured
    on, the mean of `bound_term` is least, in each step apart."""
    rng = np.random.default_rng(0)
    grid = dj.respace(SCHEDULE, [20, 300, 700])
    x_0 = jnp.asarray(-1 + 2 / 255 * rng.integers(90, 200, (3, 4000)), jnp.float32)
    noise = jnp.asarray(rng.standard_normal(x_0.shape), jnp.float32)
    t = jnp.arange(3)
    x_t = dj.q_sample(grid, x_0, t, noise)
    x_0_hat = 0.5 * x_t
    mse = np.full(T, np.nan)
    mse[[20, 300, 700]] = np.square(x_0 - x_0_hat).mean(1)
    table = optimal_log_variance(grid, np.nan_to_num(mse))

    def terms(table):
        reverse = dj.p_mean_variance(
            grid, x_0_hat, x_t, t, target="x_0", variance=table, clip=False
        )
        return np.asarray(bound_term(grid, reverse, x_0, x_t, t))

    least = terms(table)
    for shift in (-0.05, 0.05):
        assert (terms(table + shift) > least).all()
    # A variance taken for its logarithm is dear.
    assert (terms(jnp.exp(table))[1:] > 1.2 * least[1:]).all()


@pytest.mark.parametrize("num_steps", [4, 10, 100])
def test_few_ancestral_steps_keep_the_variance_of_the_data(num_steps):
    """x_t = A x_{t+1} + σ z, propagated: with the optimal table the marginals are exact on any
    grid; fixed_small falls short, fixed_large overshoots."""
    steps = dj.spaced_timesteps(T, num_steps)
    grid = dj.respace(SCHEDULE, steps)
    expected = GaussianBound(MEAN, STD, tables_of(steps))
    alpha_bar = TRUTH.alpha_bar[steps]
    marginals = alpha_bar * STD**2 + 1 - alpha_bar

    def spread(variance):
        """Variances of x_t, from x_T of the true one: the step's slope and noise, by probing."""
        sampler = dj.ancestral(grid, variance=variance)
        variance = marginals[-1]
        found = [variance]
        x, noise = jnp.array([[0.0], [1.0], [0.0]]), jnp.array([[0.0], [0.0], [1.0]])
        for t in range(num_steps - 1, -1, -1):
            x_s = sampler.step(DATA.denoise, x, jnp.full(3, t), noise, ()).x
            at = np.asarray(x_s, np.float64)[:, 0]
            variance = (at[1] - at[0]) ** 2 * variance + (at[2] - at[0]) ** 2
            found.append(variance)
        return np.array(found)[::-1]

    best = spread(optimal_log_variance(grid, FULL.mmse))
    np.testing.assert_allclose(best[1:], marginals, rtol=1e-4)
    # The last step adds no noise: what x_0 has is the variance of E[x_0 | x_1].
    np.testing.assert_allclose(best[0], STD**2 - expected.mmse[0], rtol=1e-4)
    if num_steps <= 10:
        assert spread("fixed_small")[1] < 0.98 * marginals[0]
        assert spread("fixed_large")[1] > 1.02 * marginals[0]


def test_the_first_entry_is_the_decoders():
    """β̃_0 = 0 and μ̃_0 = x̂_0: what is left is the error of x̂_0 itself."""
    table = optimal_log_variance(SCHEDULE, np.full(T, 0.01))
    np.testing.assert_allclose(np.exp(table[0]), 0.01, rtol=1e-5)
    perfect = optimal_log_variance(SCHEDULE, np.zeros(T))
    np.testing.assert_allclose(perfect[1:], TRUTH.log_variance[1:], rtol=1e-5)
    assert np.isfinite(perfect).all()


def test_an_overestimated_moment_is_capped():
    gamma = np.ones(T)
    gamma[3] = 1.2
    np.testing.assert_array_equal(x_0_mse_from_epsilon(SCHEDULE, gamma), np.zeros(T))


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: optimal_log_variance(SCHEDULE, np.ones(999)), "steps 0..999"),
        (lambda: optimal_log_variance(SCHEDULE, np.ones((1000, 2))), "shape"),
        (lambda: optimal_log_variance(SCHEDULE, np.log(FULL.mmse)), "not their logarithms"),
        (lambda: optimal_log_variance(SCHEDULE, np.full(1000, np.nan)), "got nan for step 0"),
        (lambda: x_0_mse_from_epsilon(SCHEDULE, np.ones(10)), "each of 1000"),
        (lambda: x_0_mse_from_epsilon(dj.jsd_schedule(5), np.ones(5)), "step 4"),
    ],
)
def test_bad_tables_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
