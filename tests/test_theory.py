"""The identities that docs/theory.md derives, and the numbers on that page.

Integrals are sums over fine grids in float64; everything linear and Gaussian is exact algebra.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ddpm_jax as dj
from ddpm_jax.denoisers.scores import noise_levels
from ddpm_jax.likelihood.normal import normal_kl
from ddpm_jax.score.langevin import annealed_langevin_chains, langevin, langevin_step
from ddpm_jax.score.matching import (
    denoising_score_matching,
    exact_score_matching,
    ncsn_loss,
    score_of_energy,
    sliced_score_matching,
)
from ddpm_jax.score.noise_levels import geometric_ratio, ncsnv2_noise_levels
from tests.oracles import GaussianBound, MixtureData, Tables
from theory import flow, process, scores
from theory.process import all_schedules, paper
from theory_figures import TheoryConfig, theory_figures

GRID = np.linspace(-14.0, 14.0, 4001)
STEP = GRID[1] - GRID[0]
BETA = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5])
TRUTH = Tables(BETA)
# Scores that are models of nothing in particular: a line, a polynomial, waves.
SCORES = {
    "line": lambda x: -0.7 * (x - 0.3),
    "cubic": lambda x: 0.5 * x - 0.1 * x**3,
    "waves": lambda x: jnp.sin(2.0 * x) - x,
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Mixture:
    """0.3 N(-1, 0.6²) + 0.7 N(1.5, 0.9²), blurred by N(0, σ²)."""

    means, stds = np.array([-1.0, 1.5]), np.array([0.6, 0.9])

    def __init__(self, weights=(0.3, 0.7), means=means, stds=stds):
        self.weights, self.means, self.stds = map(np.asarray, (weights, means, stds))

    def parts(self, x, sigma):
        std = np.hypot(self.stds, sigma)
        return self.weights * stats.norm.pdf(np.asarray(x)[..., None], self.means, std), std

    def density(self, x, sigma=0.0):
        return self.parts(x, sigma)[0].sum(-1)

    def score(self, x, sigma=0.0):
        density, std = self.parts(x, sigma)
        slope = -(np.asarray(x)[..., None] - self.means) / std**2
        return (density * slope).sum(-1) / density.sum(-1)


# One program for each score and shape.
matching_loss = jax.jit(exact_score_matching, static_argnums=0)


@functools.cache
def schedule():
    """Made inside a test, in float64."""
    return dj.schedule_from_beta(BETA, dtype=jnp.float64)


def test_the_normaliser_costs_samples_of_the_model():
    """∇_θ log Z = -E_{p_θ}[∇_θ f], while ∇ log p_θ = -∇f whatever constant f carries."""

    def energy(x, theta, constant=0.0):
        return theta * x**4 / 4 + x**2 / 2 + np.sin(x) + constant

    def log_normaliser(theta):
        return np.log(np.sum(np.exp(-energy(GRID, theta))) * STEP)

    density = np.exp(-energy(GRID, 0.5) - log_normaliser(0.5))
    slope = (log_normaliser(0.5 + 1e-5) - log_normaliser(0.5 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, -np.sum(density * GRID**4 / 4) * STEP, rtol=1e-8)

    x = jnp.linspace(-2.0, 2.0, 9)

    def events(x, constant):
        return (0.5 * x**4 / 4 + x**2 / 2 + jnp.sin(x) + constant)[:, 0]

    score_of_events = jax.jit(score_of_energy(events))
    for constant in (0.0, 37.0):
        score = score_of_events(x[:, None], constant)[:, 0]
        h = 1e-5
        log_ratio = energy(np.array(x) - h, 0.5) - energy(np.array(x) + h, 0.5)
        np.testing.assert_allclose(score, log_ratio / (2 * h), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", SCORES)
def test_integration_by_parts(name):
    """½ E(s - ∇log p)² = E[½ s² + s'] + ½ E(∇log p)², the left side never differentiating s."""
    data = Mixture()
    p = data.density(GRID) * STEP
    fisher = 0.5 * np.sum(p * (np.array(SCORES[name](GRID)) - data.score(GRID)) ** 2)
    matching = np.sum(p * np.array(matching_loss(SCORES[name], jnp.array(GRID[:, None]))))
    constant = 0.5 * np.sum(p * data.score(GRID) ** 2)
    np.testing.assert_allclose(matching + constant, fisher, rtol=1e-10)


def test_integration_by_parts_needs_the_boundary_term():
    """Uniform data on [0, 1], whose score is 0 inside: off by the bracket s(1) - s(0)."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    x, p = (nodes + 1) / 2, weights / 2
    for s in SCORES.values():
        fisher = 0.5 * np.sum(p * np.array(s(x)) ** 2)
        matching = np.sum(p * np.array(matching_loss(s, jnp.array(x[:, None]))))
        bracket = float(s(jnp.array(1.0)) - s(jnp.array(0.0)))
        np.testing.assert_allclose(matching - fisher, bracket, rtol=1e-10)
        assert abs(bracket) > 0.05


def test_without_the_boundary_the_wrong_model_wins():
    """s = a (x - ½) on [0, 1]: J = a²/24, the formula a + a²/24, least at a = -12."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    x, p = jnp.array(nodes[:, None] + 1) / 2, weights / 2
    slopes = np.array([-24.0, -12.0, 0.0, 5.0])
    formula = [
        np.sum(p * np.array(exact_score_matching(lambda x, a=a: a * (x - 0.5), x))) for a in slopes
    ]
    fisher = [np.sum(p * 0.5 * (a * (np.array(x)[:, 0] - 0.5)) ** 2) for a in slopes]
    drawn_fisher, drawn_formula = scores.uniform_losses(slopes)
    np.testing.assert_allclose(formula, slopes + slopes**2 / 24, atol=1e-12)
    np.testing.assert_allclose(drawn_formula, formula, atol=1e-12)
    np.testing.assert_allclose(drawn_fisher, fisher, atol=1e-12)
    assert slopes[np.argmin(formula)] == -12 and slopes[np.argmin(fisher)] == 0


def test_the_sign_of_the_trace():
    """On N(0, 1) the objective prefers s = -x; with -tr for tr it would prefer s = x."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    x, p = jnp.array(nodes[:, None]), weights / np.sqrt(2 * np.pi)
    right, wrong = {}, {}
    for a in (-1.0, 0.0, 1.0):
        objective = np.sum(p * np.array(exact_score_matching(lambda x, a=a: a * x, x)))
        right[a], wrong[a] = objective, objective - 2 * a
    assert min(right, key=right.get) == -1.0 and min(wrong, key=wrong.get) == 1.0
    np.testing.assert_allclose(right[-1.0], -0.5, rtol=1e-12)


def test_slicing_costs_twice_a_denoising_step():
    """Floating-point operations of one compiled training gradient of an MLP."""
    shapes = ((64, 128), (128, 128), (128, 64))
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    x = jnp.ones((8, 64), jnp.float32)

    def network(params, x):
        for kernel in params[:-1]:
            x = jax.nn.silu(x @ kernel)
        return x @ params[-1]

    def denoising(params):
        return denoising_score_matching(lambda x: network(params, x), x, x, 0.1).mean()

    def sliced(params):
        return sliced_score_matching(lambda x: network(params, x), x, x[None]).mean()

    flops = [
        jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]
        for loss in (denoising, sliced)
    ]
    assert 1.7 < flops[1] / flops[0] < 2.2


def test_the_least_denoising_loss():
    """N(0, 1) and σ = ½: the exact score -x̃/1.25 reaches C = ½ · 0.2/σ⁴ = 1.6, others do not."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weight = np.outer(weights, weights).ravel() / (2 * np.pi)
    x, z = (jnp.array(axis.ravel())[:, None] for axis in np.meshgrid(nodes, nodes))
    loss = {
        slope: np.sum(
            weight * np.array(denoising_score_matching(lambda x, k=slope: -k * x, x, z, 0.5))
        )
        for slope in (0.7, 0.8, 0.9)
    }
    np.testing.assert_allclose(loss[0.8], 1.6, rtol=1e-12)
    assert loss[0.8] < min(loss[0.7], loss[0.9])


def test_slicing_is_unbiased():
    """The mean over all eight sign vectors of three dimensions, for a score with no symmetry."""
    rng = np.random.default_rng(0)
    kernel, x = rng.standard_normal((3, 3)), jnp.array(rng.standard_normal((4, 3)))
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, 8).T
    v = jnp.array(np.repeat(signs[:, None], 4, axis=1))

    def s(x):
        return jnp.tanh(x @ kernel)

    wanted = matching_loss(s, x)
    for reduced in (False, True):
        sliced = jax.jit(
            lambda v, reduced=reduced: sliced_score_matching(s, x, v, variance_reduced=reduced)
        )(v)
        np.testing.assert_allclose(sliced, wanted, rtol=1e-10)


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_vincents_equality(sigma):
    """Denoising loss less Fisher divergence to q_σ is C = ½ E Var(x | x̃)/σ⁴ for every s."""
    data = Mixture()
    x = np.linspace(-8.0, 8.0, 321)
    z = np.linspace(-7.0, 7.0, 281)
    joint = np.outer(data.density(x) * (x[1] - x[0]), stats.norm.pdf(z) * (z[1] - z[0])).ravel()
    x_pair, z_pair = (axis.ravel() for axis in np.meshgrid(x, z, indexing="ij"))
    noisy = data.density(GRID, sigma) * STEP
    # Var(x | x̃), by Tweedie's second-order formula: σ² + σ⁴ ∂² log q_σ, in its mean over x̃.
    constant = 0.5 * (1 / sigma**2 - np.sum(noisy * data.score(GRID, sigma) ** 2))
    assert constant > 0
    for s in SCORES.values():
        losses = denoising_score_matching(s, jnp.array(x_pair)[:, None], z_pair[:, None], sigma)
        fisher = 0.5 * np.sum(noisy * (np.array(s(GRID)) - data.score(GRID, sigma)) ** 2)
        np.testing.assert_allclose(np.sum(joint * np.array(losses)) - fisher, constant, rtol=1e-8)


