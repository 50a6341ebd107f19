import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from tests.oracles import GaussianData, Tables

FULL = dj.linear_schedule()
TRUTH = Tables(np.linspace(1e-4, 0.02, 1000))
DATA = GaussianData(0.25, 0.4, TRUTH.alpha_bar)


def toy_denoise(x_t, t):
    """A synthetic network, smooth in x and t, as x̂_0."""
    return jnp.tanh(x_t) * (0.9 - 0.0005 * t.astype(jnp.float32)[:, None])


def toy_denoise_64(x_t, t):
    return np.tanh(x_t) * (0.9 - 0.0005 * t)


@pytest.mark.parametrize("num_steps", [1000, 100, 50])
def test_ddim_equals_a_float64_run(num_steps):
    """Song et al. 2020, Eq. 12 with σ = 0, step by step in float64."""
    steps = dj.spaced_timesteps(1000, num_steps, "leading")
    x_T = np.random.default_rng(0).standard_normal((3, 5))
    x = x_T.copy()
    for i in range(num_steps - 1, -1, -1):
        a = TRUTH.alpha_bar[steps[i]]
        a_prev = TRUTH.alpha_bar[steps[i - 1]] if i else 1.0
        x_0_hat = toy_denoise_64(x, steps[i])
        epsilon = (x - np.sqrt(a) * x_0_hat) / np.sqrt(1 - a)
        x = np.sqrt(a_prev) * x_0_hat + np.sqrt(1 - a_prev) * epsilon
    got = dj.sample(dj.ddim(dj.respace(FULL, steps)), toy_denoise, jnp.asarray(x_T, jnp.float32))
    np.testing.assert_allclose(got, x, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_ancestral_with_given_noise_equals_a_float64_run(variance):
    """Ho et al. 2020, Algorithm 2."""
    steps = dj.spaced_timesteps(1000, 50, "fractional")
    alpha_bar = TRUTH.alpha_bar[steps]
    tables = Tables(1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]]))
    rng = np.random.default_rng(0)
    x_T, noise = rng.standard_normal((3, 5)), rng.standard_normal((50, 3, 5))
    x = x_T.copy()
    for z, i in zip(noise, range(49, -1, -1), strict=True):
        x_0_hat = toy_denoise_64(x, steps[i])
        sigma2 = tables.beta[i] if variance == "fixed_large" else tables.posterior_variance[i]
        x = tables.coef_x_0[i] * x_0_hat + tables.coef_x_t[i] * x + (i > 0) * np.sqrt(sigma2) * z
    got = dj.sample(
        dj.ancestral(dj.respace(FULL, steps), variance=variance),
        toy_denoise,
        jnp.asarray(x_T, jnp.float32),
        noise=jnp.asarray(noise, jnp.float32),
    )
    np.testing.assert_allclose(got, x, rtol=1e-5, atol=3e-6)


def test_ddim_with_eta_one_is_ancestral_with_the_posterior_variance():
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, 40))
    keys = dj.example_keys(jax.random.key(0), np.arange(4))
    x_T = dj.initial_noise(keys, (6,))
    one = dj.sample(dj.ddim(grid, eta=1.0), toy_denoise, x_T, keys=keys)
    other = dj.sample(dj.ancestral(grid, variance="fixed_small"), toy_denoise, x_T, keys=keys)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_learned_variance_of_the_extremes_equals_the_fixed_ones():
    """Range output 1 means β_t and -1 means β̃_t, on the respaced grid."""
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, 20))
    keys = dj.example_keys(jax.random.key(1), np.arange(3))
    x_T = dj.initial_noise(keys, (6,))
    for value, fixed in [(1.0, "fixed_large"), (-1.0, "fixed_small")]:

        def denoise(x, t, value=value):
            return dj.Denoised(toy_denoise(x, t), jnp.full_like(x, value))

        learned = dj.sample(dj.ancestral(grid, variance="learned_range"), denoise, x_T, keys=keys)
        exact = dj.sample(dj.ancestral(grid, variance=fixed), toy_denoise, x_T, keys=keys)
        np.testing.assert_allclose(learned, exact, rtol=1e-4, atol=1e-5)


def test_ddim_converges_to_the_ode_at_first_order():
    """For Gaussian data E[x_0|x_t] is exact, so only the solver errs: halving the steps doubles the
    error."""
    x_T = jnp.linspace(-2, 2, 9)[:, None]
    exact = DATA.ode_solution(np.asarray(x_T, np.float64), 999)

    def error(num_steps):
        grid = dj.respace(FULL, dj.spaced_timesteps(1000, num_steps, "trailing"))
        return np.abs(np.asarray(dj.sample(dj.ddim(grid), DATA.denoise, x_T)) - exact).max()

    order = np.log2(error(25) / error(100)) / 2
    np.testing.assert_allclose(order, 1.0, atol=0.15)


