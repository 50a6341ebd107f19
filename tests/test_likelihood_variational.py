"""The whole bound where it is known: Gaussian data on the grid of pixels, exact denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ddpm_jax as dj
from ddpm_jax.denoisers.optimal_variance import optimal_log_variance
from ddpm_jax.keys import fold_in_each
from ddpm_jax.likelihood.coding import mean_and_standard_error, rate_distortion
from ddpm_jax.likelihood.variational import (
    VariationalBound,
    assemble_bound,
    bound_terms,
    estimate_bound,
    variational_bound,
)
from tests.oracles import GaussianBound, GaussianData, Tables

T, MEAN, STD = 24, 0.1, 0.2
BETA = np.linspace(0.02, 0.4, T)
SCHEDULE, TRUTH = dj.schedule_from_beta(BETA), Tables(BETA)
# Wide against a bin of 2/255, and narrow enough that 1e-5 of it is clipped: rounding to the grid
# adds the variance of a uniform bin, and little else.
EDGES = np.append(np.append(-np.inf, np.arange(-127, 128) * 2 / 255), np.inf)
MASS = np.diff(stats.norm.cdf(EDGES, MEAN, STD))
ENTROPY = -np.sum(MASS * np.log2(np.maximum(MASS, 1e-300)))
ROUNDED = np.sqrt(STD**2 + (2 / 255) ** 2 / 12)
EXPECTED = GaussianBound(MEAN, ROUNDED, TRUTH)
DATA = GaussianData(MEAN, ROUNDED, TRUTH.alpha_bar)
RNG = np.random.default_rng(0)
X_0 = -1 + 2 / 255 * np.clip(np.round((RNG.normal(MEAN, STD, (64, 16, 16, 1)) + 1) * 127.5), 0, 255)
X_0 = jnp.asarray(X_0, jnp.float32)
BIN_NATS = np.log(2 / 255)
SMALL = X_0[:3, :2, :2]


def keys(count=64, seed=0):
    return dj.example_keys(jax.random.key(seed), jnp.arange(count))


def exact(x_t, timesteps):
    return DATA.denoise(x_t, timesteps)


def with_spread(log_variance):
    """The exact denoiser, with a second output: this log-variance [T] of its step."""

    def apply_fn(x_t, timesteps):
        spread = jnp.asarray(log_variance, x_t.dtype)[timesteps].reshape(-1, 1, 1, 1)
        return jnp.concatenate([exact(x_t, timesteps), jnp.broadcast_to(spread, x_t.shape)], -1)

    return apply_fn


@jax.jit
def with_table(x_0, keys, table):
    return variational_bound(SCHEDULE, exact, x_0, keys, target="x_0", variance=table, clip=False)


@pytest.fixture(scope="module")
def optimal():
    return with_table(X_0, keys(), optimal_log_variance(SCHEDULE, EXPECTED.mmse))


@pytest.fixture(scope="module")
def respaced():
    """(schedule, bound) on six of the steps, with the default variance."""
    grid = dj.respace(SCHEDULE, dj.spaced_timesteps(T, 6))
    run = jax.jit(lambda x, k: variational_bound(grid, exact, x, k, target="x_0", clip=False))
    return grid, run(X_0, keys())


@pytest.fixture(scope="module")
def small():
    """(noise, bound) of three small images."""
    noise = jnp.asarray(RNG.standard_normal((T, *SMALL.shape)), jnp.float32)
    return noise, variational_bound(SCHEDULE, exact, SMALL, target="x_0", noise=noise)


@pytest.mark.parametrize("kind", ["fixed_large", "fixed_small"])
def test_the_bound_exceeds_the_entropy_by_the_divergence_of_the_processes(kind):
    variance = EXPECTED.kinds[kind]
    check_total_and_terms(with_table(X_0, keys(), jnp.log(variance)), variance)


def test_a_learned_variance_too():
    variance = EXPECTED.optimal * (1 + 0.5 * np.cos(np.arange(T)))
    apply_fn = with_spread(np.log(variance))
    run = jax.jit(
        lambda x, k: variational_bound(
            SCHEDULE, apply_fn, x, k, target="x_0", variance="learned", clip=False
        )
    )
    check_total_and_terms(run(X_0, keys()), variance)


def test_the_optimal_variance_leaves_the_smallest_gap(optimal):
    """None at all but L_T's, for each step back is a Gaussian."""
    check_total_and_terms(optimal, EXPECTED.optimal)
    gaps = {kind: EXPECTED.gap(variance) for kind, variance in EXPECTED.kinds.items()}
    assert 0 < gaps["optimal"] < min(gaps["fixed_large"], gaps["fixed_small"])


