"""Score matching against closed forms for linear scores, whose losses are quadratic, and against
Vincent's identities on a Gaussian mixture."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import ddpm_jax as dj
from ddpm_jax.score import (
    PROJECTIONS,
    denoising_score_matching,
    exact_score_matching,
    geometric_noise_levels,
    ncsn_loss,
    projections,
    score_of_energy,
    sliced_score_matching,
)

rng = np.random.default_rng(0)
SIGMA = 0.7
SIGMAS = geometric_noise_levels(2.0, 0.1, 5)
X, Z = rng.standard_normal((4, 2, 3)), rng.standard_normal((4, 2, 3))
V = rng.standard_normal((3, 4, 2, 3))
LEVEL = np.array([0, 4, 2, 2])
NET = {
    "inner": jnp.float32(rng.standard_normal((6, 5)) / 2),
    "bias": jnp.float32(rng.standard_normal(5) / 2),
    "outer": jnp.float32(rng.standard_normal((5, 6)) / 2),
}
f32 = partial(np.asarray, dtype=np.float32)

# One name an objective: (score_fn, x [B, ...]) -> [B], whatever else it needs filled in.
OBJECTIVES = {
    "exact": exact_score_matching,
    "sliced": lambda s, x: sliced_score_matching(s, x, f32(V[:, : len(x)])),
    "reduced": lambda s, x: sliced_score_matching(s, x, f32(V[:, : len(x)]), variance_reduced=True),
    "denoising": lambda s, x: denoising_score_matching(s, x, f32(Z[: len(x)]), SIGMA),
    "ncsn": lambda s, x: ncsn_loss(
        lambda x, level: s(x), x, LEVEL[: len(x)], f32(Z[: len(x)]), SIGMAS
    ),
}


def net_score(params, x):
    """Nothing like a gradient, so that ∇s is not symmetric."""
    flat = x.reshape(len(x), -1)
    return (jnp.tanh(flat @ params["inner"] + params["bias"][None]) @ params["outer"]).reshape(
        x.shape
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_linear_score_has_the_loss_of_its_formula(name):
    """s = -A(x - m), A of no symmetry: ∇s = -A."""
    a, m = rng.standard_normal((6, 6)), rng.standard_normal(6)

    def score(x, xp=np):
        return -((x.reshape(-1, 6) - xp.asarray(m, x.dtype)[None]) @ xp.asarray(a.T, x.dtype))

    got = OBJECTIVES[name](lambda x: score(x, jnp).reshape(x.shape), f32(X))
    s, v, z = score(X), V.reshape(3, 4, 6), Z.reshape(4, 6)
    forms = -np.einsum("kbi,ij,kbj->kb", v, a, v).mean(0)
    sigma = {"denoising": np.full((4, 1), SIGMA), "ncsn": np.asarray(SIGMAS)[LEVEL, None]}
    sigma = np.float64(sigma.get(name, 1.0))
    residual = score((X.reshape(4, 6) + sigma * z).reshape(X.shape)) + z / sigma
    expected = {
        "exact": 0.5 * (s**2).sum(1) - np.trace(a),
        "sliced": 0.5 * (np.einsum("kbi,bi->kb", v, s) ** 2).mean(0) + forms,
        "reduced": 0.5 * (s**2).sum(1) + forms,
        "denoising": 0.5 * (residual**2).sum(1),
        "ncsn": 0.5 * ((sigma * residual) ** 2).sum(1),
    }[name]
    assert got.shape == (4,)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


def points(mean, covariance):
    """2d points with exactly this mean and covariance: enough for what is quadratic in x."""
    steps = np.linalg.cholesky(covariance).T * np.sqrt(len(mean))
    return mean + np.concatenate([steps, -steps])


def test_the_best_linear_score_is_the_gaussians_own():
    """s = b - A x: the expected loss is quadratic in (A, b), so one Newton step finds its minimum,
    A = C⁻¹ and b = C⁻¹ μ, C with σ² I added where noise is."""
    mean = np.array([0.5, -1.0, 2.0])
    covariance = np.array([[1.0, 0.3, -0.2], [0.3, 0.8, 0.1], [-0.2, 0.1, 0.6]])
    x, z = points(mean, covariance), points(np.zeros(3), np.eye(3))
    x, z = f32(np.repeat(x, 6, 0)), f32(np.tile(z, (6, 1)))
    v = f32(np.broadcast_to(np.sqrt(3) * np.eye(3)[:, None], (3, 36, 3)))  # mean of vvᵀ: I

    def losses(theta):
        def score(x, level=None):
            return theta[None, 9:] - x @ theta[:9].reshape(3, 3).T

        each = (
            exact_score_matching(score, x),
            sliced_score_matching(score, x, v),
            sliced_score_matching(score, x, v, variance_reduced=True),
            denoising_score_matching(score, x, z, SIGMA),
            ncsn_loss(score, x, 3, z, SIGMAS),
        )
        return jnp.mean(jnp.stack(each), axis=1)

    gradient = jax.jit(jax.jacrev(losses))
    start = np.linspace(-1, 1, 12)
    # Of a quadratic, differences of the gradient are the Hessian whatever their size.
    shifts = np.stack([gradient(f32(start + shift)) for shift in np.eye(12)], axis=-1)
    at_start = np.float64(gradient(f32(start)))
    for name, sigma in enumerate([0.0, 0.0, 0.0, SIGMA, float(SIGMAS[3])]):
        precision = np.linalg.inv(covariance + sigma**2 * np.eye(3))
        best = np.concatenate([precision.ravel(), precision @ mean])
        hessian = shifts[name] - at_start[name][:, None]
        assert np.linalg.eigvalsh((hessian + hessian.T) / 2).min() > 1e-3
        found = start - np.linalg.solve(hessian, at_start[name])
        np.testing.assert_allclose(found, best, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(gradient(f32(best))[name], 0.0, atol=2e-5)


def test_the_exact_trace_and_its_gradient_are_the_jacobians():
    def naive(params):
        def one(x):
            s = net_score(params, x[None])[0]
            jacobian = jax.jacrev(lambda x: net_score(params, x[None])[0].ravel())(x)
            return 0.5 * jnp.sum(s**2) + jnp.trace(jacobian.reshape(6, 6))

        return jax.vmap(one)(f32(X))

    def ours(params):
        return exact_score_matching(partial(net_score, params), f32(X))

    @jax.jit
    def both(params):
        return [(f(params), jax.jacrev(f)(params)) for f in (ours, naive)]

    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, *both(NET))


def every_loss(params, x):
    """All objectives at once, to compile once: [5, B]."""
    return jnp.stack([loss(partial(net_score, params), x) for loss in OBJECTIVES.values()])


def test_gradients_in_the_parameters():
    def losses(params):
        return jnp.mean(every_loss(params, f32(X)), axis=1)

    # The central difference is off by about 1e-4, half of it rounding.
    check_grads(jax.jit(losses), (NET,), order=1, modes=["rev"], eps=1e-2, rtol=1e-2, atol=1e-2)


def test_every_example_is_by_itself():
    """The loss of the first row does not see the others."""
    whole = jax.jit(every_loss)(NET, f32(X))
    first = jax.jit(every_loss)(NET, f32(X[:1]))
    np.testing.assert_allclose(first, whole[:, :1], rtol=1e-5, atol=1e-5)


def keys(num):
    return dj.example_keys(jax.random.key(1), np.arange(num))


draw = jax.jit(projections, static_argnums=(1, 2, 3))


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_projections_have_the_identity_for_their_second_moment(kind):
    """And the fourth moments that tell the kinds apart. Each depends on its key and place alone."""
    drawn = draw(keys(5000), 2, (2, 2), kind)
    assert drawn.shape == (2, 5000, 2, 2) and drawn.dtype == jnp.float32
    np.testing.assert_array_equal(draw(keys(3), 1, (2, 2), kind), drawn[:1, :3])
    v = np.float64(drawn).reshape(-1, 4)
    outer = v[:, :, None] * v[:, None, :]
    error = outer.std(0) / np.sqrt(len(v))
    assert (np.abs(outer.mean(0) - np.eye(4)) <= 4.5 * error + 1e-6).all()
    assert (np.abs((drawn[0] * drawn[1]).mean(0)) < 4.5 / np.sqrt(5000)).all()
    fourth = {"rademacher": 1.0, "gaussian": 3.0, "sphere": 3 * 4 / (4 + 2)}[kind]
    np.testing.assert_allclose((v**4).mean(), fourth, rtol=0.05)
    if kind != "gaussian":
        np.testing.assert_allclose((v**2).sum(1), 4.0, rtol=1e-5)


def scattered(score, x, kind):
    """Both forms of the sliced loss at x 8,000 times over, each time with its own projection."""

    @jax.jit
    def losses(x, keys):
        v = projections(keys, 1, x.shape[1:], kind)
        return [sliced_score_matching(score, x, v, variance_reduced=r) for r in (False, True)]

    return [np.float64(loss) for loss in losses(np.tile(f32(x), (8000, 1, 1)), keys(8000))]


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_sliced_is_exact_on_average(kind):
    score = partial(net_score, NET)
    truth = float(exact_score_matching(score, f32(X[:1]))[0])
    for losses in scattered(score, X[0], kind):
        assert abs(losses.mean() - truth) < 4 * losses.std() / np.sqrt(8000)


@pytest.mark.parametrize("size", [0.3, 3.0])
def test_how_much_the_reduced_form_scatters_less(size):
    """For Gaussian v the variances are 2‖½ssᵀ + J‖² and 2‖J‖², J symmetric: of s = -x in d = 6,
    2 (¼‖x‖⁴ - ‖x‖² + 6) and 12. The reduced form is the better one where ‖x‖² > 4."""
    x = size * X[0] / np.linalg.norm(X[0])
    plain, reduced = scattered(lambda x: -x, x, "gaussian")
    np.testing.assert_allclose(reduced.var(), 12.0, rtol=0.1)
    np.testing.assert_allclose(plain.var(), 2 * (size**4 / 4 - size**2 + 6), rtol=0.15)


class PerturbedPair:
    """Two data points of unequal weight under N(0, σ²), integrated by the trapezoidal rule."""

    data, weights = np.array([-0.8, 0.9]), np.array([0.3, 0.7])
    nodes = np.linspace(-8, 8, 161)
    quadrature = np.exp(-0.5 * nodes**2)
    x = np.repeat(data, 161)[:, None]
    z = np.tile(nodes, 2)[:, None]
    weight = np.outer(weights, quadrature / quadrature.sum()).ravel()

    @classmethod
    def true_score(cls, x):
        """∇ log Σ_k w_k N(x; x_k, σ²), in float64."""
        away = x - cls.data[None]
        share = cls.weights * np.exp(-0.5 * (away / SIGMA) ** 2)
        return -(share * away).sum(1, keepdims=True) / share.sum(1, keepdims=True) / SIGMA**2


def test_denoising_is_explicit_score_matching_but_for_a_constant():
    """Vincent 2011 and Hyvärinen 2005: all three differ by terms without θ."""
    pair = PerturbedPair
    noisy = pair.x + SIGMA * pair.z
    true = f32(pair.true_score(noisy))

    def score(theta, x):
        return theta[0] * jnp.tanh(theta[1] * x) + theta[2] * x + theta[3]

    def losses(theta):
        s = partial(score, theta)
        each = (
            denoising_score_matching(s, f32(pair.x), f32(pair.z), SIGMA),
            exact_score_matching(s, f32(noisy)),
            0.5 * jnp.square(s(f32(noisy)) - true)[:, 0],
        )
        return jnp.stack([jnp.sum(f32(pair.weight) * loss) for loss in each])

    thetas = f32(np.random.default_rng(3).standard_normal((6, 4)))
    values, gradients = jax.jit(jax.vmap(lambda t: (losses(t), jax.jacrev(losses)(t))))(thetas)
    values, gradients = np.asarray(values), np.asarray(gradients)
    np.testing.assert_allclose(gradients[:, 0], gradients[:, 2], rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(gradients[:, 1], gradients[:, 2], rtol=1e-3, atol=2e-4)
    for implicit in (0, 1):
        constant = values[:, implicit] - values[:, 2]
        np.testing.assert_allclose(constant, constant[0], atol=1e-4)
    # E[∇ log p]²: what exact score matching leaves out.
    fisher = np.sum(pair.weight * pair.true_score(noisy)[:, 0] ** 2)
    np.testing.assert_allclose(values[0, 2] - values[0, 1], 0.5 * fisher, rtol=1e-4)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_ladder_weighs_each_level(power):
    """Row by row σ^p times the denoising loss of its own σ; levels reach the score as int32 [B]."""

    def score(x, level):
        assert level.shape == x.shape[:1] and level.dtype == jnp.int32
        return jnp.sin(x) / (1.0 + level.astype(jnp.float32))[:, None, None]

    x, z, sigma = f32(X), f32(Z), np.asarray(SIGMAS)[LEVEL]
    got = ncsn_loss(score, x, LEVEL, z, SIGMAS, power=power)
    at_level = partial(score, level=jnp.asarray(LEVEL, jnp.int32))
    expected = sigma**power * denoising_score_matching(at_level, x, z, sigma)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_ladder_is_stable_at_tiny_noise():
    """σ s + z of the score -2z/σ is -z: no 1/σ² has to cancel."""
    sigmas, z = np.array([1.0, 1e-25], np.float32), f32(Z)
    got = ncsn_loss(lambda x, level: -2e25 * z, f32(X), 1, z, sigmas)
    np.testing.assert_allclose(got, 0.5 * (Z**2).sum((1, 2)), rtol=1e-5)


def test_levels_outside_the_ladder_are_not_numbers():
    losses = ncsn_loss(lambda x, level: x, f32(X), np.array([0, -1, 5, 4]), f32(Z), SIGMAS)
    np.testing.assert_array_equal(np.isnan(losses), [False, True, True, False])


def test_the_score_of_an_energy_is_its_negative_gradient():
    """f = Σ(x⁴/4 + c x) per example; a constant, as log Z is one, changes nothing."""

    def energy(x, c=0.0):
        return jnp.sum(x**4 / 4 + c * x, axis=(1, 2))

    x = f32(X)
    np.testing.assert_allclose(score_of_energy(energy)(x), -(X**3), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(score_of_energy(energy)(x, 2.0), -(X**3) - 2.0, rtol=1e-5, atol=1e-6)
    shifted = score_of_energy(lambda x: energy(x) + 123.0)
    np.testing.assert_array_equal(shifted(x), score_of_energy(energy)(x))


def test_an_energys_parameters_are_fitted_without_its_normaliser():
    """f = κ‖x‖²/2: the exact loss is κ²‖x‖²/2 - 6κ, its derivative κ‖x‖² - 6."""

    def loss(kappa):
        score = score_of_energy(lambda x: 0.5 * kappa * jnp.sum(x**2, axis=(1, 2)))
        return exact_score_matching(score, f32(X))

    squares = (X**2).sum((1, 2))
    value, slope = jax.jit(lambda kappa: (loss(kappa), jax.jacrev(loss)(kappa)))(1.5)
    np.testing.assert_allclose(value, 1.125 * squares - 9.0, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(slope, 1.5 * squares - 6.0, rtol=1e-5, atol=1e-5)


def test_events_may_be_scalars():
    """x [B]: s = -x³ has ∇s = -3x²."""
    x = f32([0.5, -2.0])
    expected = 0.5 * x**6 - 3 * x**2
    np.testing.assert_allclose(exact_score_matching(lambda x: -(x**3), x), expected, rtol=1e-5)
    v = np.array([[1, -1], [-1, -1]], np.float32)
    np.testing.assert_allclose(sliced_score_matching(lambda x: -(x**3), x, v), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "call,error,words",
    [
        (
            lambda x: exact_score_matching(lambda x: x[:, 0], x),
            ValueError,
            "score and x of one shape",
        ),
        (lambda x: exact_score_matching(lambda x: x, x.astype(int)), TypeError, "floating-point"),
        (lambda x: sliced_score_matching(lambda x: x, x, x), ValueError, "projections"),
        (lambda x: projections(keys(2), 1, (3,), "normal"), ValueError, "kind .*got 'normal'"),
        (lambda x: projections(keys(2), 0, (3,)), ValueError, "num, a whole number"),
        (
            lambda x: denoising_score_matching(lambda x: x, x, x[0], 1.0),
            ValueError,
            "x and noise",
        ),
        (lambda x: denoising_score_matching(lambda x: x, x, x, 0.0), ValueError, "sigma > 0"),
        (lambda x: ncsn_loss(lambda x, i: x, x, 0.5, x, SIGMAS), TypeError, "integer levels"),
        (lambda x: score_of_energy(jnp.sum)(x), ValueError, "energy f"),
    ],
)
def test_bad_calls_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call(f32(X))