def test_tweedies_formula():
    """E[x | x̃] = x̃ + σ² ∇ log q_σ(x̃), and C's variance, by integrating the posterior."""
    data, sigma = Mixture(), 0.7
    for noisy in (-2.0, 0.1, 3.0):
        posterior = data.density(GRID) * stats.norm.pdf(noisy, GRID, sigma)
        mean = np.sum(posterior * GRID) / np.sum(posterior)
        np.testing.assert_allclose(mean, noisy + sigma**2 * data.score(noisy, sigma), rtol=1e-10)
        variance = np.sum(posterior * (GRID - mean) ** 2) / np.sum(posterior)
        h = 1e-5
        curvature = (data.score(noisy + h, sigma) - data.score(noisy - h, sigma)) / (2 * h)
        np.testing.assert_allclose(variance, sigma**2 + sigma**4 * curvature, rtol=1e-7)


@pytest.mark.parametrize("h", [0.01, 0.5, 1.9, 3.0])
def test_langevin_widens_a_gaussian(h):
    """One step is affine, x' - m = a (x - m) + √h z: V = a²V + h at V = c²/(1 - h/(4c²))."""
    m, c = 1.3, 0.9
    rows = jnp.array([[m], [m + 1.0], [m]])
    noise = jnp.array([[0.0], [0.0], [1.0]])[None]
    end = langevin(lambda x: -(x - m) / c**2, rows, h, num_steps=1, noise=noise).x
    still, away, kicked = np.array(end)[:, 0] - m
    a = away - still
    np.testing.assert_allclose([still, a], [0.0, 1 - h / (2 * c**2)], atol=1e-12)
    variance = c**2 / (1 - h / (4 * c**2))
    np.testing.assert_allclose(a**2 * variance + kicked**2, variance, rtol=1e-12)
    # From a start of variance 4 it is approached like a^2n, and left where h ≥ 4c².
    reached = 4.0
    for _ in range(20):
        reached = a**2 * reached + kicked**2
    np.testing.assert_allclose(reached - variance, a**40 * (4.0 - variance), rtol=1e-9, atol=1e-12)
    assert abs(a) < 1 and abs(1 - 4.1 * c**2 / (2 * c**2)) > 1


