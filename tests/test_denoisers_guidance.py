"""Guidance of a mixture of Gaussians, whose classes, posteriors and denoisers are all known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.denoisers.guidance import classifier_free, classifier_guided, guidance_interval
from ddpm_jax.denoisers.prediction import TARGETS
from ddpm_jax.forward import rescale_zero_terminal_snr
from tests.oracles import GaussianData, Tables

BETA = np.linspace(1e-3, 0.15, 100)
SCHEDULE, TRUTH = dj.schedule_from_beta(BETA), Tables(BETA)
CLASSES = [GaussianData(-0.5, 0.2, TRUTH.alpha_bar), GaussianData(0.4, 0.3, TRUTH.alpha_bar)]
WEIGHTS = (0.3, 0.7)
T = np.array([0, 7, 40, 80, 99])
X_T = jnp.asarray(np.random.default_rng(0).normal(0, 1, (5, 2)), jnp.float32)


def log_joint(x_t, t):
    """log p(y) N(x_t; √ᾱ m_y, (ᾱ c_y² + 1-ᾱ) I) for both classes [B, 2], events [B, D]."""
    a = jnp.asarray(TRUTH.alpha_bar, x_t.dtype)[t][:, None]
    terms = []
    for data, weight in zip(CLASSES, WEIGHTS, strict=True):
        variance = a * data.std**2 + 1 - a
        away = jnp.square(x_t - jnp.sqrt(a) * data.mean)
        terms.append(np.log(weight) - 0.5 * (away / variance + jnp.log(variance)).sum(-1))
    return jnp.stack(terms, axis=-1)


def posterior(y):
    """log p(y | x_t), exact."""
    return lambda x_t, t: jax.nn.log_softmax(log_joint(x_t, t))[:, y]


def mixture(x_t, t):
    """E[x_0 | x_t] of the whole mixture: the classes' own, weighted by their posteriors."""
    weights = jax.nn.softmax(log_joint(x_t, t))
    return sum(weights[:, y, None] * CLASSES[y].denoise(x_t, t) for y in (0, 1))


def network(denoise, target, variance_output=None):
    """A network that says this x̂_0 in the language of this target."""

    def apply_fn(x_t, t):
        out = dj.convert_prediction(SCHEDULE, denoise(x_t, t), x_t, t, source="x_0", target=target)
        if variance_output is None:
            return out
        return jnp.concatenate([out, jnp.full_like(out, variance_output)], axis=-1)

    return apply_fn


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("target", TARGETS)
def test_the_exact_classifier_makes_the_exact_conditional_denoiser(target, y):
    """E[x_0 | x_t, y] = E[x_0 | x_t] + (1-ᾱ)/√ᾱ ∇ log p(y | x_t), by Bayes and Tweedie."""
    guided = classifier_guided(SCHEDULE, network(mixture, target), posterior(y), target=target)
    guided = dj.make_denoiser(SCHEDULE, guided, target=target, clip=False)(X_T, jnp.asarray(T))
    np.testing.assert_allclose(guided, CLASSES[y].denoise(X_T, jnp.asarray(T)), atol=3e-4)
    assert np.abs(mixture(X_T, T) - CLASSES[y].denoise(X_T, T)).max() > 0.1


def test_classifier_guidance_is_algorithm_2_of_dhariwal_and_nichol():
    """ε̂ - s √(1-ᾱ) ∇ log p(y | x_t), for a scale other than 1, then clipped at the last."""
    scale, t = 2.5, jnp.asarray(T)
    epsilon = network(mixture, "epsilon")
    gradient = jax.vmap(jax.grad(lambda x, t: posterior(1)(x[None], t[None])[0]))(X_T, t)
    sigma = np.sqrt(1 - TRUTH.alpha_bar[T])[:, None]
    wanted = epsilon(X_T, t) - scale * sigma * gradient
    wanted = dj.predict_x_0(SCHEDULE, wanted, X_T, t, target="epsilon")
    for clip in (False, True, lambda x: 0.5 * x):
        guided = classifier_guided(SCHEDULE, epsilon, posterior(1), scale)
        got = dj.make_denoiser(SCHEDULE, guided, clip=clip)(X_T, t)
        expected = clip(wanted) if callable(clip) else jnp.clip(wanted, -1, 1) if clip else wanted
        np.testing.assert_allclose(got, expected, atol=2e-4)


