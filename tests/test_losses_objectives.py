import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

import ddpm_jax as dj
from ddpm_jax.denoisers.prediction import TARGETS
from ddpm_jax.losses import bound_loss, hybrid_loss, simple_loss
from tests.oracles import GaussianData, Tables

BETA = np.linspace(5e-4, 0.1, 200)
SCHEDULE = dj.linear_schedule(200, 5e-4, 0.1)
TABLES = Tables(BETA)
T = np.array([0, 1, 100, 199])
LOG_TABLE = np.log(0.7 * BETA)  # a variance of the user's own, for every step
LEARNED = ("learned", "learned_range")
VARIANCES = ("fixed_large", "fixed_small", *LEARNED, "table")
CASES = [(target, variance) for target in TARGETS for variance in VARIANCES]


def draw(shape=(4, 3, 2), seed=1):
    """x_0 on the grid of 256 levels, both ends among them, and noise; float64."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, shape)
    levels.flat[0], levels.flat[-1], levels.flat[1] = 0, 255, 255
    return levels / 127.5 - 1.0, rng.standard_normal(shape)


def column(table):
    return np.asarray(table)[T][:, None, None]


class Reference:
    """The losses of one network's output by the papers' formulas, in float64 NumPy.

    The network says what is true, and an error on top that is no constant.
    """

    def __init__(self, target):
        self.target = target
        self.x_0, self.noise = draw()
        self.alpha_bar, self.beta = column(TABLES.alpha_bar), column(BETA)
        signal, sigma = np.sqrt(self.alpha_bar), np.sqrt(1 - self.alpha_bar)
        self.x_t = signal * self.x_0 + sigma * self.noise
        self.truth = {
            "epsilon": self.noise,
            "x_0": self.x_0,
            "v": signal * self.noise - sigma * self.x_0,
            # Ho et al. 2020, Eq. 10, with ε in place of x_0.
            "previous_mean": (self.x_t - self.beta / sigma * self.noise) / np.sqrt(1 - self.beta),
            "score": -self.noise / sigma,
        }[target]
        error = 0.3 * np.sin(3 * self.x_t + T[:, None, None] / 7)
        if target == "previous_mean":
            error *= np.sqrt(self.beta)
        self.prediction = self.truth + error
        self.spread = np.cos(5 * self.x_t) - 0.2

    def mean(self):
        """The mean of the reverse step: Eq. 11, or Eq. 7 of x̂_0."""
        p, x_t = self.prediction, self.x_t
        signal, sigma = np.sqrt(self.alpha_bar), np.sqrt(1 - self.alpha_bar)
        if self.target == "previous_mean":
            return p
        if self.target == "epsilon":
            return (x_t - self.beta / sigma * p) / np.sqrt(1 - self.beta)
        if self.target == "score":
            return (x_t + self.beta * p) / np.sqrt(1 - self.beta)
        x_0_hat = p if self.target == "x_0" else signal * x_t - sigma * p
        return column(TABLES.coef_x_0) * x_0_hat + column(TABLES.coef_x_t) * x_t

    def log_variance(self, variance):
        if variance == "learned":
            return self.spread + np.log(self.beta)
        small = column(TABLES.log_variance)
        if variance == "learned_range":  # iDDPM Eq. 15
            v = (self.spread + 1) / 2
            return v * np.log(self.beta) + (1 - v) * small
        large = np.where(column(np.arange(200)) == 0, small, np.log(self.beta))
        table = {"fixed_large": large, "fixed_small": small, "table": column(LOG_TABLE)}
        return np.broadcast_to(table[variance], self.x_t.shape)

    def output(self, variance):
        if variance == "learned":
            return np.concatenate([self.prediction, self.log_variance(variance)], -1)
        if variance == "learned_range":
            return np.concatenate([self.prediction, self.spread], -1)
        return self.prediction

    def simple(self):
        return np.mean((self.prediction - self.truth) ** 2, axis=(1, 2))

    def bound(self, variance):
        return np.mean(self.bound_of_each(variance), axis=(1, 2))

    def bound_of_each(self, variance):
        mean, log_variance = self.mean(), self.log_variance(variance)
        true_mean = column(TABLES.coef_x_0) * self.x_0 + column(TABLES.coef_x_t) * self.x_t
        true_variance = column(TABLES.posterior_variance)
        with np.errstate(divide="ignore"):
            kl = 0.5 * (
                log_variance
                - np.log(true_variance)
                + (true_variance + (true_mean - mean) ** 2) / np.exp(log_variance)
                - 1
            )
        # Eq. 13; the upper tail for what lies above the mean.
        std = np.exp(0.5 * log_variance)
        upper = np.where(self.x_0 == 1, np.inf, (self.x_0 + 1 / 255 - mean) / std)
        lower = np.where(self.x_0 == -1, -np.inf, (self.x_0 - 1 / 255 - mean) / std)
        below = stats.norm.cdf(upper) - stats.norm.cdf(lower)
        above = stats.norm.sf(lower) - stats.norm.sf(upper)
        with np.errstate(divide="ignore"):
            decoder = -np.log(np.where(lower > 0, above, below))
        first = T[:, None, None] == 0
        return np.where(first, decoder, kl) / math.log(2)

    def bound_slopes(self, variance, size=1e-5):
        """∂L_t/∂output by central differences, prediction and variance after one another."""
        slopes = []
        for half in ("prediction", "spread"):
            middle, moved = getattr(self, half), []
            for shift in (size, -size):
                setattr(self, half, middle + shift)
                moved.append(self.bound_of_each(variance))
            setattr(self, half, middle)
            slopes.append((moved[0] - moved[1]) / (2 * size) / middle[0].size)
        return np.concatenate(slopes, axis=-1)


def arguments(reference, variance, dtype=jnp.float32):
    """(schedule, apply_fn, x_0, t, noise), keywords: what the losses take."""
    schedule = dj.linear_schedule(200, 5e-4, 0.1, dtype=dtype)
    output = jnp.asarray(reference.output(variance), dtype)
    table = jnp.asarray(LOG_TABLE, dtype) if variance == "table" else variance
    x_0, noise = jnp.asarray(reference.x_0, dtype), jnp.asarray(reference.noise, dtype)
    return (schedule, lambda x, t: output, x_0, T, noise), {
        "target": reference.target,
        "variance": table,
    }


@pytest.mark.parametrize("dtype,rtol", [("float32", 1e-3), ("float64", 1e-10)])
def test_every_loss_equals_the_papers(dtype, rtol):
    """Five targets, five variances, simple, bound and hybrid, at the first two steps, in the middle
    and at the last. In float32 the previous mean of small steps is the sum of numbers 10³ times as
    large as the difference that counts."""
    # There are no keys here, and looking for them takes half of the time.
    with jax.enable_x64(dtype == "float64"), jax.debug_key_reuse(False):
        for target, variance in CASES:
            reference = Reference(target)
            args, keywords = arguments(reference, variance, dtype)
            close = dict(rtol=rtol, atol=1e-12, err_msg=f"{target}, {variance}")
            bound = bound_loss(*args, **keywords)
            assert bound.dtype == dtype and bound.shape == (4,)
            np.testing.assert_allclose(bound, reference.bound(variance), **close)
            if variance in LEARNED:
                hybrid = hybrid_loss(*args, **keywords)
                wanted = reference.simple() + 1e-3 * 200 * reference.bound(variance)
                np.testing.assert_allclose(hybrid, wanted, **close)
                hybrid = hybrid_loss(*args, **keywords, bound_scale=0.5)
                wanted = reference.simple() + 0.5 * 200 * reference.bound(variance)
                np.testing.assert_allclose(hybrid, wanted, **close)
            else:
                simple = simple_loss(*args, target=target)
                np.testing.assert_allclose(simple, reference.simple(), **close)


@pytest.mark.parametrize("target,variance", [("epsilon", "learned_range"), ("v", "learned")])
def test_gradients_of_the_bound_and_of_the_hybrid(target, variance):
    """The bound moves both halves of the output, as the reference's finite differences say, at
    t = 0 as elsewhere. Of the hybrid (iDDPM Eq. 16) the prediction's half gets the gradient of
    L_simple alone, the variance's half that of 0.001 · T · L_t."""
    reference = Reference(target)
    (schedule, network, *rest), keywords = arguments(reference, variance)

    @jax.jit
    def gradients(output):
        def summed(loss):
            return lambda o: loss(schedule, lambda x, t: o, *rest, **keywords).sum()

        return jax.grad(summed(bound_loss))(output), jax.grad(summed(hybrid_loss))(output)

    bound, hybrid = map(np.asarray, gradients(network(None, None)))
    wanted = reference.bound_slopes(variance)
    assert (np.abs(wanted).max(axis=(1, 2)) > 0).all()
    simple = 2 * (reference.prediction - reference.truth) / 6
    np.testing.assert_allclose(hybrid[..., :2], simple, rtol=2e-5, atol=1e-7)
    for got, expected in (
        (bound[..., :2], wanted[..., :2]),
        (bound[..., 2:], wanted[..., 2:]),
        (hybrid[..., 2:], 1e-3 * 200 * wanted[..., 2:]),
    ):
        size = np.abs(expected).max(axis=(1, 2), keepdims=True)
        # At the last step log β and log β̃ agree in all but the last digits of float32, and the
        # slope with respect to what lies between them is their difference.
        close = np.where(T == 199, 0.1, 2e-3)[:, None, None]
        assert (np.abs(got - expected) <= close * size).all(), (got, expected)


