"""DDIM's inversion: equations in float64, what decoding brings back, and where it may stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.samplers import ddim_encode, ddim_encode_trajectory
from tests.oracles import MixtureData, Tables

FULL = dj.linear_schedule()
TRUTH = Tables(np.linspace(1e-4, 0.02, 1000))
STEPS = dj.spaced_timesteps(1000, 40, "trailing")
GRID = dj.respace(FULL, STEPS)
X_0 = np.random.default_rng(0).uniform(-1, 1, (3, 5))


def network(x, t, xp=jnp):
    """A synthetic ε-network, smooth in x and t."""
    return xp.tanh(0.7 * x) + 0.3 * xp.sin(0.004 * t) * x


DENOISE = dj.make_denoiser(FULL, lambda x, t: network(x, t[:, None]), clip=False)


def reference(last_step, corrections=0, convention="euler"):
    """Euler in (y, σ), with rising σ, in float64 NumPy; the ε-network is called directly."""
    alpha_bar = TRUTH.alpha_bar[STEPS]
    sigma = np.sqrt(1 - alpha_bar) / np.sqrt(alpha_bar)
    y, sigma_now, way = X_0.copy(), 0.0, []
    for i in range(last_step + 1):
        x = y / np.sqrt(1 + sigma_now**2)
        fed = STEPS[i] if convention == "fed_next" else STEPS[max(i - 1, 0)]
        if convention == "data_is_step_0" and i == 0:
            y_next = X_0 / np.sqrt(alpha_bar[0])
        else:
            y_next = y + (sigma[i] - sigma_now) * network(x, fed, np)
        for _ in range(corrections):
            x_next = y_next / np.sqrt(1 + sigma[i] ** 2)
            y_next = y + (sigma[i] - sigma_now) * network(x_next, STEPS[i], np)
        y, sigma_now = y_next, sigma[i]
        way.append(y * np.sqrt(alpha_bar[i]))
    return np.stack(way)


@pytest.mark.parametrize("corrections", [0, 3])
@pytest.mark.parametrize("convention", ["euler", "fed_next", "data_is_step_0"])
def test_encoding_equals_a_float64_run(convention, corrections):
    x, way = ddim_encode_trajectory(
        GRID, DENOISE, jnp.float32(X_0), corrections=corrections, convention=convention
    )
    expected = reference(39, corrections, convention)
    np.testing.assert_allclose(way, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(x, way[-1])


def test_encoding_to_a_step_is_part_of_the_way_and_decodes_from_there():
    x = ddim_encode(GRID, DENOISE, jnp.float32(X_0), last_step=11, corrections=12)
    np.testing.assert_allclose(x, reference(11, 12)[-1], rtol=1e-4, atol=1e-5)
    back, _, _ = dj.samplers.advance(dj.ddim(GRID), DENOISE, x, (), jnp.arange(11, -1, -1))
    np.testing.assert_allclose(back, X_0, atol=1e-5)


def test_corrections_make_decoding_exact():
    encode = jax.jit(
        lambda x, k: dj.sample(
            dj.ddim(GRID), DENOISE, ddim_encode(GRID, DENOISE, x, corrections=k)
        ),
        static_argnums=1,
    )
    errors = [np.abs(encode(jnp.float32(X_0), k) - X_0).max() for k in (0, 2, 12)]
    assert errors[0] > 1e-2 and errors[1] < errors[0] / 4 and errors[2] < 1e-5


@pytest.mark.parametrize(
    "kind", [((1.0,), (0.25,), (0.4,)), ((0.3, 0.7), (-0.6, 0.4), (0.2, 0.3))], ids=["1", "2"]
)
@pytest.mark.parametrize("convention", ["euler", "fed_next"])
def test_encoding_converges_to_the_exact_code_at_first_order(kind, convention):
    """Against the ODE from σ near 0; and decoding the code brings x_0 back at first order."""
    alpha_bar = 1 / (1 + np.exp(-np.linspace(14, -6, 1201)))
    data = MixtureData(*kind, alpha_bar)
    sigma = np.sqrt(1 / alpha_bar - 1)
    x_0 = np.linspace(-1, 1, 9)
    code = np.sqrt(alpha_bar[-1]) * data.ode_solution(x_0, 1e-6, sigma[-1])
    with jax.enable_x64(True):
        process = dj.schedule_from_alpha_bar(alpha_bar, dtype=jnp.float64)

        @jax.jit
        def run(x):
            out = []
            for num_steps in (60, 120):
                grid = dj.respace(process, np.arange(0, 1201, 1200 // num_steps))
                encoded = ddim_encode(grid, data.denoise, x, convention=convention)
                out.append((encoded, dj.sample(dj.ddim(grid), data.denoise, encoded)))
            return out

        (coarse, coarse_back), (fine, fine_back) = run(jnp.asarray(x_0))
    for a, b, truth in [(coarse, fine, code), (coarse_back, fine_back, x_0)]:
        order = np.log2(np.abs(a - truth).mean() / np.abs(b - truth).mean())
        np.testing.assert_allclose(order, 1.0, atol=0.2)


@pytest.mark.parametrize(
    "kwargs,words",
    [
        ({"last_step": 40}, "last_step"),
        ({"corrections": -1}, "corrections"),
        ({"convention": "exact"}, "fed_next"),
    ],
)
def test_bad_calls_are_named(kwargs, words):
    with pytest.raises(ValueError, match=words):
        ddim_encode(GRID, DENOISE, jnp.float32(X_0), **kwargs)