def check_total_and_terms(bound, variance):
    total, error = mean_and_standard_error(bound.total)
    gap = EXPECTED.gap(variance) / np.log(2)
    assert error < 0.015
    np.testing.assert_allclose(total, ENTROPY + gap, atol=4 * error)
    expected = EXPECTED.terms(variance)
    expected[0] -= BIN_NATS
    for t in range(T):
        mean, error = mean_and_standard_error(bound.terms[t])
        np.testing.assert_allclose(mean, expected[t] / np.log(2), atol=5 * error + 2e-4)
    np.testing.assert_allclose(bound.prior.mean(), EXPECTED.prior / np.log(2), rtol=0.02)
    np.testing.assert_allclose(bound.total, bound.prior + bound.terms.sum(0), rtol=1e-5)


def test_the_errors_are_those_of_the_exact_denoiser(optimal):
    """E‖x_0 - x̂_0‖²/d = Var(x_0|x_t), and ε̂'s error is that times the signal-to-noise ratio."""
    ratio = TRUTH.alpha_bar / (1 - TRUTH.alpha_bar)
    np.testing.assert_allclose(optimal.x_0_mse.mean(1), EXPECTED.mmse, rtol=0.02)
    np.testing.assert_allclose(optimal.epsilon_mse.mean(1), ratio * EXPECTED.mmse, rtol=0.02)


def test_epsilon_mse_is_the_simple_loss_whatever_is_clipped():
    """An ε-network far off: clipping saves x̂_0, not ε̂, and L_simple stays what training saw."""

    def apply_fn(x_t, timesteps):
        return jnp.tanh(x_t) - 1.0

    noise = jnp.asarray(RNG.standard_normal((T, *SMALL.shape)), jnp.float32)
    bound = variational_bound(SCHEDULE, apply_fn, SMALL, noise=noise)
    for t in (0, 11, T - 1):
        np.testing.assert_allclose(
            bound.epsilon_mse[t], dj.simple_loss(SCHEDULE, apply_fn, SMALL, t, noise[t]), rtol=1e-5
        )
        x_t = dj.q_sample(SCHEDULE, SMALL, t, noise[t])
        x_0_hat = dj.predict_x_0(SCHEDULE, apply_fn(x_t, t), x_t, t, target="epsilon")
        error = jnp.square(SMALL - jnp.clip(x_0_hat, -1, 1)).mean((1, 2, 3))
        np.testing.assert_allclose(bound.x_0_mse[t], error, rtol=1e-4, atol=1e-6)


def test_the_gap_closes_as_the_steps_become_fine():
    """In closed form: to 0 with fixed_large, but for the decoder's share; not with
    fixed_small, whose first steps stay off by a factor. The optimal variance has none at all."""
    gaps = []
    for steps in (50, 200, 800):
        beta = np.linspace(2 / steps, 16 / steps, steps)
        expected = GaussianBound(MEAN, STD, Tables(beta))
        table = optimal_log_variance(dj.schedule_from_beta(beta), expected.mmse)
        np.testing.assert_allclose(
            expected.gap(np.exp(np.asarray(table, np.float64))), expected.prior_gap, atol=1e-9
        )
        ratios = [
            expected.optimal / expected.kinds[kind] for kind in ("fixed_large", "fixed_small")
        ]
        gaps.append([0.5 * (r - 1 - np.log(r))[1:].sum() for r in ratios])
    (large, small), (_, _), (large_fine, small_fine) = gaps
    assert large_fine < large / 6 and small_fine > small