def test_the_bound_of_the_exact_denoiser_is_known_and_so_is_its_best_variance():
    """Gaussian data, ε̂ exact, one log-variance ν for all: E[L_t] = ½ (ν - log β̃ + s e^-ν - 1) with
    s = β̃ + w² E‖x_0 - x̂_0‖²/d, which is least at ν = log s (Bao et al. 2022). 65,536 values."""
    data = GaussianData(0.3, 0.7, TABLES.alpha_bar)
    t = np.array([1, 20, 100, 199])
    rng = np.random.default_rng(0)
    x_0 = jnp.asarray(0.3 + 0.7 * rng.standard_normal((4, 65536)), jnp.float32)
    noise = jnp.asarray(rng.standard_normal(x_0.shape), jnp.float32)
    a = TABLES.alpha_bar[t]
    mse = 0.49 * (1 - a) / (a * 0.49 + 1 - a)
    small = TABLES.posterior_variance[t]
    best = np.log(small + TABLES.coef_x_0[t] ** 2 * mse)

    def losses(log_variance):
        def network(x_t, timesteps):
            x_0_hat = data.denoise(x_t, timesteps)
            return jnp.concatenate(
                [x_0_hat, jnp.broadcast_to(log_variance[:, None], x_t.shape)], axis=-1
            )

        return bound_loss(SCHEDULE, network, x_0, t, noise, target="x_0", variance="learned")

    @jax.jit
    def values_and_slopes(log_variance):
        values, transpose = jax.vjp(losses, log_variance)
        return values, transpose(jnp.ones(4))[0]

    for shift in (0.0, -0.5, 0.5):
        value, slope = values_and_slopes(jnp.asarray(best + shift, jnp.float32))
        wanted = 0.5 * (best + shift - np.log(small) + np.exp(-shift) - 1) / math.log(2)
        np.testing.assert_allclose(value, wanted, atol=0.01)
        np.testing.assert_allclose(slope, 0.5 * (1 - np.exp(-shift)) / math.log(2), atol=0.01)