def test_langevin_descends_the_divergence():
    """d/dt KL(ρ ‖ p) = -½ E_ρ‖∇log ρ - ∇log p‖²: Gaussian ρ_t, whose moments solve linear ODEs."""
    c, m_0, v_0 = 0.8, 1.5, 3.0

    def moments(t):
        return m_0 * np.exp(-t / (2 * c**2)), c**2 + (v_0 - c**2) * np.exp(-t / c**2)

    def divergence(t):
        mean, variance = moments(t)
        return 0.5 * (variance / c**2 + mean**2 / c**2 - 1 - np.log(variance / c**2))

    for t in (0.0, 0.4, 2.0):
        mean, variance = moments(t)
        rho = stats.norm.pdf(GRID, mean, np.sqrt(variance)) * STEP
        gap = -(GRID - mean) / variance + GRID / c**2
        slope = (divergence(t + 1e-5) - divergence(t - 1e-5)) / 2e-5
        np.testing.assert_allclose(slope, -0.5 * np.sum(rho * gap**2), rtol=1e-6)


def test_the_score_ignores_the_weights_of_separate_modes():
    """Modes 16 standard deviations apart: only the valley shows the weights, or much noise."""
    few, many = (Mixture((w, 1 - w), (-8.0, 8.0), (1.0, 1.0)) for w in (0.2, 0.8))
    for center in (-8.0, 8.0):
        near = np.linspace(center - 3.0, center + 3.0, 13)
        assert np.abs(few.score(near) - many.score(near)).max() < 1e-10
        assert np.abs(few.score(near, 8.0) - many.score(near, 8.0)).min() > 0.01
    assert abs(few.score(0.0) - many.score(0.0)) > 1.0


def test_a_valley_takes_exponential_time():
    """The spectral gap of one Gaussian is 1/(2c²); of two modes it falls like e^-D."""
    # The slowest mode of dx = -x/(2c²) dt + dW decays like e^{-t/(2c²)}.
    np.testing.assert_allclose(
        scores.relaxation_time((0.5, 0.5), (0.0, 0.0), 0.7)[1], 2 * 0.7**2, rtol=1e-3
    )
    depth, time = np.transpose(
        [scores.relaxation_time((0.5, 0.5), (-g, g), 1.0) for g in (3.6, 4.2)]
    )
    assert 0.85 < np.diff(np.log(time))[0] / np.diff(depth)[0] < 1.05
    depth, time = scores.relaxation_time((0.5, 0.5), (-4.1867, 4.1867), 1.0)
    np.testing.assert_allclose([depth, time], [8.07, 6550], rtol=0.01)


def test_ncsn_without_its_weight_trains_the_smallest_level():
    """s = 0: the loss ½‖z/σ‖² is 10⁴ times as large at σ = 0.01 as at 1, weighted it is equal."""
    sigmas, z = jnp.array([1.0, 0.01]), jnp.ones((2, 3))
    level = jnp.arange(2)
    plain, weighted = (
        np.array(ncsn_loss(lambda x, level: 0.0 * x, 0.0 * z, level, z, sigmas, power=power))
        for power in (0.0, 2.0)
    )
    np.testing.assert_allclose(plain[1] / plain[0], 1e4, rtol=1e-5)
    np.testing.assert_allclose(weighted[1], weighted[0], rtol=1e-12)


