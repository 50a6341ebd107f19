import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.denoisers.sigma import (
    denoiser_from_sigma,
    sigma_denoiser,
    sigma_range,
    timesteps_at_sigma,
)
from tests.oracles import GaussianData, Tables

FULL = dj.linear_schedule()
TRUTH = Tables(np.linspace(1e-4, 0.02, 1000))
SIGMA = np.sqrt((1 - TRUTH.alpha_bar) / TRUTH.alpha_bar)
STEPS = np.array([0, 1, 37, 500, 998, 999])
TARGETS = ["epsilon", "x_0", "v", "score"]


def answer(x_0, epsilon, sigma, target):
    """What a perfect network says, in float64, from ᾱ = 1/(1+σ²)."""
    signal, noise = 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2)
    return {
        "epsilon": epsilon,
        "x_0": x_0,
        "v": signal * epsilon - noise * x_0,
        "score": -epsilon / noise,
    }[target]


def test_the_range_is_that_of_the_table():
    np.testing.assert_allclose(sigma_range(FULL), SIGMA[[0, -1]], rtol=1e-6)


def test_fractional_steps_meet_the_table_and_are_linear_in_log_sigma_between():
    at = timesteps_at_sigma(FULL, SIGMA.astype(np.float32))
    np.testing.assert_allclose(at, np.arange(1000), atol=2e-4)
    between = np.exp(0.75 * np.log(SIGMA[:-1]) + 0.25 * np.log(SIGMA[1:]))
    np.testing.assert_allclose(
        timesteps_at_sigma(FULL, between), np.arange(999) + 0.25, rtol=0, atol=3e-4
    )
    fine = np.asarray(timesteps_at_sigma(FULL, np.geomspace(SIGMA[0], SIGMA[-1], 20_001)))
    assert (np.diff(fine) >= 0).all() and np.isfinite(fine).all()


def test_a_respaced_process_is_fed_the_numbers_of_the_full_one():
    grid = dj.respace(FULL, STEPS)
    at = timesteps_at_sigma(grid, SIGMA[STEPS])
    np.testing.assert_allclose(at, STEPS, atol=2e-4)


def test_rounding_stays_in_the_range_and_other_levels_do_not():
    low, high = sigma_range(FULL)
    at = timesteps_at_sigma(FULL, np.array([low * (1 - 2e-6), high * (1 + 2e-6)]))
    np.testing.assert_array_equal(at, [0, 999])
    outside = np.array([0.0, low * 0.99, high * 1.01, np.inf, np.nan])
    assert np.isnan(timesteps_at_sigma(FULL, outside)).all()
    # Also where the network does not look at t.
    denoise = sigma_denoiser(FULL, lambda x, t: x, clip=True)
    got = denoise(jnp.ones((3, 2)), jnp.array([low * 0.9, 1.0, high * 1.1]))
    np.testing.assert_array_equal(np.isnan(got).all(axis=1), [True, False, True])


@pytest.mark.parametrize("target", TARGETS)
def test_at_the_table_it_is_make_denoiser(target):
    rng = np.random.default_rng(0)
    y = (SIGMA[STEPS][:, None] * rng.standard_normal((6, 4))).astype(np.float32)

    def network(x, t):
        t = jnp.asarray(t, jnp.float32)[:, None]
        return jnp.sin(3 * x + 0.002 * t)

    signal = np.sqrt(TRUTH.alpha_bar[STEPS])[:, None]
    x_t = jnp.asarray(signal * y, jnp.float32)
    grid = dj.make_denoiser(FULL, network, target=target, clip=False)(x_t, jnp.asarray(STEPS))
    got = sigma_denoiser(FULL, network, target=target)(y, SIGMA[STEPS].astype(np.float32))
    # ε and score multiply by σ up to 157: compare in units of it.
    scale = np.maximum(SIGMA[STEPS], 1)[:, None]
    np.testing.assert_allclose(got / scale, grid / scale, atol=3e-6)
    clipped = sigma_denoiser(FULL, network, target=target, clip=True)(y, jnp.asarray(SIGMA[STEPS]))
    np.testing.assert_array_equal(clipped, np.clip(got, -1, 1))


@pytest.mark.parametrize("target", TARGETS)
def test_a_perfect_network_returns_the_data_at_any_level(target):
    """Off the grid too, the output is converted with ᾱ(σ), and x has unit variance."""
    rng = np.random.default_rng(1)
    sigma = np.geomspace(*sigma_range(FULL), 11)
    x_0 = rng.uniform(-1, 1, (11, 50))
    epsilon = rng.standard_normal((11, 50))
    y = x_0 + sigma[:, None] * epsilon

    def network(x, t):
        np.testing.assert_allclose(x, y / np.sqrt(1 + sigma[:, None] ** 2), rtol=2e-6)
        return jnp.asarray(answer(x_0, epsilon, sigma[:, None], target), jnp.float32)

    got = sigma_denoiser(FULL, network, target=target)(
        jnp.asarray(y, jnp.float32), jnp.asarray(sigma, jnp.float32)
    )
    # y and ε hold σ ε to half a unit in the last place: nothing better than 1e-7 σ can come of it.
    error = np.abs(got - x_0).max(axis=1)
    floor = 1e-6 if target == "x_0" else 1e-6 * np.maximum(sigma, 1)
    assert (error < floor).all(), error / floor


