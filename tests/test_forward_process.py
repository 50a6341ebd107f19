import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from tests.oracles import Tables

SCHEDULE = dj.linear_schedule()
TRUTH = Tables(np.linspace(1e-4, 0.02, 1000))
STEPS = np.array([0, 1, 17, 500, 998, 999])
SHAPES = [(), (5,), (4, 4, 3)]


def draw(shape, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((len(STEPS), *shape)).astype(np.float32) for _ in range(2)]


def right(table, ndim):
    return table[STEPS].reshape((-1,) + (1,) * (ndim - 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_q_sample_and_moments_equal_equation_4(shape):
    x_0, noise = draw(shape)
    a = right(TRUTH.alpha_bar, x_0.ndim)
    np.testing.assert_allclose(
        dj.q_sample(SCHEDULE, x_0, STEPS, noise),
        np.sqrt(a) * x_0 + np.sqrt(1 - a) * noise,
        rtol=1e-5,
        atol=1e-6,
    )
    mean, variance, log_variance = dj.q_mean_variance(SCHEDULE, x_0, STEPS)
    np.testing.assert_allclose(mean, np.sqrt(a) * x_0, rtol=1e-6)
    np.testing.assert_allclose(variance, np.broadcast_to(1 - a, x_0.shape), rtol=1e-6)
    np.testing.assert_allclose(
        log_variance, np.broadcast_to(np.log(1 - a), x_0.shape), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_q_posterior_equals_equation_7(shape):
    x_0, x_t = draw(shape)
    n = x_0.ndim
    mean, variance, log_variance = dj.q_posterior(SCHEDULE, x_0, x_t, STEPS)
    expected = right(TRUTH.coef_x_0, n) * x_0 + right(TRUTH.coef_x_t, n) * x_t
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        variance, np.broadcast_to(right(TRUTH.posterior_variance, n), x_0.shape), rtol=1e-6
    )
    np.testing.assert_allclose(
        log_variance, np.broadcast_to(right(TRUTH.log_variance, n), x_0.shape), rtol=1e-6
    )
    np.testing.assert_array_equal(mean, dj.posterior_mean(SCHEDULE, x_0, x_t, STEPS))
    np.testing.assert_allclose(
        dj.forward.posterior_variance(SCHEDULE, STEPS), TRUTH.posterior_variance[STEPS], rtol=1e-6
    )


@pytest.mark.parametrize("num_steps", [1000, 100, 20])
def test_posterior_of_a_respaced_cosine_keeps_its_digits(num_steps):
    """β near 1, where √(1-β) of a float32 table would be off by 1e-3."""
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    steps = dj.spaced_timesteps(1000, num_steps)
    alpha_bar = np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))[steps]
    truth = Tables(1 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]]))
    schedule, t = dj.respace(dj.cosine_schedule(), steps), np.arange(num_steps)
    zero, one = np.zeros(num_steps, np.float32), np.ones(num_steps, np.float32)
    np.testing.assert_allclose(dj.posterior_mean(schedule, one, zero, t), truth.coef_x_0, rtol=1e-5)
    np.testing.assert_allclose(
        dj.posterior_mean(schedule, zero, one, t), truth.coef_x_t, rtol=1e-5, atol=1e-12
    )


def test_posterior_is_bayes_rule():
    """q(x_{t-1}|x_t,x_0) ∝ q(x_t|x_{t-1}) q(x_{t-1}|x_0): precisions add, and so do weighted
    means."""
    x_0, x_t = 0.3, -1.1
    for t in [1, 40, 999]:
        beta, a_prev = TRUTH.beta[t], TRUTH.alpha_bar_prev[t]
        precision = (1 - beta) / beta + 1 / (1 - a_prev)
        mean = (np.sqrt(1 - beta) * x_t / beta + np.sqrt(a_prev) * x_0 / (1 - a_prev)) / precision
        got = dj.q_posterior(SCHEDULE, jnp.float32(x_0), jnp.float32(x_t), t)
        np.testing.assert_allclose(got.mean, mean, rtol=1e-5)
        np.testing.assert_allclose(got.variance, 1 / precision, rtol=1e-6)


def test_the_first_step_returns_x_0():
    x_0, x_t = draw((3,))
    np.testing.assert_allclose(
        dj.posterior_mean(SCHEDULE, x_0, x_t, np.zeros(6, int)), x_0, rtol=1e-6
    )


