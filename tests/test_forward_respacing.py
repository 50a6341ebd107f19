"""Zero terminal SNR against Lin et al. 2023, Algorithm 1, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.forward import rescale_zero_terminal_snr
from tests.oracles import GaussianData, Tables

FAMILIES = {
    "linear": dj.linear_schedule(),
    "linear 50": dj.linear_schedule(50, 0.002, 0.4),
    "constant": dj.constant_schedule(300, 0.01),
    "quadratic": dj.quadratic_schedule(),
    "warmup10": dj.warmup_schedule(warmup_fraction=0.1),
    "sigmoid": dj.sigmoid_schedule(),
    "cosine": dj.cosine_schedule(),
    "jsd": dj.jsd_schedule(),
    "two steps": dj.schedule_from_beta([0.1, 0.5]),
    "respaced": dj.respace(dj.linear_schedule(), dj.spaced_timesteps(1000, 25)),
}
COSINE = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
BETAS = {
    "linear": np.linspace(1e-4, 0.02, 1000),
    "linear 50": np.linspace(0.002, 0.4, 50),
    "constant": np.full(300, 0.01),
    "quadratic": np.linspace(1e-2, np.sqrt(0.02), 1000) ** 2,
    "cosine": 1 - COSINE[1:] / COSINE[:-1],
    "jsd": 1 / np.arange(1000.0, 0, -1),
    "two steps": np.array([0.1, 0.5]),
}
BETAS["cosine"][-1] = 0.999


def algorithm_1(beta):
    """√ᾱ shifted by its last value and scaled back to its first, and β from ratios of ᾱ."""
    signal = np.sqrt(np.cumprod(1 - beta))
    first, last = signal[0], signal[-1]
    signal = (signal - last) * first / (first - last)
    alpha_bar = signal**2
    return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1]), alpha_bar


@pytest.mark.parametrize("name", BETAS)
def test_every_table_equals_algorithm_1(name):
    got = rescale_zero_terminal_snr(FAMILIES[name])
    beta, alpha_bar = algorithm_1(BETAS[name])
    truth = Tables(beta)
    np.testing.assert_allclose(got.alpha_bar, alpha_bar, rtol=3e-6, atol=0)
    np.testing.assert_allclose(got.noise_scale, np.sqrt(1 - alpha_bar), rtol=3e-6)
    np.testing.assert_allclose(got.beta, beta, rtol=2e-6)
    np.testing.assert_allclose(got.posterior_variance, truth.posterior_variance, rtol=3e-6)
    np.testing.assert_allclose(got.posterior_log_variance, truth.log_variance, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_stays_and_the_last_is_exactly_nothing(name):
    before, after = FAMILIES[name], rescale_zero_terminal_snr(FAMILIES[name])
    for table in ("signal_scale", "noise_scale", "alpha_bar", "beta", "log_snr"):
        np.testing.assert_array_equal(getattr(after, table)[0], getattr(before, table)[0])
    assert (after.signal_scale[-1], after.alpha_bar[-1]) == (0.0, 0.0)
    assert (after.noise_scale[-1], after.beta[-1], after.log_snr[-1]) == (1.0, 1.0, -np.inf)
    signal, beta = np.asarray(after.signal_scale), np.asarray(after.beta)
    assert (np.diff(signal) < 0).all() and (beta > 0).all() and (beta <= 1).all()
    assert (signal[1:-1] <= np.asarray(before.signal_scale)[1:-1]).all()
    np.testing.assert_array_equal(after.timesteps, before.timesteps)
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(after))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_second_time_changes_nothing(name):
    """And neither does the first for jsd, which ends at 0 already."""
    once = rescale_zero_terminal_snr(FAMILIES[name])
    twice = rescale_zero_terminal_snr(once)
    plain = FAMILIES["jsd"] if name == "jsd" else once
    for got, wanted, again in zip(*(jax.tree.leaves(s) for s in (once, plain, twice)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=2e-8)
        np.testing.assert_allclose(again, got, rtol=2e-6, atol=2e-8)


@pytest.mark.parametrize("spacing", ["trailing", "fractional"])
@pytest.mark.parametrize("name", ["linear", "cosine", "jsd"])
def test_respacing_keeps_the_end(name, spacing):
    steps = dj.spaced_timesteps(1000, 10, spacing)
    full = rescale_zero_terminal_snr(FAMILIES[name])
    grid = dj.respace(full, steps)
    assert grid.timesteps[-1] == 999 and grid.alpha_bar[-1] == 0 and grid.beta[-1] == 1
    alpha_bar = algorithm_1(BETAS[name])[1][steps]
    truth = Tables(1 - alpha_bar / np.append(1.0, alpha_bar[:-1]))
    np.testing.assert_allclose(grid.alpha_bar, alpha_bar, rtol=1e-5)
    np.testing.assert_allclose(grid.posterior_variance, truth.posterior_variance, rtol=3e-6)
    mean = dj.posterior_mean(grid, jnp.ones(10), jnp.zeros(10), jnp.arange(10))
    np.testing.assert_allclose(mean, truth.coef_x_0, rtol=2e-5)


@pytest.mark.parametrize("target", ["v", "x_0"])
@pytest.mark.parametrize("make", [dj.ddim, dj.ancestral], ids=["ddim", "ancestral"])
def test_sampling_from_pure_noise_finds_the_datas_mean(make, target):
    """Data far from 0: what is left of it in x_T of the plain process is gone, so noise of mean 0
    is the right start, and the samples have the data's mean and deviation."""
    schedule = rescale_zero_terminal_snr(dj.linear_schedule(200, 5e-4, 0.04))
    data = GaussianData(0.8, 0.3, np.asarray(schedule.signal_scale, np.float64) ** 2)

    def apply_fn(x_t, t):
        x_0_hat = data.denoise(x_t, t)
        return dj.convert_prediction(schedule, x_0_hat, x_t, t, source="x_0", target=target)

    denoise = dj.make_denoiser(schedule, apply_fn, target=target, clip=False)
    grid = dj.respace(schedule, dj.spaced_timesteps(200, 50, "trailing"))
    keys = dj.example_keys(jax.random.key(0), jnp.arange(4096))
    x_T = dj.initial_noise(keys, (2,))
    samples = jax.jit(lambda x, k: dj.sample(make(grid), denoise, x, keys=k))(x_T, keys)
    np.testing.assert_allclose(samples.mean(), 0.8, atol=0.02)
    np.testing.assert_allclose(samples.std(), 0.3, rtol=0.1)


def test_one_step_cannot_be_stretched():
    with pytest.raises(ValueError, match="2 steps or more"):
        rescale_zero_terminal_snr(dj.constant_schedule(1, 0.5))