@pytest.mark.parametrize(
    "make,num_steps",
    [
        (lambda s: dj.ancestral(s, variance="fixed_small"), 1000),
        (lambda s: dj.ancestral(s, variance="fixed_large"), 1000),
        (lambda s: dj.ddim(s), 100),
        (lambda s: dj.ddim(s, eta=0.5), 200),
    ],
)
def test_samples_have_the_moments_of_the_data(make, num_steps):
    sampler = make(dj.respace(FULL, dj.spaced_timesteps(1000, num_steps, "trailing")))
    keys = dj.example_keys(jax.random.key(2), np.arange(64))
    x_T = dj.initial_noise(keys, (64,))
    got = np.asarray(jax.jit(lambda x: dj.sample(sampler, DATA.denoise, x, keys=keys))(x_T))
    # 4,096 draws: four standard errors of a mean and of a standard deviation.
    np.testing.assert_allclose(got.mean(), DATA.mean, atol=4 * DATA.std / 64)
    np.testing.assert_allclose(got.std(), DATA.std, atol=4 * DATA.std / 64 / np.sqrt(2) + 0.004)


def test_no_noise_enters_at_the_last_step():
    one = dj.respace(FULL, [0])
    for sampler in (dj.ancestral(one), dj.ddim(one, eta=1.0)):
        noise = 100 * jnp.ones((1, 2, 3))
        got = dj.sample(sampler, toy_denoise, jnp.ones((2, 3)), noise=noise)
        np.testing.assert_allclose(got, toy_denoise(jnp.ones((2, 3)), jnp.zeros(2)), rtol=1e-5)


def test_trajectory_contains_the_sample_and_its_way():
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, 10))
    sampler = dj.ancestral(grid)
    keys = dj.example_keys(jax.random.key(0), np.arange(2))
    x_T = dj.initial_noise(keys, (4,))
    x_0, way = dj.sample_trajectory(sampler, toy_denoise, x_T, keys=keys)
    assert way.x.shape == (11, 2, 4) and way.x_0_hat.shape == (10, 2, 4)
    np.testing.assert_array_equal(way.x[0], x_T)
    np.testing.assert_array_equal(way.x[-1], x_0)
    np.testing.assert_allclose(x_0, dj.sample(sampler, toy_denoise, x_T, keys=keys), rtol=1e-6)
    for i in range(10):
        t = jnp.full(2, grid.timesteps[9 - i])
        np.testing.assert_allclose(way.x_0_hat[i], toy_denoise(way.x[i], t), rtol=1e-5, atol=1e-6)


def test_an_image_is_the_same_in_any_batch():
    sampler = dj.ancestral(dj.respace(FULL, dj.spaced_timesteps(1000, 10)))

    def run(index):
        keys = dj.example_keys(jax.random.key(7), index)
        return dj.sample(sampler, toy_denoise, dj.initial_noise(keys, (4,)), keys=keys)

    whole = run(np.arange(6))
    np.testing.assert_allclose(run(np.array([4])), whole[4:5], rtol=1e-6)
    assert np.unique(np.round(np.asarray(whole), 4), axis=0).shape[0] == 6


def test_sampling_in_parts_is_sampling():
    sampler = dj.ancestral(dj.respace(FULL, dj.spaced_timesteps(1000, 12)))
    keys = dj.example_keys(jax.random.key(0), np.arange(2))
    x = x_T = dj.initial_noise(keys, (4,))
    state = sampler.init(x)
    for part in np.split(np.asarray(dj.samplers.grid_steps(sampler)), 3):
        x, state, _ = dj.samplers.advance(sampler, toy_denoise, x, state, part, keys=keys)
    np.testing.assert_allclose(x, dj.sample(sampler, toy_denoise, x_T, keys=keys), rtol=1e-6)


def test_the_network_is_traced_once():
    calls = []

    def denoise(x, t):
        calls.append(1)
        return toy_denoise(x, t)

    sampler = dj.ddim(dj.respace(FULL, dj.spaced_timesteps(1000, 50)))
    jax.jit(lambda x: dj.sample(sampler, denoise, x))(jnp.ones((2, 4)))
    assert len(calls) == 1


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda x: dj.sample(dj.ancestral(FULL), toy_denoise, x), "keys"),
        (
            lambda x: dj.sample(dj.ancestral(FULL), toy_denoise, x, noise=jnp.zeros((3, 2, 4))),
            "num_steps",
        ),
        (lambda x: dj.ddim(FULL, eta=1.5), "eta"),
        (lambda x: dj.ancestral(FULL, variance="small"), "fixed_small"),
        (
            lambda x: dj.sample(
                dj.ancestral(FULL, variance="learned"),
                toy_denoise,
                x,
                keys=jax.random.split(jax.random.key(0), 2),
            ),
            "x̂_0 alone",
        ),
    ],
)
def test_bad_calls_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(jnp.ones((2, 4)))