def test_x_t_depends_on_x_0_at_every_step():
    """Corr(x_t, x_0) = √ᾱ_t for unit variance, by composing q(x_t | x_{t-1}); 0 given x_{t-1}."""
    beta = np.linspace(1e-4, 0.02, 1000)
    covariance, variance, correlation = 1.0, 1.0, []
    for b in beta:
        before, covariance = covariance, np.sqrt(1 - b) * covariance
        # Given x_{t-1}: Cov(x_t, x_0) - Cov(x_t, x_{t-1}) Cov(x_{t-1}, x_0)/Var(x_{t-1}).
        assert abs(covariance - np.sqrt(1 - b) * variance * before / variance) < 1e-15
        variance = (1 - b) * variance + b
        correlation.append(covariance / np.sqrt(variance))
    np.testing.assert_allclose(correlation, paper().signal_scale, rtol=1e-10)
    np.testing.assert_allclose([correlation[1], correlation[499]], [0.9999, 0.28], rtol=2e-3)


def test_every_noise_level_is_the_same_regression_and_chain():
    """Data at one point: ncsn_loss of σ s = g(x/σ) has no σ; steps ∝ σ² contract x by one share."""
    sigmas = jnp.array([8.0, 2.0, 0.5])
    z = jnp.array(np.random.default_rng(1).standard_normal((3, 5)))

    def g(x, level):
        return -jnp.tanh(x / sigmas[level][:, None]) / sigmas[level][:, None]

    wanted = 0.5 * np.sum((np.array(z) - np.tanh(z)) ** 2, axis=1)
    loss = jax.jit(lambda level: ncsn_loss(g, jnp.zeros((3, 5)), level, z, sigmas))
    for level in range(3):
        np.testing.assert_allclose(loss(level), wanted, rtol=1e-12)

    h = 0.1 * 0.5**2
    path = annealed_langevin_chains(
        lambda x, level: -x / sigmas[level][:, None] ** 2,
        jnp.ones((1, 1)),
        sigmas,
        step_size=h,
        steps_per_level=2,
        noise=jnp.zeros((3, 2, 1, 1)),
        keep=True,
    ).trajectory
    share = (1 - h / (2 * 0.5**2)) ** 2
    np.testing.assert_allclose(path[:, 0, 0], share ** np.arange(1, 4), rtol=1e-12)


def test_the_posterior_by_normalising_a_product():
    """q(x_t | x_{t-1}) q(x_{t-1} | x_0) on a grid of x_{t-1}: its moments, for t = 2 … T."""
    x_0, x_t = 0.8, -0.6
    steps = np.arange(len(BETA))
    posterior = dj.q_posterior(schedule(), jnp.full(6, x_0), jnp.full(6, x_t), steps)
    for t in range(1, len(BETA)):
        product = stats.norm.pdf(x_t, np.sqrt(1 - BETA[t]) * GRID, np.sqrt(BETA[t]))
        a = TRUTH.alpha_bar[t - 1]
        product *= stats.norm.pdf(GRID, np.sqrt(a) * x_0, np.sqrt(1 - a))
        product /= product.sum()
        mean = np.sum(product * GRID)
        np.testing.assert_allclose(posterior.mean[t], mean, rtol=1e-9)
        variance = np.sum(product * (GRID - mean) ** 2)
        np.testing.assert_allclose(posterior.variance[t], variance, rtol=1e-9)


class LinearModel:
    """T = 3, x_0 ~ N(m, c²), and p_θ(x_{t-1} | x_t) = N(a_t x_t + b_t, s_t), unlike q's own.

    The joint law of x = (x_0 … x_3) is x = center + mix @ n, n four standard normals.
    """

    beta = np.array([0.1, 0.3, 0.6])
    m, c = 0.7, 0.5
    a, b, s = np.array([0.9, 0.7, 0.5]), np.array([0.05, 0.2, -0.1]), np.array([0.06, 0.3, 0.4])

    def __init__(self):
        self.center, self.mix = np.zeros(4), np.zeros((4, 4))
        self.center[0], self.mix[0, 0] = self.m, self.c
        for t in range(1, 4):
            keep = np.sqrt(1 - self.beta[t - 1])
            self.center[t], self.mix[t] = keep * self.center[t - 1], keep * self.mix[t - 1]
            self.mix[t, t] = np.sqrt(self.beta[t - 1])

    def expected_log_normal(self, weights, offset, variance):
        """E_q log N(r; 0, variance) of the residual r = weights · x - offset."""
        r, spread = weights @ self.center - offset, weights @ self.mix
        return -0.5 * (np.log(2 * np.pi * variance) + (r**2 + spread @ spread) / variance)

    def direct(self):
        """E_q[log q(x_1 … x_3 | x_0) - log p_θ(x_0 … x_3)], factor by factor along the chain."""
        unit, total = np.eye(4), -self.expected_log_normal(np.eye(4)[3], 0.0, 1.0)
        for t in range(1, 4):
            beta = self.beta[t - 1]
            forward = unit[t] - np.sqrt(1 - beta) * unit[t - 1]
            backward = unit[t - 1] - self.a[t - 1] * unit[t]
            total += self.expected_log_normal(forward, 0.0, beta)
            total -= self.expected_log_normal(backward, self.b[t - 1], self.s[t - 1])
        return total

    def log_evidence_and_gap(self):
        """E log p_θ(x_0), and E KL(q(x_1 … x_3 | x_0) ‖ p_θ(x_1 … x_3 | x_0)), by matrices."""
        center, mix = np.zeros(4), np.zeros((4, 4))
        mix[3, 3] = 1.0
        for t in (2, 1, 0):
            center[t] = self.a[t] * center[t + 1] + self.b[t]
            mix[t] = self.a[t] * mix[t + 1]
            mix[t, t] = np.sqrt(self.s[t])
        cov_p, cov_q = mix @ mix.T, self.mix @ self.mix.T
        evidence = self.expected_log_normal(np.eye(4)[0], center[0], cov_p[0, 0])
        # Given x_0: means center + gain (x_0 - center_0), and one covariance for all x_0.
        gain_p, gain_q = cov_p[1:, 0] / cov_p[0, 0], cov_q[1:, 0] / cov_q[0, 0]
        given_p = cov_p[1:, 1:] - np.outer(gain_p, cov_p[0, 1:])
        given_q = cov_q[1:, 1:] - np.outer(gain_q, cov_q[0, 1:])
        apart = self.center[1:] - center[1:] - gain_p * (self.m - center[0])
        second = np.outer(apart, apart) + self.c**2 * np.outer(gain_q - gain_p, gain_q - gain_p)
        ratio = np.linalg.solve(given_p, given_q)
        gap = np.trace(ratio) - 3 - np.linalg.slogdet(ratio)[1]
        return evidence, 0.5 * (gap + np.trace(np.linalg.solve(given_p, second)))