def test_a_respaced_process_has_a_bound_of_its_own(respaced):
    """Six of the steps: the network is fed its own numbers, the formulas the grid's."""
    grid, bound = respaced
    alpha_bar = TRUTH.alpha_bar[grid.timesteps]
    expected = GaussianBound(MEAN, ROUNDED, Tables(1 - alpha_bar / np.append(1.0, alpha_bar[:-1])))
    total, error = mean_and_standard_error(bound.total)
    gap = expected.gap(expected.kinds["fixed_large"]) / np.log(2)
    np.testing.assert_allclose(total, ENTROPY + gap, atol=4 * error)
    assert bound.terms.shape == (6, 64)


def test_the_noise_is_keyed_by_example_and_by_number_of_the_step(respaced):
    """Grids that share a step share its draw."""
    grid, drawn = respaced
    noise = jnp.stack(
        [
            dj.normal_per_example(fold_in_each(keys(), t), X_0.shape[1:])
            for t in np.asarray(grid.timesteps)
        ]
    )
    for t in range(6):
        x_t = dj.q_sample(grid, X_0, t, noise[t])
        x_0_hat = exact(x_t, jnp.full(64, grid.timesteps[t]))
        error = jnp.square(X_0 - x_0_hat).mean((1, 2, 3))
        np.testing.assert_allclose(drawn.x_0_mse[t], error, rtol=1e-4)


