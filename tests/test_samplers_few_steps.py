"""UniPC and DEIS against their papers' formulas in float64, and their limits."""

import typing

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import ddpm_jax as dj
from ddpm_jax import samplers
from ddpm_jax.programs.build import build_sampler
from ddpm_jax.programs.config import SamplerOptions
from ddpm_jax.programs.continuous import build_process, table_of_times
from ddpm_jax.programs.diffusion import DiffusionConfig
from tests.oracles import Tables

BETA = np.linspace(1e-4, 0.02, 1000)
FULL, TRUTH = dj.linear_schedule(), Tables(BETA)
X_T = np.random.default_rng(0).standard_normal((3, 5))


def toy(x, t, xp=jnp):
    return xp.tanh(x) * (0.9 - 0.0005 * t)


def denoise(x, t):
    return toy(x, t[:, None])


def phis(h, count):
    """φ_1(-h), φ_2(-h), …: φ_{k+1}(z) = (φ_k(z) - 1/k!)/z from φ_0 = e^z."""
    found, factorial = [np.exp(-h)], 1.0
    for k in range(count):
        found.append((found[-1] - 1 / factorial) / -h)
        factorial *= k + 1
    return found[1:]


def coefficients(r, h):
    """a of R a B = φ (UniPC, Eq. 5), B(h) = e^h - 1 at -h for x̂_0; ½ for a single node."""
    if len(r) == 1:
        return np.array([0.5])
    wanted = [-h * np.prod(np.arange(1.0, k)) * p for k, p in enumerate(phis(h, len(r) + 1)[1:], 2)]
    # Σ_j a_j r_j^{k-1} B = h φ_{k+1} k!, B = e^{-h} - 1, the sign of the differences with it.
    return np.linalg.solve(np.vander(r, increasing=True).T, np.array(wanted) / np.expm1(-h))


def unipc_reference(alpha_bar, fed, order):
    """UniPC with UniC, kept as predicted x, corrected x and evaluations, up to the last level."""
    lam, signal, noise = (
        0.5 * np.log(alpha_bar / (1 - alpha_bar)),
        np.sqrt(alpha_bar),
        np.sqrt(1 - alpha_bar),
    )
    x, corrected, seen = X_T.copy(), None, []  # seen: (λ, x̂_0), newest first
    for i in range(len(fed) - 1, 0, -1):
        new = toy(x, fed[i], np)
        if seen:  # UniC for the step that led here, with the corrected x it started from
            x = unified(corrected, i + 1, i, seen, (lam[i], new), lam, signal, noise, order)
        corrected, seen = x, [(lam[i], new), *seen][:order]
        x = unified(corrected, i, i - 1, seen, None, lam, signal, noise, order)
    return x


def unified(x, t, s, seen, new, lam, signal, noise, order):
    """One step of UniP-p (new None) or UniC-p from t to s by the paper's coefficients."""
    h, (_, base) = lam[s] - lam[t], seen[0]
    points = [*seen[1 : min(order, len(seen))], *([] if new is None else [new])]
    linear = noise[s] / noise[t] * x - signal[s] * np.expm1(-h) * base
    if not points:
        return linear
    r = np.array([(at - lam[t]) / h for at, _ in points])
    slopes = [(value - base) / ratio for (_, value), ratio in zip(points, r, strict=True)]
    weights = coefficients(r, h)
    return linear - signal[s] * np.expm1(-h) * sum(
        a * d for a, d in zip(weights, slopes, strict=True)
    )


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("num_steps", [3, 10])
def test_unipc_equals_a_float64_run(order, num_steps):
    """Up to the last level, where the prediction is not corrected any more."""
    steps = dj.spaced_timesteps(1000, num_steps, "trailing")
    expected = unipc_reference(TRUTH.alpha_bar[steps], steps, order)
    sampler, x = dj.unipc(dj.respace(FULL, steps), order=order), jnp.float32(X_T)
    down = jnp.arange(num_steps - 1, 0, -1)
    got, _, _ = samplers.advance(sampler, denoise, x, sampler.init(x), down)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    end = dj.sample(sampler, denoise, x)
    np.testing.assert_allclose(end, toy(expected, steps[0], np), rtol=1e-4, atol=1e-5)


