import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.denoisers.prediction import TARGETS
from tests.oracles import Tables

SCHEDULE = dj.linear_schedule()
TRUTH = Tables(np.linspace(1e-4, 0.02, 1000))
STEPS = np.array([0, 3, 250, 600, 999])
RNG = np.random.default_rng(0)
X_0 = RNG.uniform(-1, 1, (5, 4, 4, 3))
NOISE = RNG.standard_normal((5, 4, 4, 3))


def column(table):
    return table[STEPS].reshape(-1, 1, 1, 1)


SIGNAL, SIGMA = np.sqrt(column(TRUTH.alpha_bar)), np.sqrt(1 - column(TRUTH.alpha_bar))
X_T = SIGNAL * X_0 + SIGMA * NOISE
# What each target is, in float64, from (x_0, ε).
VIEWS = {
    "epsilon": NOISE,
    "x_0": X_0,
    "v": SIGNAL * NOISE - SIGMA * X_0,
    "previous_mean": column(TRUTH.coef_x_0) * X_0 + column(TRUTH.coef_x_t) * X_T,
    "score": -NOISE / SIGMA,
}
f32 = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731

# Unit rounding of the inputs, times how much the conversion magnifies it: ε determines x_0 with
# weight √(1-ᾱ)/√ᾱ = 157 at the last step, x_0 determines ε with 1/√(1-ᾱ) = 100 at the first.
TOLERANCE = dict(rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("source", TARGETS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_conversion_equals_float64(source, target):
    got = dj.convert_prediction(
        SCHEDULE, f32(VIEWS[source]), f32(X_T), STEPS, source=source, target=target
    )
    scale = np.abs(VIEWS[target]).max()
    steps = slice(None)
    if source == "previous_mean" and target != "previous_mean":
        # The mean holds x_0 with weight β_t√ᾱ_{t-1}/(1-ᾱ_t), 1e-4 at the last step: its digits are
        # gone there.
        steps = slice(0, 3)
    np.testing.assert_allclose(
        np.asarray(got)[steps] / scale, VIEWS[target][steps] / scale, **TOLERANCE
    )


@pytest.mark.parametrize("target", TARGETS)
def test_predict_x_0_and_training_target_are_inverse(target):
    wanted = dj.training_target(SCHEDULE, f32(X_0), STEPS, f32(NOISE), target=target)
    np.testing.assert_allclose(wanted, VIEWS[target], rtol=1e-5, atol=1e-5)
    back = dj.predict_x_0(SCHEDULE, wanted, f32(X_T), STEPS, target=target)
    steps = slice(0, 3) if target == "previous_mean" else slice(None)
    np.testing.assert_allclose(np.asarray(back)[steps], X_0[steps], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("target", ["v", "x_0"])
def test_v_and_x_0_survive_a_vanished_signal(target):
    schedule = dj.jsd_schedule(8)
    x_t, t = jnp.array([[0.7]]), jnp.array([7])
    output = jnp.array([[-0.3]])
    expected = 0.3 if target == "v" else -0.3
    np.testing.assert_allclose(
        dj.predict_x_0(schedule, output, x_t, t, target=target), [[expected]], atol=1e-7
    )
    epsilon = dj.denoisers.predict_epsilon(schedule, output, x_t, t, target=target)
    np.testing.assert_allclose(epsilon, x_t, atol=1e-7)


def expected_log_variance(kind, output):
    if kind == "fixed_large":
        return np.log(np.append(TRUTH.posterior_variance[1], TRUTH.beta[1:]))[STEPS]
    if kind == "fixed_small":
        return TRUTH.log_variance[STEPS]
    if kind == "learned":
        return output
    fraction = (output + 1) / 2
    return fraction * np.log(column(TRUTH.beta)) + (1 - fraction) * column(TRUTH.log_variance)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small", "learned", "learned_range"])
@pytest.mark.parametrize("target", TARGETS)
def test_p_mean_variance_equals_float64(target, variance, clip):
    # A network that is wrong by a little, so that clipping matters, and a variance output in [-1,
    # 1].
    x_0_hat = X_0 + 0.2 * np.sin(np.arange(X_0.size)).reshape(X_0.shape)
    noise_hat = (X_T - SIGNAL * x_0_hat) / SIGMA
    views = {
        "epsilon": noise_hat,
        "x_0": x_0_hat,
        "v": SIGNAL * noise_hat - SIGMA * x_0_hat,
        "previous_mean": column(TRUTH.coef_x_0) * x_0_hat + column(TRUTH.coef_x_t) * X_T,
        "score": -noise_hat / SIGMA,
    }
    spread = np.cos(np.arange(X_0.size)).reshape(X_0.shape)
    output = views[target]
    if variance.startswith("learned"):
        output = np.concatenate([output, spread], axis=-1)
    got = dj.p_mean_variance(
        SCHEDULE, f32(output), f32(X_T), STEPS, target=target, variance=variance, clip=clip
    )
    clipped = np.clip(x_0_hat, -1, 1) if clip else x_0_hat
    # The mean that a network predicts is kept; only the x̂_0 made from it is clipped.
    of_x_0 = x_0_hat if target == "previous_mean" else clipped
    mean = column(TRUTH.coef_x_0) * of_x_0 + column(TRUTH.coef_x_t) * X_T
    np.testing.assert_allclose(got.mean, mean, rtol=1e-5, atol=1e-5)
    steps = slice(0, 3) if target == "previous_mean" else slice(None)
    np.testing.assert_allclose(np.asarray(got.x_0_hat)[steps], clipped[steps], atol=1e-3)
    log_variance = expected_log_variance(variance, spread)
    if variance.startswith("fixed"):
        log_variance = np.broadcast_to(log_variance.reshape(-1, 1, 1, 1), X_0.shape)
    np.testing.assert_allclose(got.log_variance, log_variance, rtol=1e-5, atol=1e-6)
    value = np.exp(log_variance)
    if variance == "fixed_small":
        value = np.broadcast_to(column(TRUTH.posterior_variance), X_0.shape)
    np.testing.assert_allclose(got.variance, value, rtol=1e-5)
    assert {leaf.shape for leaf in jax.tree.leaves(got)} == {X_0.shape}


def test_score_is_the_gradient_of_the_log_density():
    t, x_0 = 300, 0.4
    a = TRUTH.alpha_bar[t]
    x_t = jnp.float32(0.9)
    score = jax.grad(lambda x: -((x - np.sqrt(a) * x_0) ** 2) / (2 * (1 - a)))(x_t)
    got = dj.convert_prediction(SCHEDULE, jnp.float32(x_0), x_t, t, source="x_0", target="score")
    np.testing.assert_allclose(got, score, rtol=1e-5)


def test_denoiser_feeds_the_networks_own_timesteps():
    seen = []

    def apply_fn(x_t, timesteps):
        seen.append(np.asarray(timesteps))
        return jnp.zeros_like(x_t)

    grid = dj.respace(SCHEDULE, [3, 77, 500])
    got = dj.make_denoiser(grid, apply_fn)(jnp.full((3, 4), 0.01), jnp.array([3, 500, 77]))
    np.testing.assert_array_equal(seen[0], [3, 500, 77])
    full = dj.make_denoiser(SCHEDULE, apply_fn)(jnp.full((3, 4), 0.01), jnp.array([3, 500, 77]))
    np.testing.assert_allclose(got, full, rtol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_denoiser_gives_nan_for_timesteps_that_its_schedule_lacks(target):
    denoise = dj.make_denoiser(
        dj.respace(SCHEDULE, [3, 77, 500]), lambda x, t: 0.1 * x, target=target
    )
    got = np.asarray(denoise(jnp.full((4, 2), 0.01), jnp.array([77, 4, 501, -1])))
    assert np.isfinite(got[0]).all() and np.isnan(got[1:]).all()


def test_denoiser_clips_and_passes_the_variance_on():
    def apply_fn(x_t, timesteps):
        return jnp.concatenate([3 * jnp.ones_like(x_t), 0.5 * jnp.ones_like(x_t)], -1)

    denoise = dj.make_denoiser(SCHEDULE, apply_fn, target="x_0", variance="learned_range")
    x_0_hat, variance_output = denoise(jnp.zeros((2, 4)), jnp.array([5, 6]))
    np.testing.assert_array_equal(x_0_hat, np.ones((2, 4)))
    np.testing.assert_array_equal(variance_output, np.full((2, 4), 0.5))


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda x: dj.p_mean_variance(SCHEDULE, x, x, 3, target="eps"), "epsilon"),
        (lambda x: dj.p_mean_variance(SCHEDULE, x, x, 3, variance="large"), "fixed_large"),
        (lambda x: dj.p_mean_variance(SCHEDULE, x, x, 3, variance="learned"), "doubles"),
        (lambda x: dj.p_mean_variance(SCHEDULE, x[:, :2], x, 3), "must have shape"),
        (lambda x: dj.convert_prediction(SCHEDULE, x, x, 3, source="x0", target="v"), "source"),
        (lambda x: dj.make_denoiser(SCHEDULE, lambda *_: x, target="noise"), "make_denoiser"),
    ],
)
def test_bad_values_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(jnp.ones((2, 4)))


@pytest.mark.parametrize("t", [0, 499, 999])
def test_a_predicted_mean_is_the_mean_of_the_step(t):
    """By hand: x̂_0 = (μ - w x_t)/u is 3 and clipped to 1 in the report, the mean stays μ."""
    u, w = TRUTH.coef_x_0[t], TRUTH.coef_x_t[t]
    x_t = np.array([[0.5, -0.2]])
    mean = u * 3.0 + w * x_t
    got = dj.p_mean_variance(SCHEDULE, f32(mean), f32(x_t), t, target="previous_mean")
    np.testing.assert_array_equal(got.mean, f32(mean))
    np.testing.assert_allclose(got.x_0_hat, np.ones((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("target", ["epsilon", "score"])
def test_a_vanished_signal_is_refused_where_it_is_needed(target):
    """And NaN, which no clipping hides, where the schedule is traced."""
    schedule, x = dj.rescale_zero_terminal_snr(dj.linear_schedule(100)), jnp.ones((2, 3))

    def network(x_t, timesteps):
        return 0.3 * x_t

    def denoise(schedule, t):
        return dj.make_denoiser(schedule, network, target=target)(x, t)

    with pytest.raises(ValueError, match="ᾱ is 0 at step 99"):
        denoise(schedule, jnp.array([99, 0]))
    with pytest.raises(ValueError, match="p_mean_variance got target"):
        dj.p_mean_variance(schedule, x, x, 99, target=target)
    with pytest.raises(ValueError, match="variational_bound got target"):
        keys = dj.example_keys(jax.random.key(0), jnp.arange(2))
        dj.variational_bound(schedule, network, x, keys, target=target)
    got = jax.jit(denoise)(schedule, jnp.array([99, 0]))
    assert np.isnan(got[0]).all() and np.isfinite(got[1]).all()
    kept = dj.respace(schedule, np.arange(99))
    assert np.isfinite(denoise(kept, jnp.array([98, 0]))).all()


def test_the_network_gets_one_timestep_per_example():
    """Also where one step is shared by all."""

    def network(x_t, timesteps):
        assert timesteps.shape == (5,)
        return jnp.zeros_like(x_t)

    denoise = dj.make_denoiser(SCHEDULE, network)
    np.testing.assert_array_equal(denoise(f32(X_T), 7), denoise(f32(X_T), jnp.full(5, 7)))