def test_classifier_guidance_on_a_grid_and_with_a_variance():
    steps = [0, 7, 40, 80, 99]
    grid = dj.respace(SCHEDULE, steps)
    kind = {"target": "v", "variance": "learned_range"}
    guided = classifier_guided(SCHEDULE, network(mixture, "v", 0.25), posterior(0), **kind)
    denoise = dj.make_denoiser(SCHEDULE, guided, clip=False, **kind)
    x_0_hat, variance_output = denoise(X_T, grid.timesteps)
    np.testing.assert_allclose(x_0_hat, CLASSES[0].denoise(X_T, jnp.asarray(T)), atol=3e-4)
    np.testing.assert_array_equal(variance_output, np.full((5, 2), 0.25))


def test_where_nothing_is_left_of_x_0_a_classifier_guides_nothing():
    """At zero terminal SNR the factor (1-ᾱ)/√ᾱ is infinite and the gradient 0."""
    schedule = rescale_zero_terminal_snr(SCHEDULE)
    a = jnp.asarray(np.asarray(schedule.signal_scale) ** 2)

    def log_probability(x_t, t):
        return (jnp.sqrt(a)[t][:, None] * x_t).sum(-1)

    def apply_fn(x_t, t):
        return -0.3 * x_t

    t = jnp.full(5, 99)
    for target in ("v", "x_0"):
        guided = classifier_guided(schedule, apply_fn, log_probability, 3.0, target=target)
        guided = dj.make_denoiser(schedule, guided, target=target, clip=False)
        plain = dj.make_denoiser(schedule, apply_fn, target=target, clip=False)
        np.testing.assert_array_equal(guided(X_T, t), plain(X_T, t))


@pytest.mark.parametrize("target", TARGETS)
def test_classifier_free_is_a_line_through_both_networks(target):
    """s = 0 is unconditional, 1 conditional; any s means the same x̂_0 whatever the target."""
    t = jnp.asarray(T)
    conditional, unconditional = network(CLASSES[1].denoise, target), network(mixture, target)
    with_label, without = CLASSES[1].denoise(X_T, t), mixture(X_T, t)
    assert np.abs(with_label - without).max() > 0.1
    for scale in (0.0, 1.0, 3.0):
        out = classifier_free(conditional, unconditional, scale)(X_T, t)
        x_0_hat = dj.predict_x_0(SCHEDULE, out, X_T, t, target=target)
        expected = without + scale * (with_label - without)
        np.testing.assert_allclose(x_0_hat, expected, atol=1e-3)


@pytest.mark.parametrize("events", [X_T[:, 0], X_T, X_T[:, :, None, None] * jnp.ones((5, 2, 5, 5))])
@pytest.mark.parametrize("how", ["classifier", "classifier_free"])
def test_a_scale_per_example_guides_each_row_by_its_own(how, events):
    """Also where an event's axis has the batch's length, and a scale could meet the wrong axis."""
    scales, t = jnp.array([0.0, 1.0, 2.5, 4.0, -1.0]), jnp.asarray(T)

    def guide(scale):
        if how == "classifier_free":
            return classifier_free(lambda x, t: jnp.tanh(x), lambda x, t: 0.5 * x, scale)

        def log_probability(x, t):
            return -jnp.square(x - 0.3).reshape(5, -1).sum(-1)

        return classifier_guided(SCHEDULE, lambda x, t: 0.5 * x, log_probability, scale)

    rows = [guide(float(scale))(events, t)[i] for i, scale in enumerate(scales)]
    np.testing.assert_allclose(guide(scales)(events, t), jnp.stack(rows), rtol=1e-6)


@pytest.mark.parametrize("how", ["classifier", "classifier_free"])
def test_a_scale_per_step_is_the_scale_of_each_rows_step(how):
    """A table [T] read at the timesteps, as Python function; also one number for all rows."""
    table, t = jnp.linspace(0.0, 4.0, 100), jnp.asarray(T)

    def guide(scale):
        if how == "classifier_free":
            return classifier_free(lambda x, t: jnp.tanh(x), lambda x, t: 0.5 * x, scale)
        return classifier_guided(SCHEDULE, lambda x, t: 0.5 * x, posterior(0), scale)

    got = guide(lambda timesteps: table[timesteps])(X_T, t)
    np.testing.assert_allclose(got, guide(table[t])(X_T, t), rtol=1e-6)
    np.testing.assert_allclose(guide(lambda t: 2.0)(X_T, t), guide(2.0)(X_T, t), rtol=1e-6)
    with pytest.raises(ValueError, match="one scale per example"):
        guide(lambda timesteps: table)(X_T, t)