def test_the_bound_splits_into_steps():
    """Along the chain, as L_T + Σ L_{t-1} + L_0, and as evidence and gap: three ways, one number.

    The terms are those of the code, their expectations by Gauss–Hermite quadrature, exact for
    squares.
    """
    model = LinearModel()
    process = dj.schedule_from_beta(model.beta, dtype=jnp.float64)
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    weights = np.outer(weights, weights).ravel() / (2 * np.pi)
    first, second = (axis.ravel() for axis in np.meshgrid(nodes, nodes, indexing="ij"))
    x_0, noise = jnp.array(model.m + model.c * first), jnp.array(second)

    @jax.jit
    def terms_of_the_code():
        q = dj.q_mean_variance(process, x_0, 2)
        terms = [normal_kl(q.mean, q.log_variance, 0.0, 0.0)]
        for t in (2, 1):
            x_t = dj.q_sample(process, x_0, t, noise)
            posterior = dj.q_posterior(process, x_0, x_t, t)
            mean = model.a[t] * x_t + model.b[t]
            log_s = np.log(model.s[t])
            terms.append(normal_kl(posterior.mean, posterior.log_variance, mean, log_s))
        x_1 = dj.q_sample(process, x_0, 0, noise)
        mean = model.a[0] * x_1 + model.b[0]
        return [*terms, -dj.likelihood.normal_log_density(x_0, mean, np.log(model.s[0]))]

    values = [np.array(term) for term in terms_of_the_code()]
    assert all((term >= 0).all() for term in values[:3])
    terms = [np.sum(weights * term) for term in values]
    np.testing.assert_allclose(sum(terms), model.direct(), rtol=1e-10)
    evidence, gap = model.log_evidence_and_gap()
    np.testing.assert_allclose(model.direct(), gap - evidence, rtol=1e-10)
    assert gap > 0.1 and all(abs(term) > 0.01 for term in terms)


def test_a_ratio_of_laws_of_different_variables_is_no_divergence():
    """The exact reverse of N(0, ½²): E log q(x_t|x_{t-1})/p_θ(x_{t-1}|x_t) = ½ log v/β < 0."""
    truth = GaussianBound(0.0, 0.5, TRUTH)
    ratio = 0.5 * np.log(truth.optimal / BETA)
    assert (ratio < -1e-3).all()
    # Term by term against the right divergences, which are ≥ 0.
    assert (truth.terms(truth.optimal)[1:] > 0).all()


def test_the_bound_of_gaussian_data_has_the_numbers_on_the_page():
    """N(0, ½²): shares and gaps of docs/results/theory, by the closed form of the oracles."""

    def bits(count, kind):
        truth = GaussianBound(0.0, 0.5, Tables(paper(count).beta))
        variance = truth.kinds[kind]
        ratio = (truth.optimal / variance)[1:]
        gap = truth.prior_gap + 0.5 * np.sum(ratio - 1 - np.log(ratio))
        return truth.terms(variance)[1:] / np.log(2), gap / np.log(2)

    terms, _ = bits(1000, "optimal")
    np.testing.assert_allclose(terms[:99].sum() / terms.sum(), 0.85, atol=0.005)
    np.testing.assert_allclose(bits(1000, "fixed_large")[1], 0.0016, atol=5e-5)
    np.testing.assert_allclose(bits(10, "fixed_large")[1], 0.15, atol=0.005)
    drawn = process.GaussianBound(paper(10), 0.5)
    for name, kind in (("β_t", "fixed_large"), ("β̃_t", "fixed_small")):
        terms, gap = bits(10, kind)
        np.testing.assert_allclose(drawn.terms(name), terms, rtol=1e-8)
        np.testing.assert_allclose(drawn.gap(name), gap, rtol=1e-8)


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_the_weight_of_the_epsilon_form(variance):
    """‖μ̃ - μ_θ‖²/(2σ²) = w ‖ε - ε̂‖² by p_mean_variance, and KL - C the same, example by example."""
    rng = np.random.default_rng(2)
    x_0, noise, epsilon_hat = (jnp.array(rng.standard_normal((5, 3))) for _ in range(3))
    t = np.arange(1, 6)

    @jax.jit
    def both(t):
        x_t = dj.q_sample(schedule(), x_0, t, noise)
        posterior = dj.q_posterior(schedule(), x_0, x_t, t)
        reverse = dj.p_mean_variance(schedule(), epsilon_hat, x_t, t, variance=variance, clip=False)
        kl = normal_kl(posterior.mean, posterior.log_variance, reverse.mean, reverse.log_variance)
        weight = dj.losses.bound_weight(schedule(), t, target="epsilon", variance=variance)
        return posterior, reverse, kl, weight

    posterior, reverse, kl, ours = both(t)
    sigma2 = np.array(reverse.variance)[:, 0]
    weight = BETA[1:] ** 2 / (2 * sigma2 * (1 - BETA[1:]) * (1 - TRUTH.alpha_bar[1:]))
    error = np.sum((np.array(noise) - np.array(epsilon_hat)) ** 2, axis=1)
    apart = np.sum((np.array(posterior.mean) - np.array(reverse.mean)) ** 2, axis=1)
    np.testing.assert_allclose(apart / (2 * sigma2), weight * error, rtol=1e-10)
    ratio = TRUTH.posterior_variance[1:] / sigma2
    constant = 1.5 * (ratio - 1 - np.log(ratio))
    np.testing.assert_allclose(np.sum(kl, axis=1), weight * error + constant, rtol=1e-10)
    np.testing.assert_allclose(ours, weight, rtol=1e-10)


