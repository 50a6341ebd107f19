"""A DDPM is a score model and an NCSN a diffusion: each does what the other does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ddpm_jax as dj
from ddpm_jax import score
from ddpm_jax.denoisers.scores import denoiser_from_score, noise_levels, score_from_denoiser
from ddpm_jax.denoisers.sigma import sigma_at_timesteps, timesteps_at_sigma
from ddpm_jax.forward import schedule_from_noise_levels
from ddpm_jax.samplers import annealed_langevin
from tests.oracles import GaussianData

SIGMAS = np.geomspace(4.0, 0.02, 60)
LADDER = schedule_from_noise_levels(SIGMAS)
DDPM = dj.linear_schedule(200, 5e-4, 0.1)
MEAN, STD = 0.3, 0.5


def ncsn(y, level):
    """The score of N(m, c²) behind noise σ_level: -(y - m)/(c² + σ²)."""
    sigma = jnp.asarray(SIGMAS, jnp.float32)[level]
    return -(y - MEAN) / (STD**2 + sigma.reshape(sigma.shape + (1,) * (y.ndim - 1)) ** 2)


def test_a_ladder_is_a_process_and_back():
    np.testing.assert_allclose(LADDER.alpha_bar, 1 / (1 + SIGMAS[::-1] ** 2), rtol=1e-6)
    np.testing.assert_allclose(noise_levels(LADDER), SIGMAS, rtol=1e-6)
    np.testing.assert_array_equal(LADDER.timesteps, np.arange(60))
    rising = schedule_from_noise_levels(SIGMAS[::-1])
    np.testing.assert_array_equal(rising.beta, LADDER.beta)
    tiny = schedule_from_noise_levels([1e-4, 1.0])
    np.testing.assert_allclose(tiny.noise_scale[0], 1e-4, rtol=1e-6)
    ratio = (1 + SIGMAS[-2] ** 2) / (1 + SIGMAS[-1] ** 2)
    np.testing.assert_allclose(LADDER.beta[1], 1 - 1 / ratio, rtol=1e-5)


@pytest.mark.parametrize("levels", [[], [[1.0, 0.1]], [1.0, 1.0], [1.0, 0.5, 0.7], [1.0, -0.1]])
def test_what_is_no_ladder_is_refused(levels):
    with pytest.raises(ValueError, match="schedule_from_noise_levels"):
        schedule_from_noise_levels(levels)


def test_an_ncsn_is_the_exact_denoiser_of_its_process():
    exact = GaussianData(MEAN, STD, 1 / (1 + SIGMAS[::-1] ** 2))
    x_t = jnp.linspace(-2, 2, 60).reshape(60, 1) * jnp.ones((1, 3))
    t = jnp.arange(60)
    got = denoiser_from_score(LADDER, ncsn)(x_t, t)
    np.testing.assert_allclose(got, exact.denoise(x_t, t), rtol=2e-5, atol=2e-6)
    assert np.isnan(denoiser_from_score(LADDER, ncsn)(x_t, t + 60)).all()


@pytest.mark.parametrize("schedule", [LADDER, DDPM], ids=["ladder", "DDPM"])
def test_a_denoiser_is_the_score_of_its_noisy_data(schedule):
    alpha_bar = np.asarray(schedule.alpha_bar, np.float64)
    exact = GaussianData(MEAN, STD, alpha_bar)
    T = schedule.num_timesteps
    level = jnp.array([0, T // 2, T - 1])
    variance = STD**2 + (1 / alpha_bar - 1)[T - 1 - np.asarray(level)]
    y = jnp.array([[0.7], [-0.4], [0.2]])
    score_fn = score_from_denoiser(schedule, exact.denoise)
    np.testing.assert_allclose(score_fn(y, level), -(y - MEAN) / variance[:, None], rtol=2e-3)
    back = denoiser_from_score(schedule, score_fn)
    x_t = jnp.asarray(np.sqrt(alpha_bar), jnp.float32)[T - 1 - level][:, None] * y
    t = T - 1 - level
    np.testing.assert_allclose(back(x_t, t), exact.denoise(x_t, t), rtol=1e-4, atol=1e-5)


def drawn(sampler, denoise, count=4000):
    keys = dj.example_keys(jax.random.key(0), jnp.arange(count))
    x_T = dj.initial_noise(keys, (1,))
    run = jax.jit(lambda x, keys: dj.sample(sampler, denoise, x, keys=keys))
    return np.asarray(run(x_T, keys if sampler.stochastic else None)).ravel()


ON_NCSN = {
    "ancestral": lambda: dj.ancestral(LADDER, variance="fixed_small"),
    "DDIM": lambda: dj.ddim(LADDER),
    "Heun": lambda: dj.heun(LADDER),
    "DPM-Solver++": lambda: dj.dpm_solver_pp(LADDER),
}


@pytest.mark.parametrize("name", ON_NCSN)
def test_diffusion_samplers_sample_an_ncsn(name):
    """x_T ~ N(0, 1) has variance (1+σ²) in y, the process's own has c² + σ²: 2 % off at σ = 4."""
    got = drawn(ON_NCSN[name](), denoiser_from_score(LADDER, ncsn))
    # The start's mean is 0 rather than √ᾱ m: what of it is left at the end is c/√(c²+σ²) of m.
    bias = MEAN * STD / np.sqrt(STD**2 + 16)
    assert abs(got.mean() - MEAN) < bias + 5 * STD / np.sqrt(4000)
    np.testing.assert_allclose(got.std(), STD, rtol=0.08)
    assert stats.kstest((got - got.mean()) / got.std(), "norm").pvalue > 1e-3