def test_one_step_of_q_composes_to_the_marginal():
    """Diffusing to t-1, then one step by β_t, has the mean and variance of diffusing to t at
    once."""
    a, beta = TRUTH.alpha_bar, TRUTH.beta
    t = np.arange(1, 1000)
    np.testing.assert_allclose(np.sqrt(1 - beta[t]) * np.sqrt(a[t - 1]), np.sqrt(a[t]), rtol=1e-12)
    composed = (1 - beta[t]) * np.asarray(SCHEDULE.noise_scale)[t - 1] ** 2 + beta[t]
    np.testing.assert_allclose(composed, np.asarray(SCHEDULE.noise_scale)[t] ** 2, rtol=1e-6)


def test_scalar_t_is_shared_by_all():
    x_0, noise = draw((4, 4, 3))
    t = np.full(len(STEPS), 321)
    for fn in (dj.q_sample, dj.posterior_mean):
        args = (x_0, 321, noise) if fn is dj.q_sample else (x_0, noise, 321)
        many = (x_0, t, noise) if fn is dj.q_sample else (x_0, noise, t)
        np.testing.assert_array_equal(fn(SCHEDULE, *args), fn(SCHEDULE, *many))
    assert dj.forward.posterior_variance(SCHEDULE, 321).shape == ()


def test_under_jit_vmap_grad():
    x_0, noise = draw((4, 4, 3))
    plain = dj.q_sample(SCHEDULE, x_0, STEPS, noise)
    jitted = jax.jit(dj.q_sample)(SCHEDULE, x_0, STEPS, noise)
    np.testing.assert_allclose(jitted, plain, rtol=1e-6)
    rows = jax.vmap(dj.q_sample, in_axes=(None, 0, 0, 0))(SCHEDULE, x_0, STEPS, noise)
    np.testing.assert_allclose(rows, plain, rtol=1e-6)
    grad = jax.grad(lambda x: dj.q_sample(SCHEDULE, x, STEPS, noise).sum())(x_0)
    np.testing.assert_allclose(grad[:, 0, 0, 0], np.sqrt(TRUTH.alpha_bar[STEPS]), rtol=1e-6)


def test_under_pmap():
    x_0, noise = (np.stack([x] * 8) for x in draw((4, 4, 3)))
    got = jax.pmap(dj.q_sample, in_axes=(None, 0, None, 0))(SCHEDULE, x_0, STEPS, noise)
    np.testing.assert_allclose(got[7], dj.q_sample(SCHEDULE, x_0[0], STEPS, noise[0]), rtol=1e-6)


def test_a_list_of_traced_steps_is_refused_in_words():
    schedule, x = dj.cosine_schedule(10), jnp.zeros((2, 3))
    with pytest.raises(TypeError, match=r"q_sample needs steps t, an array.*jnp\.stack"):
        jax.jit(lambda t: dj.q_sample(schedule, x, t, x))([1, 2])


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="q_sample needs x_0 and noise of one shape"):
        dj.q_sample(SCHEDULE, np.zeros((6, 5)), STEPS, np.zeros((6, 1)))


def test_too_many_axes_for_t_are_refused():
    with pytest.raises(ValueError, match="q_sample needs steps t of shape"):
        dj.q_sample(SCHEDULE, np.zeros(6), STEPS[:, None], np.zeros(6))


OF_STEPS = {
    "simple_loss": lambda t: dj.simple_loss(THOUSAND, network, X, t, Z),
    "bound_loss": lambda t: dj.bound_loss(THOUSAND, network, X, t, Z),
    "estimate_bound": lambda t: dj.estimate_bound(THOUSAND, network, X, t[None], Z[None]),
    "q_posterior": lambda t: dj.q_posterior(THOUSAND, X, Z, t),
    "make_denoiser": lambda t: dj.make_denoiser(THOUSAND, network)(X, t),
    "score_from_denoiser": lambda t: dj.score_from_denoiser(THOUSAND, network)(X, t),
    "update_loss_history": lambda t: dj.losses.update_loss_history(
        dj.losses.init_loss_history(1000, 1), t, X[:, 0]
    ),
}
THOUSAND = dj.linear_schedule(1000)
X, Z = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), jnp.linspace(1.0, -0.5, 12).reshape(4, 3)


def network(x_t, timesteps):
    return 0.1 * x_t + 1e-3 * timesteps.astype(jnp.float32)[:, None]


@pytest.mark.parametrize("name", OF_STEPS)
def test_steps_of_eight_bits_count_as_any_others(name):
    """T = 1000 is no int8, and 999 - t of a uint8 would wrap round; 127 twice fills its queue."""
    steps = np.array([0, 3, 127, 127])
    wanted = OF_STEPS[name](jnp.asarray(steps, jnp.int32))
    for dtype in (jnp.int8, jnp.uint8):
        got = OF_STEPS[name](jnp.asarray(steps, dtype))
        jax.tree.map(np.testing.assert_array_equal, got, wanted)