def test_guidance_in_an_interval_of_noise_levels():
    """σ_low < σ <= σ_high by the schedule's own σ; elsewhere the conditional network, s = 1."""
    sigma = np.exp(-0.5 * np.asarray(SCHEDULE.log_snr))
    low, high = float(sigma[7:9].mean()), float(sigma[40:42].mean())
    scale = guidance_interval(SCHEDULE, jnp.arange(2.0, 7.0), low, high)
    np.testing.assert_array_equal(scale(jnp.asarray(T)), [1.0, 1.0, 4.0, 1.0, 1.0])
    guided = classifier_free(lambda x, t: jnp.tanh(x), lambda x, t: 0.5 * x, scale)
    got = guided(X_T, jnp.asarray(T))
    expected = np.tanh(np.asarray(X_T))
    expected[2] = 0.5 * X_T[2] + 4.0 * (np.tanh(X_T[2]) - 0.5 * X_T[2])
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("labelled, plain", [(0.0, 0.0), (2.0, 2.0), (0.0, None), (None, None)])
def test_rescaled_guidance_of_outputs_without_spread_has_derivatives(labelled, plain):
    """As those of a network whose last convolution still is zero; None is an output that varies."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6)), jnp.float32)

    def guided(bias):
        def network(value):
            return lambda x_t, t: (x_t if value is None else jnp.full_like(x_t, value)) + bias

        return classifier_free(network(labelled), network(plain), 3.0, rescale=0.7)(x, jnp.array(1))

    value, slope = guided(0.0), jax.grad(lambda bias: guided(bias).sum())(0.0)
    assert np.isfinite(value).all() and np.isfinite(slope)
    if labelled == plain:
        np.testing.assert_allclose(
            value, x if plain is None else jnp.full_like(x, plain), atol=1e-6
        )


def test_rescaled_guidance_has_the_spread_of_the_conditional_output():
    """φ = 1: exactly; between, φ of the way (Lin et al. 2023, Eqs. 15, 16). A variance stays."""
    t, events = jnp.asarray(T), X_T[:, :, None] * jnp.linspace(0.5, 2.0, 6)[None, None]
    conditional, unconditional = lambda x, t: jnp.tanh(x), lambda x, t: 0.2 * x
    plain = np.asarray(classifier_free(conditional, unconditional, 5.0)(events, t))
    for phi in (0.0, 0.7, 1.0):
        got = classifier_free(conditional, unconditional, 5.0, rescale=phi)(events, t)
        ratio = np.tanh(events).std((1, 2), keepdims=True) / plain.std((1, 2), keepdims=True)
        np.testing.assert_allclose(got, phi * plain * ratio + (1 - phi) * plain, rtol=1e-4)
    np.testing.assert_allclose(got.std((1, 2)), np.tanh(events).std((1, 2)), rtol=1e-5)
    wide = lambda f: lambda x, t: jnp.concatenate([f(x, t), x], axis=-1)  # noqa: E731
    both = classifier_free(
        wide(conditional), wide(unconditional), 5.0, variance="learned", rescale=1.0
    )(events, t)
    np.testing.assert_allclose(both, jnp.concatenate([got, events], axis=-1), rtol=1e-5)


def test_autoguidance_is_classifier_free_guidance_with_a_weaker_model():
    """D_w = w D_1 + (1-w) D_0 (Karras et al. 2024, Eq. 3), here in x̂_0, both with the label."""
    t, w = jnp.asarray(T), 2.2
    blurred = GaussianData(CLASSES[1].mean, 0.8, TRUTH.alpha_bar)
    out = classifier_free(network(CLASSES[1].denoise, "v"), network(blurred.denoise, "v"), w)(
        X_T, t
    )
    x_0_hat = dj.predict_x_0(SCHEDULE, out, X_T, t, target="v")
    expected = w * CLASSES[1].denoise(X_T, t) + (1 - w) * blurred.denoise(X_T, t)
    np.testing.assert_allclose(x_0_hat, expected, atol=1e-4)


def test_both_kinds_of_guidance_combine():
    """Their shifts of ε̂ add up: 2 of the networks' difference, and a classifier's."""
    t, free = jnp.asarray(T), classifier_free(lambda x, t: x, lambda x, t: 0.5 * x, 2.0)
    both = classifier_guided(SCHEDULE, free, posterior(0), 1.5)(X_T, t)
    alone = classifier_guided(SCHEDULE, lambda x, t: 0.0 * x, posterior(0), 1.5)(X_T, t)
    np.testing.assert_allclose(both, 1.5 * X_T + alone, rtol=1e-5)


def test_the_variance_is_the_conditional_networks():
    guided = classifier_free(
        network(CLASSES[0].denoise, "epsilon", variance_output=0.7),
        network(mixture, "epsilon", variance_output=-0.2),
        2.0,
        variance="learned",
    )
    out = guided(X_T, jnp.asarray(T))
    plain = classifier_free(
        network(CLASSES[0].denoise, "epsilon"), network(mixture, "epsilon"), 2.0
    )(X_T, jnp.asarray(T))
    np.testing.assert_array_equal(out[:, 2:], np.full((5, 2), 0.7, np.float32))
    np.testing.assert_allclose(out[:, :2], plain, rtol=1e-6)


@pytest.mark.parametrize("how", ["classifier", "classifier_free"])
def test_sampling_with_scale_1_gives_the_class(how):
    """Ancestral and guided towards class 0: its mean and standard deviation, not the mixture's."""
    if how == "classifier":
        apply_fn = classifier_guided(SCHEDULE, network(mixture, "epsilon"), posterior(0))
    else:
        apply_fn = classifier_free(
            network(CLASSES[0].denoise, "epsilon"), network(mixture, "epsilon"), 1.0
        )
    denoise = dj.make_denoiser(SCHEDULE, apply_fn, clip=False)
    keys = dj.example_keys(jax.random.key(0), jnp.arange(4096))
    x_T = dj.initial_noise(keys, (2,))
    sampler = dj.ancestral(SCHEDULE, variance="fixed_large")
    samples = jax.jit(lambda x, k: dj.sample(sampler, denoise, x, keys=k))(x_T, keys)
    # 8192 coordinates: standard errors 0.002 and 0.0016; 100 steps of fixed_large widen a little.
    np.testing.assert_allclose(samples.mean(), -0.5, atol=0.012)
    np.testing.assert_allclose(samples.std(), 0.2, atol=0.012)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda f: classifier_free(f, f, 1.0, variance="large"), "classifier_free knows"),
        (
            lambda f: classifier_guided(SCHEDULE, f, f, target="eps"),
            "classifier_guided needs target",
        ),
        (lambda f: classifier_guided(SCHEDULE, f, f, variance="no"), "classifier_guided knows"),
        (lambda f: classifier_free(f, f, 1.0, variance="learned")(X_T, T), "doubles"),
        (
            lambda f: classifier_free(f, f, 1.0, rescale=1.5),
            r"classifier_free needs rescale in \[0, 1\]",
        ),
        (
            lambda f: guidance_interval(SCHEDULE, 2.0, 3.0, 1.0),
            "guidance_interval needs sigma_high",
        ),
        (
            lambda f: guidance_interval(SCHEDULE, 2.0, -1.0, 1.0),
            "guidance_interval needs sigma_low",
        ),
        (lambda f: classifier_free(f, f, jnp.ones(2))(X_T, T), "one scale per example"),
        (lambda f: classifier_free(f, f, jnp.ones((5, 1)))(X_T, T), "one scale per example"),
        (lambda f: classifier_guided(SCHEDULE, f, log_joint)(X_T, jnp.asarray(T)), r"\[B, K\]"),
        (
            lambda f: classifier_guided(SCHEDULE, f, posterior(0), jnp.ones(2))(
                X_T, jnp.asarray(T)
            ),
            "one scale per example",
        ),
    ],
)
def test_bad_values_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(lambda x, t: x)