def test_annealed_langevin_on_a_ddpm_has_the_law_of_its_recursion():
    """On Gaussian data each step is y' = (1-a) y + a m + √ε z, so mean and variance are known."""
    grid = dj.respace(DDPM, dj.karras_timesteps(DDPM, 25))
    exact = GaussianData(MEAN, STD, np.asarray(DDPM.alpha_bar, np.float64))
    rate, K = 0.2, 40
    sampler = annealed_langevin(grid, steps_per_level=K, rate=rate, final_denoise=False)
    got = drawn(sampler, exact.denoise)
    sigmas = np.asarray(noise_levels(grid), np.float64)
    mean, variance = 0.0, 1 + sigmas[0] ** 2
    for sigma in sigmas:
        a = rate * sigma**2 / (2 * (STD**2 + sigma**2))
        for _ in range(K):
            mean = (1 - a) * mean + a * MEAN
            variance = (1 - a) ** 2 * variance + rate * sigma**2
    np.testing.assert_allclose(got.mean(), mean, atol=5 * np.sqrt(variance / 4000))
    np.testing.assert_allclose(got.var(), variance, rtol=5 * np.sqrt(2 / 4000))
    assert stats.kstest((got - mean) / np.sqrt(variance), "norm").pvalue > 1e-3
    # It comes near the data, a little too wide: what slow mixing leaves of the levels before.
    assert abs(mean - MEAN) < 0.01 and STD < np.sqrt(variance) < 1.15 * STD


@pytest.mark.parametrize("final_denoise", [True, False])
def test_the_grid_sampler_and_the_score_rooms_dynamics_are_one(final_denoise):
    """The same noise in, the same chains out: y of one is x/√ᾱ of the other."""
    sigmas, K = np.geomspace(3.0, 0.1, 6), 4
    ladder, rate = schedule_from_noise_levels(sigmas), 0.3

    def score_fn(y, level):
        sigma = jnp.asarray(sigmas, jnp.float32)[level]
        sigma = jnp.broadcast_to(sigma, y.shape[:1])[:, None]
        return -(jnp.tanh(y) + 0.3 * y) / (1 + sigma**2)

    noise = jax.random.normal(jax.random.key(0), (6, K, 5, 3))
    x_T = jax.random.normal(jax.random.key(1), (5, 3))
    sampler = annealed_langevin(ladder, steps_per_level=K, rate=rate, final_denoise=final_denoise)
    on_grid = dj.sample(sampler, denoiser_from_score(ladder, score_fn), x_T, noise=noise)
    chains = score.annealed_langevin_chains(
        score_fn,
        x_T * float(np.hypot(1.0, sigmas[0])),
        jnp.asarray(sigmas, jnp.float32),
        step_size=rate * sigmas[-1] ** 2,
        steps_per_level=K,
        noise=noise,
        final_denoise=final_denoise,
    )
    np.testing.assert_allclose(on_grid, chains.x, rtol=2e-4, atol=2e-5)


def test_one_level_of_langevin_has_the_stationary_variance_of_its_step():
    """y' = (1-a) y + a m + √ε z, a = ε/(2(c²+σ²)), has variance ε/(1-(1-a)²)."""
    sigma, rate = 1.0, 0.6
    one = schedule_from_noise_levels([sigma])
    sampler = annealed_langevin(one, steps_per_level=60, rate=rate, final_denoise=False)
    exact = GaussianData(MEAN, STD, np.array([1 / (1 + sigma**2)]))
    got = drawn(sampler, exact.denoise, count=8000)
    a = rate * sigma**2 / (2 * (STD**2 + sigma**2))
    wanted = rate * sigma**2 / (1 - (1 - a) ** 2)
    # The standard error of a variance is √(2/N) of it.
    np.testing.assert_allclose(got.var(), wanted, rtol=5 * np.sqrt(2 / 8000))
    np.testing.assert_allclose(got.mean(), MEAN, atol=5 * np.sqrt(wanted / 8000))


def test_the_flows_likelihood_of_an_ncsn_is_the_gaussians():
    """log N(y_0; m, c² + σ_min²), up to the prior, which is not quite the flow's law at σ_max."""

    def epsilon(x, t):
        sigma = sigma_at_timesteps(LADDER, t).reshape(-1, 1)
        y = x * jnp.hypot(1.0, sigma)
        return sigma * (y - MEAN) / (STD**2 + sigma**2)

    y_0 = jnp.array([[0.3, -0.2], [0.9, 0.5]])
    sigma_min, sigma_max = dj.sigma_range(LADDER)
    flow = dj.probability_flow_log_likelihood(
        dj.sigma_denoiser(LADDER, epsilon),
        y_0,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        trace="exact",
        prior_mean=MEAN,
        prior_std=float(np.hypot(STD, sigma_max)),
    )
    wanted = stats.norm.logpdf(np.asarray(y_0), MEAN, np.hypot(STD, sigma_min)).sum(1)
    np.testing.assert_allclose(flow.log_likelihood, wanted, atol=2e-4)


def test_sigma_at_timesteps_inverts_the_other_way():
    sigma = jnp.asarray(np.geomspace(0.0201, 3.99, 50), jnp.float32)
    back = sigma_at_timesteps(LADDER, timesteps_at_sigma(LADDER, sigma))
    np.testing.assert_allclose(back, sigma, rtol=1e-4)
    np.testing.assert_allclose(sigma_at_timesteps(LADDER, jnp.arange(60)), SIGMAS[::-1], rtol=1e-5)
    assert np.isnan(sigma_at_timesteps(LADDER, jnp.array([-1, 60]))).all()


@pytest.mark.parametrize("bad", [{"steps_per_level": 0}, {"rate": 0.0}, {"rate": 4.0}])
def test_steps_no_langevin_could_take_are_refused(bad):
    with pytest.raises(ValueError, match="annealed_langevin"):
        annealed_langevin(LADDER, **bad)