def deis_reference(alpha_bar, levels, fed, order):
    """tAB-DEIS by adaptive quadrature in τ, log ρ linear between the levels."""
    log_rho = 0.5 * np.log((1 - alpha_bar) / alpha_bar)
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    row = np.searchsorted(levels, fed)
    x, seen = X_T.copy(), []
    for i in range(len(fed) - 1, -1, -1):
        x_0_hat = toy(x, fed[i], np)
        if i == 0:
            return x_0_hat
        epsilon = (x - signal[row[i]] * x_0_hat) / noise[row[i]]
        seen = [(fed[i], epsilon), *seen][:order]
        y = x / signal[row[i]]
        for j, (node, value) in enumerate(seen):
            others = [other for k, (other, _) in enumerate(seen) if k != j]

            def integrand(tau, node=node, others=others):
                at = np.searchsorted(levels, tau).clip(1, len(levels) - 1)
                slope = (log_rho[at] - log_rho[at - 1]) / (levels[at] - levels[at - 1])
                rho = np.exp(np.interp(tau, levels, log_rho))
                return rho * slope * np.prod([(tau - o) / (node - o) for o in others])

            inner = levels[row[i - 1] + 1 : row[i]]
            # A kink at every level: each interval by itself.
            edges = [fed[i], *inner[::-1], fed[i - 1]]
            y = y + value * sum(
                quad(integrand, a, b)[0] for a, b in zip(edges, edges[1:], strict=False)
            )
        x = signal[row[i - 1]] * y
    return None


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("known", ["process", "grid"])
def test_deis_equals_a_float64_run(order, known):
    """With the levels of a process between the grid's steps, and with the grid's alone."""
    levels = np.unique(np.append(np.arange(0, 1000, 37), 999))
    process = dj.respace(FULL, levels)
    steps = levels[[0, 2, 3, 9, 17, len(levels) - 1]]
    grid = dj.respace(FULL, steps)
    if known == "grid":
        process, levels = None, steps
    expected = deis_reference(TRUTH.alpha_bar[levels], levels, steps, order)
    got = dj.sample(dj.deis(grid, order=order, process=process), denoise, jnp.float32(X_T))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_deis_of_order_1_is_ddim():
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, 20))
    x = jnp.float32(X_T)
    expected = dj.sample(dj.ddim(grid), denoise, x)
    np.testing.assert_allclose(dj.sample(dj.deis(grid, order=1), denoise, x), expected, rtol=1e-5)


MULTISTEP = {
    "dpm 3": lambda s: dj.dpm_solver_pp(s, order=3),
    "dpm 2s": lambda s: dj.dpm_solver_pp(s, singlestep=True),
    "unipc": dj.unipc,
    "deis": dj.deis,
}


@pytest.mark.parametrize("name", MULTISTEP)
def test_wherever_sampling_starts_the_first_step_is_of_order_one(name):
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, 20, "trailing"))
    x, sampler, one = jnp.float32(X_T), MULTISTEP[name](grid), dj.ddim(grid)
    steps = jnp.array([9])
    got, state, _ = samplers.advance(sampler, denoise, x, sampler.init(x), steps)
    expected, _, _ = samplers.advance(one, denoise, x, one.init(x), steps)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    again, _, _ = samplers.advance(sampler, denoise, got, state, jnp.array([8]))
    expected, _, _ = samplers.advance(one, denoise, got, (), jnp.array([8]))
    assert np.abs(again - expected).max() > 1e-3  # the second is not


@pytest.mark.parametrize("name", MULTISTEP)
def test_what_is_done_to_x_between_steps_stays(name):
    """As inpainting does: a shift of x_t moves x_{t-1} by its factor in every solver; here with an
    x̂_0 that does not depend on x, so that nothing else changes."""
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, 20, "trailing"))
    sampler, x = MULTISTEP[name](grid), jnp.float32(X_T)

    def fixed(x, t):
        return jnp.zeros_like(x) + 0.001 * t[:, None]

    x, state, _ = samplers.advance(sampler, fixed, x, sampler.init(x), jnp.arange(19, 10, -1))
    ends = [samplers.advance(sampler, fixed, x + d, state, jnp.array([10]))[0] for d in (0.0, 1.0)]
    factor = grid.noise_scale[9] / grid.noise_scale[10]
    if name == "deis":  # ε̂ extrapolates x as well: the shift enters by its own coefficient
        assert np.abs(ends[1] - ends[0]).min() > 0.5 * factor
    else:
        np.testing.assert_allclose(ends[1] - ends[0], np.full((3, 5), factor), rtol=1e-4)


@pytest.mark.parametrize("name", typing.get_args(typing.get_type_hints(SamplerOptions)["sampler"]))
def test_every_sampler_of_the_command_line_is_built_on_its_grid(name):
    schedule, of_time = FULL, {}
    if name.startswith("probability_flow") or name == "euler_maruyama":
        config = DiffusionConfig(process="vp")
        of_time = {"process": build_process(config), "times": table_of_times(config)}
        schedule = dj.forward.schedule_from_process(*of_time.values())
    sampler = build_sampler(schedule, SamplerOptions(name, num_steps=7), **of_time)
    np.testing.assert_array_equal(
        sampler.schedule.timesteps, dj.spaced_timesteps(1000, 7, "fractional")
    )