def test_the_network_input_has_the_square_root_of_alpha_bar():
    """√ᾱ_t x_0 + √(1-ᾱ_t) ε with the code's t, not ᾱ_t x_0; from the β alone."""
    rng = np.random.default_rng(3)
    x_0, noise = (rng.standard_normal((6, 3)) for _ in range(2))
    shown = {}

    def network(x_t, timesteps):
        shown.update(x_t=np.array(x_t), timesteps=np.array(timesteps))
        return jnp.zeros_like(x_t)

    dj.simple_loss(schedule(), network, jnp.array(x_0), jnp.arange(6), jnp.array(noise))
    alpha_bar = np.cumprod(1 - BETA)[:, None]
    wanted = np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * noise
    np.testing.assert_allclose(shown["x_t"], wanted, rtol=1e-12)
    np.testing.assert_array_equal(shown["timesteps"], np.arange(6))


def test_simple_loss_is_denoising_score_matching():
    """Per example: (1-ᾱ)‖s - ∇log q(x_t|x_0)‖², and Vincent's loss of x_t/√ᾱ times 2ν²."""
    rng = np.random.default_rng(4)
    x_0, noise = (rng.standard_normal((6, 3)) for _ in range(2))
    t, alpha_bar = jnp.arange(6), TRUTH.alpha_bar[:, None]

    def network(x_t, timesteps):
        return jnp.tanh(x_t) + 0.1 * timesteps[:, None]

    loss = dj.simple_loss(schedule(), network, jnp.array(x_0), t, jnp.array(noise))
    x_t = np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * noise
    score = dj.convert_prediction(
        schedule(), network(jnp.array(x_t), t), jnp.array(x_t), t, source="epsilon", target="score"
    )
    wanted = -(x_t - np.sqrt(alpha_bar) * x_0) / (1 - alpha_bar)
    matching = (1 - alpha_bar) * (np.array(score) - wanted) ** 2
    np.testing.assert_allclose(loss, matching.mean(axis=1), rtol=1e-10)

    def score_of_y(y):
        return -network(np.sqrt(alpha_bar) * y, t) / nu[:, None]

    nu = np.array(noise_levels(schedule()))[::-1]
    np.testing.assert_allclose(nu, np.sqrt(1 / TRUTH.alpha_bar - 1), rtol=1e-10)
    vincent = denoising_score_matching(score_of_y, jnp.array(x_0), jnp.array(noise), jnp.array(nu))
    np.testing.assert_allclose(loss, 2 * nu**2 * np.array(vincent) / 3, rtol=1e-10)


def test_the_numbers_on_the_page():
    """Of the paper's schedule, with the code's t one less than the paper's."""
    assert f"{17**64:.1e}" == "5.6e+78"
    np.testing.assert_allclose([1 / (1 - 1 / 4), 1 / (1 - 0.1 / 4)], [4 / 3, 1.026], rtol=1e-3)
    assert round(geometric_ratio(3072), 2) == 1.04
    assert len(ncsnv2_noise_levels(50.0, 0.01, 3072)) == 219

    schedule = paper()
    beta, alpha_bar = np.array(schedule.beta), np.array(schedule.alpha_bar)
    np.testing.assert_allclose(alpha_bar[-1], 4.0e-5, atol=5e-7)
    np.testing.assert_allclose(schedule.signal_scale[-1], 0.006, atol=5e-4)
    half = {name: np.argmax(np.array(s.alpha_bar) < 0.5) + 1 for name, s in all_schedules().items()}
    assert half["linear"] == 260 and half["cosine"] == 497
    np.testing.assert_allclose(alpha_bar[259] / 4 / (1 - 0.75 * alpha_bar[259]), 0.2, atol=0.002)

    share = np.array(schedule.posterior_variance) / beta
    np.testing.assert_allclose(share[[1, 99]], [0.45, 0.982], atol=0.005)
    constant = 0.5 * (share[1] - 1 - np.log(share[1])) / np.log(2)
    np.testing.assert_allclose(constant, 0.18, atol=0.005)
    langevin = beta / (1 - alpha_bar)
    np.testing.assert_allclose(langevin[1], 0.55, atol=0.005)
    assert 0.0095 < langevin[100:].min() and langevin[100:].max() < 0.0205

    weight = np.array(dj.losses.bound_weight(schedule, np.arange(1000), target="epsilon"))[1:]
    np.testing.assert_allclose(weight[[0, 347, 998]], [0.27, 0.0050, 0.010], rtol=0.03)
    assert np.argmin(weight) == 347
    assert 1 / 3 - 0.02 < weight[:99].sum() / weight.sum() < 1 / 3 + 0.02
    prior = 0.5 * (alpha_bar[-1] * (1 / 3 - 1) - np.log1p(-alpha_bar[-1]))
    assert prior / np.log(2) < 2e-5
    np.testing.assert_allclose([beta.max(), paper(20).beta.max()], [0.02, 0.65], atol=0.005)