def test_parts_in_any_order_make_the_whole(small):
    noise, whole = small
    some = jax.jit(
        lambda steps, noise: bound_terms(
            SCHEDULE, exact, SMALL, None, steps, target="x_0", noise=noise
        )
    )
    late, early = np.arange(T - 1, T // 2 - 1, -1), np.arange(T // 2)
    parts = [some(steps, noise[steps]) for steps in (late, early)]
    for got, wanted in zip(assemble_bound(SCHEDULE, SMALL, parts), whole, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="needs each of the steps 0..23 once, got 12"):
        assemble_bound(SCHEDULE, SMALL, parts[:1])
    with pytest.raises(ValueError, match="twice"):
        assemble_bound(SCHEDULE, SMALL, [parts[0], parts[0]])


def test_a_few_steps_estimate_the_same_bound(small):
    """Two steps an example: the mean over a partition of all steps is the exact sum, and so
    unbiased."""
    noise, whole = small
    rows = jnp.arange(3)
    estimate = jax.jit(
        lambda t: estimate_bound(SCHEDULE, exact, SMALL, t, noise[t, rows[None]], target="x_0")
    )
    # Other pairs for each example.
    order = np.stack([np.random.default_rng(i).permutation(T) for i in range(3)], axis=1)
    pairs = [estimate(jnp.asarray(order[i : i + 2])) for i in range(0, T, 2)]
    np.testing.assert_allclose(np.mean(pairs, axis=0), whole.total, rtol=1e-5)
    t, u = order[0], order[1]
    expected = whole.prior + T * (whole.terms[t, rows] + whole.terms[u, rows]) / 2
    np.testing.assert_allclose(pairs[0], expected, rtol=1e-5)


def test_rate_and_distortion_by_hand():
    prior, terms = np.array([0.1, 0.3]), np.array([[4.0, 2.0], [1.0, 0.5], [0.2, 0.4]])
    x_0_mse = np.array([[0.01, 0.04], [0.09, 0.16], [0.25, 0.36]])
    bound = VariationalBound(prior, terms, prior + terms.sum(0), x_0_mse, x_0_mse)
    got = rate_distortion(bound)
    # Nothing but the prior is known of x_2; then L_2 tells x_1, then L_1 tells x_0 but for L_0.
    np.testing.assert_allclose(got.rate, [0.2, 0.2 + 0.3, 0.2 + 0.3 + 0.75], rtol=1e-6)
    levels = 127.5 * np.array([(0.5 + 0.6) / 2, (0.3 + 0.4) / 2, (0.1 + 0.2) / 2])
    np.testing.assert_allclose(got.distortion, levels, rtol=1e-6)
    np.testing.assert_allclose([got.rate_bits, got.distortion_bits], [1.25, 3.0], rtol=1e-6)
    np.testing.assert_allclose(got.rate_bits + got.distortion_bits, np.mean(bound.total), rtol=1e-6)


def test_rate_and_distortion_of_gaussian_data(optimal):
    """From the spread of the data, 255/2 · c, down to that of x_0 given the last x_t."""
    got = rate_distortion(optimal)
    levels = 127.5 * np.sqrt(EXPECTED.mmse)[::-1]
    np.testing.assert_allclose(got.distortion, levels, rtol=0.01)
    assert (np.diff(got.rate) > 0).all()
    expected = (EXPECTED.prior + EXPECTED.terms(EXPECTED.optimal)[:0:-1].cumsum()) / np.log(2)
    np.testing.assert_allclose(got.rate[1:], expected, rtol=0.02, atol=2e-3)


def test_a_bfloat16_network_is_measured_in_float32():
    """The network's rounding is all that is lost: none in the log-variance or the errors."""
    spread = with_spread(np.log(EXPECTED.optimal))

    def half(x_t, timesteps):
        return spread(x_t, timesteps).astype(jnp.bfloat16)

    def rounded(x_t, timesteps):
        return half(x_t, timesteps).astype(jnp.float32)

    got, wanted = (
        bound_terms(SCHEDULE, f, SMALL, keys(3), [0, 7], target="x_0", variance="learned")
        for f in (half, rounded)
    )
    for left, right in zip(got[1:], wanted[1:], strict=True):
        assert left.dtype == jnp.float32
        np.testing.assert_allclose(left, right, rtol=1e-6)


def test_mean_and_standard_error_are_float64():
    values = np.float32(1e4) + np.arange(5, dtype=np.float32)
    mean, error = mean_and_standard_error(values)
    np.testing.assert_allclose(
        [mean, error], [10002.0, stats.sem(values.astype(float))], rtol=1e-12
    )
    with pytest.raises(ValueError, match="at least 2"):
        mean_and_standard_error([1.0])


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: variational_bound(SCHEDULE, exact, SMALL), "got neither"),
        (
            lambda: variational_bound(SCHEDULE, exact, SMALL, keys(3), noise=SMALL[None]),
            "got both",
        ),
        (lambda: variational_bound(SCHEDULE, exact, SMALL, noise=SMALL[None]), "num_steps"),
        (lambda: estimate_bound(SCHEDULE, exact, SMALL, jnp.zeros(3, int), SMALL), r"t\[None\]"),
        (lambda: variational_bound(SCHEDULE, exact, SMALL, keys(3), target="eps"), "needs target"),
    ],
)
def test_bad_calls_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_several_variances_share_the_networks_outputs(small):
    """Each is measured as alone; with a learned one the others use the prediction's half."""
    noise, _ = small
    calls = []

    def network(x_t, timesteps):
        calls.append(1)
        return with_spread(np.log(EXPECTED.optimal))(x_t, timesteps)

    kinds = {"large": "fixed_large", "own": "learned", "table": jnp.log(EXPECTED.optimal)}
    options = {"target": "x_0", "noise": noise}
    got = variational_bound(SCHEDULE, network, SMALL, variance=kinds, **options)
    assert len(calls) == 1  # traced once, by one scan
    for name, kind in kinds.items():
        alone = network if name == "own" else exact
        one = variational_bound(SCHEDULE, alone, SMALL, variance=kind, **options)
        for left, right in [(got.terms[name], one.terms), (got.total[name], one.total)]:
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(got.x_0_mse, one.x_0_mse, rtol=1e-5)
    np.testing.assert_allclose(got.terms["own"], got.terms["table"], rtol=1e-5, atol=1e-7)
    with pytest.raises(TypeError, match="pick one"):
        rate_distortion(got)