def test_a_learned_variance_is_left_out():
    def network(x, t):
        return jnp.concatenate([0.3 * x, 100 + x], axis=-1)

    y = jnp.linspace(-2, 2, 12).reshape(2, 2, 3)
    sigma = jnp.array([0.5, 2.0])
    both = sigma_denoiser(FULL, network, variance="learned_range")(y, sigma)
    alone = sigma_denoiser(FULL, lambda x, t: 0.3 * x)(y, sigma)
    np.testing.assert_array_equal(both, alone)
    with pytest.raises(ValueError, match="out_channels = 2C"):
        sigma_denoiser(FULL, network)(y, sigma)


def test_there_and_back_is_the_same_denoiser():
    def network(x, t):
        return jnp.tanh(x) * (0.9 - 0.0005 * jnp.asarray(t, jnp.float32)[:, None])

    x_t = jnp.asarray(np.random.default_rng(2).standard_normal((6, 5)), jnp.float32)
    t = jnp.asarray(STEPS)
    there = dj.make_denoiser(FULL, network, target="v", clip=False)
    back = jax.jit(denoiser_from_sigma(FULL, sigma_denoiser(FULL, network, target="v")))
    np.testing.assert_allclose(back(x_t, t), there(x_t, t), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(back(x_t, 37), there(x_t, jnp.full(6, 37)), rtol=1e-5, atol=1e-6)
    rows = [back(x_t[i][None], t[i][None]) for i in range(6)]
    np.testing.assert_allclose(jnp.concatenate(rows), back(x_t, t), rtol=1e-6, atol=1e-7)


def test_a_model_in_sigma_runs_in_a_grid_sampler():
    """The exact denoiser of Gaussian data in σ, walked by DDIM, ends where the ODE does."""
    data = GaussianData(0.25, 0.4, TRUTH.alpha_bar)

    def model(y, sigma):
        gain = data.std**2 / (data.std**2 + sigma[:, None] ** 2)
        return data.mean + gain * (y - data.mean)

    x_T = jnp.linspace(-2, 2, 9)[:, None]
    got = dj.sample(dj.ddim(FULL), denoiser_from_sigma(FULL, model), x_T)
    same = dj.sample(dj.ddim(FULL), data.denoise, x_T)
    np.testing.assert_allclose(got, same, atol=2e-5)
    np.testing.assert_allclose(got, data.ode_solution(x_T, 999), atol=0.01)


def test_steps_that_do_not_exist_and_infinite_sigma_give_nan():
    schedule = dj.jsd_schedule(10)
    denoise = denoiser_from_sigma(schedule, lambda y, sigma: jnp.zeros_like(y))
    got = denoise(jnp.ones((4, 2)), jnp.array([0, 8, 9, 10]))
    np.testing.assert_array_equal(np.isnan(got).all(axis=1), [False, False, True, True])
    # ᾱ_8 = 1/10 is the last level with a finite σ = 3.
    at = timesteps_at_sigma(schedule, np.array([1.0, 3.0, 3.5, np.inf]))
    np.testing.assert_allclose(at, [4.0, 8.0, np.nan, np.nan], atol=1e-5)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: sigma_range(dj.jsd_schedule(10)), "respace"),
        (lambda: sigma_denoiser(FULL, lambda x, t: x, target="noise"), "epsilon"),
        (lambda: sigma_denoiser(FULL, lambda x, t: x, target="previous_mean"), "make_denoiser"),
        (lambda: sigma_denoiser(FULL, lambda x, t: x, variance="small"), "fixed_small"),
        (lambda: sigma_denoiser(FULL, lambda x, t: x)(jnp.ones((2, 3)), jnp.ones(3)), "sigma"),
        (
            lambda: denoiser_from_sigma(FULL, lambda y, s: y)(jnp.ones((2, 3)), jnp.zeros(3, int)),
            "denoiser_from_sigma",
        ),
    ],
)
def test_bad_calls_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_double_precision_gains_its_digits():
    with jax.enable_x64(True):
        schedule = dj.linear_schedule(dtype=jnp.float64)
        np.testing.assert_allclose(
            timesteps_at_sigma(schedule, SIGMA), np.arange(1000), rtol=0, atol=1e-9
        )
        sigma = np.array([SIGMA[0], SIGMA[-1]])
        epsilon = np.array([[1.0], [-2.0]])
        denoise = sigma_denoiser(schedule, lambda x, t: jnp.asarray(epsilon))
        got = denoise(jnp.asarray(0.5 + sigma[:, None] * epsilon), jnp.asarray(sigma))
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, 0.5, rtol=0, atol=1e-12)
        # Single precision in, single precision out.
        single = denoise(jnp.ones((2, 1), jnp.float32), jnp.asarray(sigma))
        assert single.dtype == jnp.float32