def step_coefficients(sampler):
    """Of x_t, x_0 and z in every step of a sampler [S, 3]: the kernel is linear in them."""
    x_t, x_0, z = jnp.eye(3)

    def at(t):
        return sampler.step(lambda x, s: x_0, x_t, jnp.full(3, t), z, ()).x

    return np.array(jax.jit(jax.vmap(at))(jnp.arange(sampler.num_steps)))


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [(0, 1, 2, 3, 4, 5), (0, 2, 5)])
def test_ddim_has_the_marginals_of_ddpm(eta, steps):
    """x_t = A x_0 + N(0, V) from x_T down, by the sampler's own affine maps, on any grid."""
    alpha_bar = TRUTH.alpha_bar[list(steps)]
    coefficients = step_coefficients(dj.ddim(dj.respace(schedule(), steps), eta=eta))
    A, V = np.sqrt(alpha_bar[-1]), 1 - alpha_bar[-1]
    for t in range(len(steps) - 1, 0, -1):
        of_x_t, of_x_0, of_z = coefficients[t]
        A, V = of_x_t * A + of_x_0, of_x_t**2 * V + of_z**2
        np.testing.assert_allclose([A, V], [np.sqrt(alpha_bar[t - 1]), 1 - alpha_bar[t - 1]])
        assert (of_z > 0) == (eta > 0)
    np.testing.assert_allclose(coefficients[0], [0.0, 1.0, 0.0], atol=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_bound_of_ddim_weighs_the_same_errors(eta):
    """The KL between steps that know x_0 and that guess it is γ_t (ε - ε̂)²; γ_t = w_t at η = 1."""
    coefficients = step_coefficients(dj.ddim(schedule(), eta=eta))
    weight = dj.losses.bound_weight(
        schedule(), np.arange(6), target="epsilon", variance="fixed_small"
    )
    x_0, noise, epsilon_hat = 0.4, -1.1, 0.7
    for t in range(1, 6):
        a, a_prev = TRUTH.alpha_bar[t], TRUTH.alpha_bar[t - 1]
        x_t = np.sqrt(a) * x_0 + np.sqrt(1 - a) * noise
        guess = (x_t - np.sqrt(1 - a) * epsilon_hat) / np.sqrt(a)
        _, of_x_0, of_z = coefficients[t]
        kl = (of_x_0 * (x_0 - guess)) ** 2 / (2 * of_z**2)
        sigma2 = eta**2 * TRUTH.posterior_variance[t]
        root = np.sqrt((1 - a) * a_prev / a) - np.sqrt(1 - a_prev - sigma2)
        gamma = root**2 / (2 * sigma2)
        np.testing.assert_allclose(kl, gamma * (noise - epsilon_hat) ** 2, rtol=1e-9)
        if eta == 1.0:
            np.testing.assert_allclose(gamma, weight[t], rtol=1e-9)


def test_ddim_is_euler_and_eta_adds_a_langevin_step():
    """η = 0 is y + (ν' - ν) ε̂; a small η a Langevin step of size σ_t² behind it, but for η⁴."""
    nu = np.sqrt(1 / TRUTH.alpha_bar - 1)
    x_t, x_0_hat, z = 0.9, -0.4, 0.6
    at = {
        eta: step_coefficients(dj.ddim(schedule(), eta=eta)) @ [x_t, x_0_hat, z]
        for eta in (0.0, 0.1, 0.2)
    }
    for t in (1, 3, 5):
        a, a_prev = TRUTH.alpha_bar[t], TRUTH.alpha_bar[t - 1]
        epsilon_hat = (x_t - np.sqrt(a) * x_0_hat) / np.sqrt(1 - a)
        euler = x_t / np.sqrt(a) + (nu[t - 1] - nu[t]) * epsilon_hat
        np.testing.assert_allclose(at[0.0][t], np.sqrt(a_prev) * euler, rtol=1e-10)
        score = jnp.array([-epsilon_hat / np.sqrt(1 - a_prev)])
        error = {}
        for eta in (0.1, 0.2):
            size = eta**2 * TRUTH.posterior_variance[t]
            walked = langevin_step(score, jnp.array([at[0.0][t]]), size, jnp.array([z]))
            error[eta] = at[eta][t] - float(walked[0])
        np.testing.assert_allclose(error[0.2] / error[0.1], 16.0, rtol=0.05)
        assert abs(error[0.1]) < 1e-4


def test_the_flow_carries_the_blurred_densities():
    """∂p_ν/∂ν = -∂(p_ν u)/∂y with u = -ν ∇ log p_ν, by central differences on a mixture."""
    data, h = Mixture(), 1e-4
    y = np.linspace(-4.0, 5.0, 31)

    def flux(y, nu):
        return data.density(y, nu) * -nu * data.score(y, nu)

    for nu in (0.2, 1.0, 3.0):
        change = (data.density(y, nu + h) - data.density(y, nu - h)) / (2 * h)
        outflow = (flux(y + h, nu) - flux(y - h, nu)) / (2 * h)
        np.testing.assert_allclose(change, -outflow, atol=1e-7)
        assert np.abs(change).max() > 1e-2


def test_the_best_variance_of_a_point_and_of_pure_noise():
    """m_t = 0 leaves β̃_t; data N(0, 1), whose Var(x_0 | x_t) is 1-ᾱ_t, ask for β_t."""
    point = np.exp(dj.optimal_log_variance(schedule(), np.zeros(6)))
    np.testing.assert_allclose(point[1:], TRUTH.posterior_variance[1:], rtol=1e-10)
    noise = np.exp(dj.optimal_log_variance(schedule(), 1 - TRUTH.alpha_bar))
    np.testing.assert_allclose(noise[1:], BETA[1:], rtol=1e-10)


def test_the_best_variance_has_the_numbers_on_the_page():
    """20 steps and N(0, ½²) at the grid's third step, the papers' t = 159."""
    schedule = paper(20)
    assert schedule.timesteps[3] + 1 == 159
    snr = np.exp(np.array(dj.linear_schedule(dtype=jnp.float64).log_snr))
    best = np.exp(dj.optimal_log_variance(schedule, 1 / (4 + snr)))
    ratio = np.array([best[3], schedule.posterior_variance[3]]) / schedule.beta[3]
    np.testing.assert_allclose(ratio, [0.79, 0.49], atol=0.005)
    drawn = process.GaussianBound(schedule, 0.5)
    np.testing.assert_allclose(drawn.exact, best, rtol=1e-8)


def test_the_density_changes_along_the_flow_by_the_trace():
    """d/dν log p_ν(y_ν) = -∂u/∂y with y' = u = -ν ∇ log p_ν, on a mixture."""
    data, h = Mixture(), 1e-4
    y = np.linspace(-3.0, 4.0, 15)
    for nu in (0.3, 1.0):

        def velocity(y, nu=nu):
            return -nu * data.score(y, nu)

        ahead, behind = y + h * velocity(y), y - h * velocity(y)
        change = np.log(data.density(ahead, nu + h) / data.density(behind, nu - h)) / (2 * h)
        trace = (velocity(y + h) - velocity(y - h)) / (2 * h)
        np.testing.assert_allclose(change, -trace, atol=1e-5)
        assert np.abs(trace).max() > 0.1


def test_few_steps_of_ddim_are_nearer_the_data():
    """Ten steps with a mixture's exact denoiser; 40 of two solvers to the exact end."""
    x_T = stats.norm.ppf((np.arange(16_000) + 0.5) / 16_000)
    missed = [flow.distance(flow.samples(dj.ddim(paper(10), eta=eta), x_T)) for eta in (0.0, 1.0)]
    np.testing.assert_allclose(missed, [0.10, 0.17], atol=0.012)

    whole = paper()
    grid = dj.respace(whole, dj.karras_timesteps(whole, 40))
    x_T = np.linspace(-2.0, 2.0, 101)
    exact = flow.ends(x_T)
    errors = [
        np.sqrt(np.mean((flow.samples(make(grid), x_T) - exact) ** 2))
        for make in (dj.ddim, dj.dpm_solver_pp)
    ]
    np.testing.assert_allclose(errors, [0.045, 0.008], atol=5e-4)


def test_the_exact_ends_of_the_flow():
    """Quantiles against the ODE, integrated by the oracles in σ = ν."""
    data = MixtureData(tuple(flow.WEIGHTS), tuple(flow.MEANS), (flow.STD,) * 2, np.array([0.5]))
    keep = float(paper().alpha_bar[-1])
    x_T = np.array([-1.5, 0.2, 1.1])
    nu = np.sqrt(1 / keep - 1)
    y = data.ode_solution(x_T / np.sqrt(keep), nu, 1e-5)
    np.testing.assert_allclose(flow.ends(x_T), y, atol=1e-4)


@pytest.mark.slow
def test_the_figures_are_drawn(tmp_path):
    """The quick ones; theory.json belongs to a run of all figures."""
    names = ("integration", "posterior", "weights", "kinds", "chain")
    numbers = theory_figures(TheoryConfig(out=tmp_path, only=names))
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(names)
    signal = np.array(paper().signal_scale)[np.array(numbers["chain"]["t"][1:]) - 1]
    np.testing.assert_allclose(numbers["chain"]["signal_scale"][1:], signal, rtol=1e-6)
    assert numbers["integration"] == {"normal": 1.0, "uniform": -12.0}
    with pytest.raises(ValueError, match="--only knows the figures.*'lengevin'"):
        theory_figures(TheoryConfig(out=tmp_path, only=("lengevin",)))
