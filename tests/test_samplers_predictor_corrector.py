"""Predictor-corrector sampling against the paper's algorithms in float64, and its limits."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.samplers import dpm_solver_pp, predictor_corrector
from ddpm_jax.samplers.predictor_corrector import norm_ratio
from tests.oracles import GaussianData, Tables

FULL = dj.linear_schedule()
TRUTH = Tables(np.linspace(1e-4, 0.02, 1000))
STEPS = dj.spaced_timesteps(1000, 12, "trailing")
GRID = dj.respace(FULL, STEPS)
rng = np.random.default_rng(0)
X_T, NOISE = rng.standard_normal((3, 40)), rng.standard_normal((12, 3, 3, 40))


def toy(x, t, xp=jnp):
    return xp.tanh(x) * (0.9 - 0.0005 * t)


def denoise(x, t):
    return toy(x, t[:, None])


def test_equals_a_float64_run():
    """Ancestral steps by the posterior, then Algorithm 5 twice, example by example."""
    alpha_bar = TRUTH.alpha_bar[STEPS]
    tables = Tables(1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]]))
    x = X_T.copy()
    for k, i in enumerate(range(11, -1, -1)):
        x = tables.coef_x_0[i] * toy(x, STEPS[i], np) + tables.coef_x_t[i] * x
        x = x + (i > 0) * np.sqrt(tables.beta[i]) * NOISE[k, 0]
        for z in NOISE[k, 1:] if i else ():
            for b in range(3):
                signal, variance = np.sqrt(alpha_bar[i - 1]), 1 - alpha_bar[i - 1]
                score = (signal * toy(x[b], STEPS[i - 1], np) - x[b]) / variance
                r = 0.16 * np.linalg.norm(z[b]) / np.linalg.norm(score)
                size = 2 * (1 - tables.beta[i - 1]) * r**2
                x[b] = x[b] + size * score + np.sqrt(2 * size) * z[b]
    sampler = predictor_corrector(dj.ancestral(GRID), num_corrections=2)
    assert sampler.num_draws == 3
    got = dj.sample(sampler, denoise, jnp.float32(X_T), noise=jnp.float32(NOISE))
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("make", [dj.ancestral, dj.ddim, dpm_solver_pp])
def test_a_ratio_of_zero_leaves_the_predictor_alone(make):
    predictor = make(GRID)
    sampler = predictor_corrector(predictor, snr=0.0)
    assert sampler.num_draws == predictor.num_draws + 1
    noise = jnp.float32(NOISE[:, :2] if predictor.num_draws else NOISE[:, 0])
    own = jnp.float32(NOISE[:, 0]) if predictor.num_draws else None
    got = dj.sample(sampler, denoise, jnp.float32(X_T), noise=noise)
    expected = dj.sample(predictor, denoise, jnp.float32(X_T), noise=own)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_correctors_pull_a_wrong_predictor_towards_the_data():
    """A predictor that widens every step: the corrector makes up for most of it."""
    data = GaussianData(0.25, 0.4, TRUTH.alpha_bar)
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, 100, "trailing"))
    good = dj.ddim(grid)

    def widened(denoise, x, t, noise, state):
        result = good.step(denoise, x, t, noise, state)
        return result._replace(x=1.01 * result.x)

    bad = good._replace(step=widened)
    keys = dj.example_keys(jax.random.key(0), np.arange(16))
    x_T = dj.initial_noise(keys, (64,))

    def width(sampler):
        draw = jax.jit(lambda x: dj.sample(sampler, data.denoise, x, keys=keys))
        return np.std(draw(x_T))

    corrected = predictor_corrector(bad, snr=0.1, num_corrections=4)
    assert abs(width(corrected) - 0.4) < 0.4 * abs(width(bad) - 0.4)


def test_a_vanishing_score_is_left_alone():
    sampler = predictor_corrector(dj.ddim(GRID))
    zeros, ones = jnp.zeros((2, 40)), jnp.ones((2, 40))
    state = sampler.step(lambda x, t: 0.0 * x, zeros, jnp.full(2, 5), ones, ())
    np.testing.assert_array_equal(state.x, zeros)


@pytest.mark.parametrize("size,snr,warned", [(1, 0.16, 1), (31, 0.16, 1), (32, 0.16, 0), (1, 0, 0)])
def test_few_dimensions_warn(size, snr, warned):
    sampler, x = predictor_corrector(dj.ddim(GRID), snr=snr), jnp.ones((2, size))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sampler.step(lambda x, t: 0.5 * x, x, jnp.full(2, 5), x, ())
    assert len(caught) == warned and all("too wide" in str(w.message) for w in caught)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: predictor_corrector(dj.ddim(GRID), snr=-0.1), r"snr in \[0, inf\)"),
        (lambda: predictor_corrector(dj.ddim(GRID), num_corrections=0), "num_corrections"),
        (
            lambda: dj.sample(
                predictor_corrector(dj.ancestral(GRID)),
                denoise,
                jnp.float32(X_T),
                noise=jnp.float32(NOISE[:, 0]),
            ),
            "draws",
        ),
    ],
)
def test_bad_calls_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_the_step_size_of_half_precision_is_that_of_float32(dtype):
    """‖z‖² of 256×256×3 values is above the largest float16."""
    z = jnp.asarray(np.random.default_rng(1).standard_normal((2, 256 * 256 * 3)), dtype)
    score = 2.0 * z[::-1].astype(jnp.float32)
    ratio = norm_ratio(z, score)
    np.testing.assert_allclose(ratio[:, 0], [0.5, 0.5], rtol=0.01)
    np.testing.assert_allclose(ratio, norm_ratio(z.astype(jnp.float32), score), rtol=1e-3)
