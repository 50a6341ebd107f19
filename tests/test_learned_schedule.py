"""Schedules as traced tables, and γ(t) learned by the bound: exact Gaussian data throughout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddpm_jax as dj
from ddpm_jax.losses import continuous_bound

T = 6
LOG_SNR = np.linspace(9.0, -4.0, T)
ALPHA_BAR = 1 / (1 + np.exp(-LOG_SNR))
BETA = 1 - ALPHA_BAR / np.append(1.0, ALPHA_BAR[:-1])
MAKERS = {
    "beta": (dj.schedule_from_beta, BETA),
    "alpha_bar": (dj.schedule_from_alpha_bar, ALPHA_BAR),
    "log_snr": (dj.forward.schedule_from_log_snr, LOG_SNR),
}
RNG = np.random.default_rng(0)
MEAN, STD = 0.1, 0.4
LEVELS = RNG.integers(0, 256, (3, 2)) / 127.5 - 1.0
NOISE = RNG.standard_normal((T, 3, 2))


@pytest.mark.parametrize("name", MAKERS)
def test_traced_tables_are_those_of_the_host(name):
    make, table = MAKERS[name]
    host = make(table)
    with jax.enable_x64(True):
        wide = jax.jit(functools.partial(make, dtype=jnp.float64))(jnp.asarray(table))
        exact = make(table, dtype=jnp.float64)
    for got, want in zip(jax.tree.leaves(wide), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-15)
    narrow = jax.jit(make)(jnp.asarray(table, jnp.float32))
    # β in float32 loses the digits that ᾱ near 1 does not have: 1e-7 of 1-ᾱ_0 = 1e-4.
    tolerance = 1e-5 if name == "log_snr" else 2e-3
    np.testing.assert_allclose(narrow.noise_scale, host.noise_scale, rtol=tolerance)
    np.testing.assert_allclose(narrow.beta, host.beta, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["variational", "estimate", "simple", "bound"])
@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_bound_differentiates_through_the_tables(loss, variance):
    """Against central differences, in float64."""

    def value(log_snr):
        schedule = dj.forward.schedule_from_log_snr(log_snr, dtype=jnp.float64)
        x_0, noise, steps = jnp.asarray(LEVELS), jnp.asarray(NOISE), jnp.array([0, 2, 5])

        def network(x_t, t):
            return 0.6 * jnp.tanh(x_t)

        if loss == "variational":
            return dj.variational_bound(
                schedule, network, x_0, noise=noise, variance=variance, clip=False
            ).total.mean()
        if loss == "estimate":
            rows = jnp.stack([steps, steps[::-1]])
            return dj.estimate_bound(
                schedule, network, x_0, rows, noise[:2], variance=variance, clip=False
            ).mean()
        if loss == "bound":
            return dj.bound_loss(schedule, network, x_0, steps, noise[0], variance=variance).mean()
        return dj.simple_loss(schedule, network, x_0, steps, noise[0], target="v").mean()

    with jax.enable_x64(True):
        at = jnp.asarray(LOG_SNR)
        got = jax.jit(jax.grad(value))(at)
        jitted, size = jax.jit(value), 1e-5
        want = [
            (jitted(at.at[i].add(size)) - jitted(at.at[i].add(-size))) / (2 * size)
            for i in range(T)
        ]
    assert np.abs(want).max() > 1e-3
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: dj.respace(s, [0, 2]),
        lambda s: dj.rescale_zero_terminal_snr(s),
        lambda s: dj.karras_timesteps(s, 3),
        lambda s: dj.sigma_range(s),
    ],
)
def test_host_functions_refuse_a_traced_schedule_by_name(call):
    with pytest.raises(TypeError, match="on the host.*traced"):
        jax.jit(lambda x: call(dj.forward.schedule_from_log_snr(x)))(jnp.asarray(LOG_SNR))


def test_wrong_tables_of_log_snr():
    make = dj.forward.schedule_from_log_snr
    for bad in ([0.0, 1.0], [np.inf, 0.0], [1.0, -np.inf, -np.inf], [np.nan], [0.0, np.nan]):
        with pytest.raises(ValueError, match="schedule_from_log_snr needs a strictly falling"):
            make(bad)
    assert make([1.0, -np.inf]).alpha_bar[-1] == 0
    with pytest.raises(TypeError, match="real numbers"):
        jax.jit(make)(jnp.arange(3))
    with pytest.raises(ValueError, match=r"shape \[T\]"):
        jax.jit(make)(jnp.ones((2, 2)))


def exact(z, gamma):
    """E[ε | z_t] for x_0 ~ N(m, c² I): linear in z."""
    gamma = gamma.reshape(gamma.shape + (1,) * (z.ndim - gamma.ndim))
    signal, sigma = jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma))
    return sigma * (z - signal * MEAN) / (signal**2 * STD**2 + sigma**2)


START, END = -9.0, 4.0
NETWORK = dj.nn.GammaNetwork(features=32, gamma_start=START, gamma_end=END)
PARAMS = jax.jit(NETWORK.init)(jax.random.key(3), jnp.zeros(1))
# A shape far from a straight line: a sigmoid around the middle.
SHIFTS = {"slope": 12.0, "bias": -6.0, "linear": -4.0, "weight": 0.0, "ends": 0.0}
BENT = {"params": {name: value + SHIFTS[name] for name, value in PARAMS["params"].items()}}
SHAPES = {
    "straight": lambda t: t,
    "cubic": lambda t: 0.05 * t + 0.95 * t**3,
    "network": lambda t: NETWORK.apply(PARAMS, t, method="parts").share,
    "bent network": lambda t: NETWORK.apply(BENT, t, method="parts").share,
}


def test_gamma_rises_between_its_ends():
    t = jnp.linspace(0.0, 1.0, 101)
    for params in (PARAMS, BENT):
        gamma = np.asarray(NETWORK.apply(params, t))
        assert (np.diff(gamma) > 0).all()
        np.testing.assert_allclose(gamma[[0, -1]], [START, END], atol=1e-5)
    assert np.abs(SHAPES["bent network"](t) - t).max() > 0.05
    with pytest.raises(ValueError, match="rises with t"):
        dj.nn.GammaNetwork(gamma_start=5.0, gamma_end=-13.0)
    with pytest.raises(TypeError, match="floating-point"):
        NETWORK.apply(PARAMS, jnp.arange(3))


@pytest.mark.parametrize("name", SHAPES)
def test_diffusion_loss_does_not_depend_on_the_shape_of_gamma(name):
    """½ ∫ e^{-γ} c²/(e^{-γ} c² + 1) dγ whatever the shape (VDM §5.1).

    The mean over x_0 = m ± c and ε = ±1 is the exact expectation of what is quadratic in both.
    """
    count = 4000
    t = jnp.repeat((jnp.arange(count) + 0.5) / count, 4)
    sign = jnp.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], jnp.float32)
    x_0 = jnp.tile(MEAN + STD * sign[:, :1], (count, 1))
    noise = jnp.tile(sign[:, 1:], (count, 1))

    def gamma(t):
        return dj.nn.Gamma(jnp.array(START), jnp.array(END), SHAPES[name](t))

    got = jax.jit(lambda: continuous_bound(gamma, exact, x_0, t, noise).diffusion.mean())()
    ends = np.log1p(STD**2 * np.exp([-START, -END]))
    want = 0.5 * (ends[0] - ends[1]) / np.log(2)
    np.testing.assert_allclose(got, want, rtol=2e-4)


@pytest.mark.slow
def test_bound_of_many_steps_is_the_continuous_one():
    """A table of -γ(t): the discrete bound with T large tends to the three terms' sum (VDM §4)."""
    x_0 = jnp.asarray(np.clip(RNG.normal(MEAN, STD, (64, 8)), -1, 1) * 127.5 // 1 / 127.5)
    x_0 = x_0.astype(jnp.float32)

    def discrete(steps):
        gamma = START + (END - START) * (np.arange(steps) + 1.0) / steps
        schedule = dj.forward.schedule_from_log_snr(-np.append(START, gamma))
        table = jnp.asarray(np.append(START, gamma), jnp.float32)
        keys = dj.example_keys(jax.random.key(1), jnp.arange(64))
        bound = dj.variational_bound(
            schedule, lambda z, t: exact(z, table[t]), x_0, keys, variance="fixed_small", clip=False
        )
        return float((bound.total - bound.terms[0]).mean())

    count = 512
    t = jnp.tile((jnp.arange(count) + 0.5) / count, (64, 1)).T.reshape(-1)
    big = jnp.tile(x_0, (count, 1))
    noise = jax.random.normal(jax.random.key(0), big.shape)

    def gamma(t):
        return dj.nn.Gamma(jnp.array(START), jnp.array(END), t)

    bound = jax.jit(lambda: continuous_bound(gamma, exact, big, t, noise))()
    got = float((bound.prior + bound.diffusion).mean())
    np.testing.assert_allclose(discrete(256), got, rtol=0.02)


@pytest.mark.slow
def test_gradients_are_the_bounds_at_the_ends_and_the_squares_between():
    """By two separate gradients of the same losses; one network call per bound."""
    x_0 = jnp.asarray(LEVELS, jnp.float32)
    noise, t = jnp.asarray(NOISE[0], jnp.float32), jnp.array([0.2, 0.5, 0.9])
    calls = []

    def losses(params):
        def network(z, gamma):
            calls.append(1)
            return exact(z, gamma)

        def gamma(t):
            return NETWORK.apply(params, t, method="parts")

        return continuous_bound(gamma, network, x_0, t, noise)

    def plain(params):  # the same diffusion term, with plain gradients
        gamma, rate = jax.jvp(lambda t: NETWORK.apply(params, t), (t,), (jnp.ones_like(t),))
        column = gamma[:, None]
        z = jnp.sqrt(jax.nn.sigmoid(-column)) * x_0 + jnp.sqrt(jax.nn.sigmoid(column)) * noise
        error = jnp.square(noise - exact(z, gamma)).mean(1)
        return 0.5 * rate * error / np.log(2)

    np.testing.assert_allclose(losses(PARAMS).diffusion, plain(PARAMS), rtol=1e-5)
    calls.clear()
    got = jax.grad(lambda p: losses(p).diffusion.mean())(PARAMS)["params"]
    assert len(calls) == 1
    of_mean = jax.grad(lambda p: plain(p).mean())(PARAMS)["params"]
    of_squares = jax.grad(lambda p: jnp.square(plain(p)).mean())(PARAMS)["params"]
    np.testing.assert_allclose(got["ends"], of_mean["ends"], rtol=1e-4)
    for name in ("linear", "slope", "bias", "weight"):
        np.testing.assert_allclose(got[name], of_squares[name], rtol=2e-3, atol=1e-6)


@pytest.mark.slow
def test_learning_gamma_lowers_the_variance_of_the_bound():
    """And leaves its mean, for the ends are held: seeds fixed, the margin a factor of two."""
    dim, batch = 16, 256

    def losses(params, key, count):
        key_x, key_t, key_noise = jax.random.split(key, 3)
        x_0 = MEAN + STD * jax.random.normal(key_x, (count, dim))
        t = jax.random.uniform(key_t, (count,))
        noise = jax.random.normal(key_noise, (count, dim))

        def gamma(t):
            return NETWORK.apply(params, t, method="parts")

        return continuous_bound(gamma, exact, x_0, t, noise).diffusion

    optimizer = optax.adam(0.03)

    @jax.jit
    def train(params, key):
        def body(carry, key):
            params, state = carry
            grads = jax.grad(lambda p: losses(p, key, batch).mean())(params)
            grads["params"]["ends"] = jnp.zeros(2)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, optimizer.init(params)), jax.random.split(key, 600))[0][
            0
        ]

    trained = train(PARAMS, jax.random.key(1))
    before, after = (
        np.asarray(jax.jit(lambda p: losses(p, jax.random.key(2), 20_000))(p), np.float64)
        for p in (PARAMS, trained)
    )
    assert after.var() < 0.5 * before.var()
    spread = np.sqrt((before.var() + after.var()) / before.size)
    assert abs(after.mean() - before.mean()) < 4 * spread