@pytest.mark.parametrize("variance", LEARNED)
@pytest.mark.parametrize("size,steps", [(1e3, T), (1e4, T), (-1e3, T[:1]), (-1e4, T[:1])])
def test_the_hybrid_of_a_network_that_is_far_off(variance, size, steps):
    """Log-variances far beyond float32's exponents: its losses and gradients are float64's."""
    shape = (len(steps), 2, 2)

    def evaluate(dtype):
        x_0, noise = jnp.zeros(shape, dtype), jnp.full(shape, 0.3, dtype)
        output = jnp.concatenate([noise + 1e-3, jnp.full(shape, size, dtype)], axis=-1)
        schedule = dj.linear_schedule(200, 5e-4, 0.1, dtype=dtype)

        def loss(output):
            network = lambda x, t: output  # noqa: E731
            losses = hybrid_loss(schedule, network, x_0, steps, noise, variance=variance)
            return losses.sum(), losses

        gradient, losses = jax.jit(jax.grad(loss, has_aux=True))(output)
        return np.asarray(losses), np.asarray(gradient)

    with jax.enable_x64(True):
        wanted, wanted_gradient = evaluate(jnp.float64)
    losses, gradient = evaluate(jnp.float32)
    np.testing.assert_allclose(losses, wanted, rtol=1e-3, atol=1e-5)
    # As above, the last step's slope between log β and log β̃ has few digits in float32.
    np.testing.assert_allclose(gradient[:3], wanted_gradient[:3], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(gradient[3:], wanted_gradient[3:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("loss", [bound_loss, hybrid_loss])
@pytest.mark.parametrize("variance", LEARNED)
def test_an_infinite_loss_leaves_the_gradients_finite(variance, loss):
    """A variance near 0 for the first examples; the last two have the gradient of their own."""
    x_0, noise = draw((6, 3, 2))
    steps = np.array([0, 1, 0, 1, 0, 1])

    def slopes(rows, size):
        size = jnp.asarray(size, jnp.float32)[rows, None, None] * jnp.ones((1, 3, 2))
        x, z = (jnp.asarray(v, jnp.float32)[rows] for v in (x_0, noise))

        def total(prediction, size):
            network = lambda x, t: jnp.concatenate([prediction, size], axis=-1)  # noqa: E731
            losses = loss(SCHEDULE, network, x, steps[rows], z, variance=variance)
            return losses.sum(), losses

        gradient = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
        (_, losses), found = gradient(z + 0.5, size)
        return losses, found

    size = [-1e3, -1e3, -1e5, -1e5, 0.5, 0.5]
    losses, found = slopes(np.arange(6), size)
    np.testing.assert_array_equal(losses[:4], np.inf)
    assert all(np.isfinite(slope).all() for slope in found)
    alone, wanted = slopes(np.array([4, 5]), size)
    np.testing.assert_allclose(losses[4:], alone, rtol=1e-6)
    for slope, own in zip(found, wanted, strict=True):
        np.testing.assert_allclose(slope[4:], own, rtol=1e-6)


def test_a_respaced_bound_counts_its_own_steps():
    """The network is fed the full process's numbers; the hybrid's T is the grid's."""
    x_0, noise = (jnp.asarray(v, jnp.float32) for v in draw())
    steps = np.array([2, 90, 150, 170])
    grid = dj.respace(SCHEDULE, steps)
    seen = {}

    def network(x_t, timesteps):
        seen.update(x_t=x_t, timesteps=timesteps)
        return jnp.concatenate([x_t, x_t], axis=-1)

    t = np.arange(4)
    hybrid = hybrid_loss(grid, network, x_0, t, noise)
    np.testing.assert_array_equal(seen["timesteps"], steps)
    np.testing.assert_allclose(
        seen["x_t"], dj.q_sample(SCHEDULE, x_0, steps, noise), rtol=1e-5, atol=1e-6
    )
    simple = simple_loss(grid, lambda x, s: x, x_0, t, noise)
    bound = bound_loss(grid, network, x_0, t, noise, variance="learned_range")
    np.testing.assert_allclose(hybrid, simple + 4e-3 * bound, rtol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_a_constant_error_costs_its_square(target):
    """A network that is off by 0.5 everywhere loses 0.25, in every example and for every target."""
    x_0, noise = (jnp.asarray(v, jnp.float32) for v in draw())
    truth = dj.training_target(SCHEDULE, x_0, T, noise, target=target)
    loss = simple_loss(SCHEDULE, lambda x, t: truth + 0.5, x_0, T, noise, target=target)
    np.testing.assert_allclose(loss, np.full(4, 0.25), rtol=1e-4)


def test_the_exact_denoiser_reaches_the_known_minimum():
    """Gaussian data: E‖ε - E[ε|x_t]‖² = ᾱc²/(ᾱc² + 1 - ᾱ), and nothing can be lower."""
    data = GaussianData(0.3, 0.7, np.asarray(SCHEDULE.alpha_bar, np.float64))
    t = 60
    a = data.alpha_bar[t]
    rng = np.random.default_rng(0)
    x_0 = jnp.asarray(0.3 + 0.7 * rng.standard_normal((64, 4096)), jnp.float32)
    noise = jnp.asarray(rng.standard_normal((64, 4096)), jnp.float32)

    @jax.jit
    def loss(factor):
        def network(x_t, timesteps):
            x_0_hat = data.denoise(x_t, timesteps)
            return factor * dj.convert_prediction(
                SCHEDULE, x_0_hat, x_t, timesteps, source="x_0", target="epsilon"
            )

        return simple_loss(SCHEDULE, network, x_0, t, noise).mean()

    minimum = a * 0.49 / (a * 0.49 + 1 - a)
    np.testing.assert_allclose(loss(1.0), minimum, rtol=0.01)
    assert loss(0.95) > loss(1.0) < loss(1.05)


@pytest.mark.parametrize("loss", [simple_loss, bound_loss, hybrid_loss])
def test_rows_are_independent(loss):
    """What stands in the other rows changes nothing in this one."""

    def network(x_t, t):
        output = jnp.tanh(x_t) * t.astype(jnp.float32).reshape(-1, 1, 1)
        return jnp.concatenate([output, x_t], axis=-1) if loss is hybrid_loss else output

    x_0, noise = draw()
    others = draw(seed=2)
    together = loss(SCHEDULE, network, jnp.float32(x_0), T, jnp.float32(noise))
    for i in range(4):
        here = np.arange(4)[:, None, None] == i
        mixed = (
            jnp.float32(np.where(here, *pair)) for pair in zip((x_0, noise), others, strict=True)
        )
        t = np.where(np.arange(4) == i, T, 37)
        alone = loss(SCHEDULE, network, next(mixed), t, next(mixed))
        np.testing.assert_array_equal(alone[i], together[i])


def test_gradients_flow_to_parameters():
    x_0, noise = (jnp.asarray(v, jnp.float32) for v in draw())

    @jax.jit
    def loss(scale):
        return simple_loss(SCHEDULE, lambda x, t: scale * x, x_0, T, noise).mean()

    check_grads(loss, (jnp.float32(0.7),), order=1, modes=["rev"], rtol=1e-2)
    x_t = dj.q_sample(SCHEDULE, x_0, T, noise)
    by_hand = jnp.mean(2 * (0.7 * x_t - noise) * x_t)
    np.testing.assert_allclose(jax.grad(loss)(jnp.float32(0.7)), by_hand, rtol=1e-5)


def test_a_bfloat16_network_is_measured_in_float32():
    """Its losses are those of the float32 network that says the same rounded numbers."""
    reference = Reference("epsilon")
    for variance in ("fixed_large", "learned_range"):
        args, keywords = arguments(reference, variance)
        schedule, network, *rest = args
        half = network(None, None).astype(jnp.bfloat16)
        for loss in (bound_loss, simple_loss if variance == "fixed_large" else hybrid_loss):
            words = {} if loss is simple_loss else keywords
            rounded = loss(schedule, lambda x, t, half=half: half, *rest, **words)
            wide = half.astype(jnp.float32)
            wanted = loss(schedule, lambda x, t, wide=wide: wide, *rest, **words)
            assert rounded.dtype == jnp.float32
            np.testing.assert_array_equal(rounded, wanted)


def test_other_shapes_and_a_shared_t():
    """Scalars [B], and one t for all of the batch: as that t for each."""
    x_0, noise = (jnp.asarray(v, jnp.float32) for v in draw((3,)))
    assert simple_loss(SCHEDULE, lambda x, t: x, x_0, 5, noise).shape == (3,)
    x_0, noise = (jnp.asarray(v, jnp.float32) for v in draw())
    for loss in (simple_loss, bound_loss, hybrid_loss):
        copies = 2 if loss is hybrid_loss else 1

        def network(x, t, copies=copies):
            return jnp.tile(x, (1, 1, copies)) * t.reshape(-1, 1, 1)

        shared = loss(SCHEDULE, network, x_0, 5, noise)
        np.testing.assert_array_equal(shared, loss(SCHEDULE, network, x_0, np.full(4, 5), noise))


@pytest.mark.parametrize(
    "loss,keywords,doubled,words",
    [
        (simple_loss, {}, True, "variances"),
        (bound_loss, {"variance": "learned"}, False, "doubles"),
        (bound_loss, {}, True, "doubles"),
        (bound_loss, {"variance": np.zeros(199)}, False, "199 steps"),
        (bound_loss, {"variance": "wide"}, False, "knows the variances"),
        (hybrid_loss, {}, False, "doubles"),
        (hybrid_loss, {"variance": "fixed_small"}, False, "simple_loss where"),
        (simple_loss, {"target": "noise"}, False, "needs target"),
    ],
)
def test_bad_values_are_named(loss, keywords, doubled, words):
    x_0, noise = (jnp.asarray(v, jnp.float32) for v in draw())
    with pytest.raises(ValueError, match=words):
        loss(SCHEDULE, lambda x, t: jnp.tile(x, (1, 1, 1 + doubled)), x_0, T, noise, **keywords)
