"""How fast each solver approaches the probability-flow ODE, and whether each sampler draws the
data's distribution, on Gaussian and mixture data, whose denoisers are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ddpm_jax as dj
from ddpm_jax import samplers
from tests.oracles import MixtureData

# A process of 961 levels even in log-SNR, so that every coarser grid is even too.
ALPHA_BAR = 1 / (1 + np.exp(-np.linspace(9, -7, 961)))
SIGMA = np.sqrt((1 - ALPHA_BAR) / ALPHA_BAR)
# Weights, means and widths; the first is one Gaussian, written so that both share a program.
GAUSSIAN = ((0.3, 0.5, 0.2), (0.25, 0.25, 0.25), (0.4, 0.4, 0.4))
MIXTURE = ((0.3, 0.5, 0.2), (-0.7, 0.1, 0.6), (0.15, 0.2, 0.1))
KINDS = np.array([GAUSSIAN, MIXTURE])
COARSE, FINE = 48, 96
X_T = np.linspace(-2.5, 2.5, 21)


@pytest.fixture(scope="module")
def exact():
    """x at the finest level on the exact ODE from X_T, for both kinds of data."""
    scale = np.sqrt(ALPHA_BAR)
    return [
        scale[0] * MixtureData(*kind, ALPHA_BAR).ode_solution(X_T / scale[-1], SIGMA[-1], SIGMA[0])
        for kind in (GAUSSIAN, MIXTURE)
    ]


def test_the_reference_knows_the_gaussian_case(exact):
    """A Gaussian's ODE is the map of quantiles."""
    std = np.sqrt(ALPHA_BAR * 0.4**2 + 1 - ALPHA_BAR)
    mean = np.sqrt(ALPHA_BAR) * 0.25
    np.testing.assert_allclose(
        exact[0], mean[0] + std[0] / std[-1] * (X_T - mean[-1]), rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize(
    "make,order",
    [
        (samplers.ddim, 1),
        (lambda s: samplers.dpm_solver_pp(s, order=1), 1),
        (samplers.dpm_solver_pp, 2),
        (samplers.heun, 2),
    ],
    ids=["ddim", "dpm 1", "dpm 2", "heun"],
)
def test_convergence_order(make, order, exact):
    """Halving the step divides the error by 2^order; up to the finest level, for the step from
    there to the data is the same on every grid."""
    with jax.enable_x64(True):
        process = dj.schedule_from_alpha_bar(ALPHA_BAR, dtype=jnp.float64)

        def solve(kind, num_steps):
            sampler = make(dj.respace(process, np.arange(0, 961, 960 // num_steps)))
            denoise = MixtureData(*kind, ALPHA_BAR).denoise
            x_T, steps = jnp.asarray(X_T), np.arange(num_steps, 0, -1)
            return dj.samplers.advance(sampler, denoise, x_T, sampler.init(x_T), steps)[0]

        solve = jax.jit(jax.vmap(solve, in_axes=(0, None)), static_argnums=1)
        coarse, fine = (
            np.sqrt(np.mean((solve(jnp.asarray(KINDS), n) - np.asarray(exact)) ** 2, axis=-1))
            for n in (COARSE, FINE)
        )
    np.testing.assert_allclose(np.log2(coarse / fine), order, atol=0.12)


@pytest.mark.parametrize(
    "make,order,grids",
    [
        (lambda s, _: samplers.dpm_solver_pp(s, singlestep=True), 2, (96, 192)),
        (lambda s, _: samplers.dpm_solver_pp(s, order=3), 3, (96, 192)),
        (lambda s, _: samplers.unipc(s, order=1), 2, (96, 192)),
        (lambda s, _: samplers.unipc(s, order=2), 3, (96, 192)),
        (lambda s, _: samplers.unipc(s, order=3), 4, (192, 320)),
        (lambda s, process: samplers.deis(s, order=2, process=process), 2, (96, 192)),
        (lambda s, process: samplers.deis(s, order=3, process=process), 3, (192, 320)),
        (lambda s, process: samplers.deis(s, order=4, process=process), 4, (48, 96)),
    ],
    ids=["dpm 2s", "dpm 3", "unipc 1", "unipc 2", "unipc 3", "deis 2", "deis 3", "deis 4"],
)
def test_convergence_order_of_the_solvers_for_few_steps(make, order, grids, exact):
    """On the mixture; a Gaussian's ODE is linear, and some of them gain an order there. The grids
    are such that neither the first steps, of lower order, nor rounding counts."""
    errors = []
    with jax.enable_x64(True):
        process, data = (
            dj.schedule_from_alpha_bar(ALPHA_BAR, dtype=jnp.float64),
            MixtureData(*MIXTURE, ALPHA_BAR),
        )
        for num_steps in grids:
            grid = dj.respace(process, np.arange(0, 961, 960 // num_steps))
            sampler, x_T = make(grid, process), jnp.asarray(X_T)
            steps = jnp.arange(num_steps, 0, -1)
            run = jax.jit(
                lambda x, s, p=sampler: samplers.advance(p, data.denoise, x, p.init(x), s)[0]
            )
            errors.append(np.sqrt(np.mean((np.asarray(run(x_T, steps)) - exact[1]) ** 2)))
    slope = np.log(errors[0] / errors[1]) / np.log(grids[1] / grids[0])
    np.testing.assert_allclose(slope, order, atol=0.12)


FULL = dj.linear_schedule()
FULL_ALPHA_BAR = np.asarray(FULL.alpha_bar, np.float64)


def even(num_steps):
    return dj.respace(FULL, dj.spaced_timesteps(1000, num_steps, "trailing"))


def karras(num_steps):
    return dj.respace(FULL, dj.karras_timesteps(FULL, num_steps))


CASES = {
    "ancestral large": lambda: samplers.ancestral(even(500)),
    "ancestral small": lambda: samplers.ancestral(even(500), variance="fixed_small"),
    "ddim": lambda: samplers.ddim(even(250)),
    "ddim 0.5": lambda: samplers.ddim(even(250), eta=0.5),
    "ddim 1": lambda: samplers.ddim(even(500), eta=1.0),
    "dpm 1": lambda: samplers.dpm_solver_pp(even(250), order=1),
    "dpm 2": lambda: samplers.dpm_solver_pp(karras(40)),
    "dpm 2 sde": lambda: samplers.dpm_solver_pp(karras(80), sde=True),
    "dpm 3": lambda: samplers.dpm_solver_pp(karras(40), order=3),
    "dpm 2s": lambda: samplers.dpm_solver_pp(karras(61), singlestep=True),
    "unipc": lambda: samplers.unipc(karras(30)),
    "deis": lambda: samplers.deis(even(60), process=FULL),
    "heun": lambda: samplers.heun(karras(40)),
    "heun churn": lambda: samplers.heun(karras(60), churn=10.0, process=FULL),
    "pc ancestral": lambda: samplers.predictor_corrector(samplers.ancestral(even(250))),
    "pc ddim": lambda: samplers.predictor_corrector(samplers.ddim(even(250)), snr=0.08),
}


@pytest.mark.parametrize("name", CASES)
def test_samples_have_the_distribution_of_the_data(name):
    sampler = CASES[name]()
    keys = dj.example_keys(jax.random.key(5), np.arange(64))
    x_T = dj.initial_noise(keys, (64,))
    kinds = [MixtureData(*kind, FULL_ALPHA_BAR) for kind in KINDS]

    @jax.jit
    @jax.vmap
    def run(kind):
        return dj.sample(sampler, MixtureData(*kind, FULL_ALPHA_BAR).denoise, x_T, keys=keys)

    for data, got in zip(kinds, run(jnp.asarray(KINDS, jnp.float32)), strict=True):
        drawn, truth = np.asarray(got).ravel(), data.draw(np.random.default_rng(0), 20_000)
        # 4,096 draws: four standard errors, and what a whole number of steps costs in width.
        np.testing.assert_allclose(drawn.mean(), data.mean, atol=4 * data.std / 64)
        np.testing.assert_allclose(drawn.std() / data.std, 1.0, atol=4 / 64 / np.sqrt(2) + 0.01)
        assert stats.ks_2samp(drawn, truth).pvalue > 1e-3
