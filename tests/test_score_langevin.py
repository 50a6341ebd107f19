"""Chains against what is known of them in closed form: the stationary law of a step of finite size,
the target itself where steps are adjusted, and the weights of far modes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ddpm_jax as dj
from ddpm_jax.score import (
    annealed_langevin_chains,
    geometric_noise_levels,
    langevin,
    langevin_step,
    metropolis_adjusted_langevin,
    score_of_energy,
)

M, C = 1.5, 0.8
rng = np.random.default_rng(0)
f32 = partial(np.asarray, dtype=np.float32)


def keys(num, seed=0):
    return dj.example_keys(jax.random.key(seed), np.arange(num))


def gaussian_score(x):
    return (M - x) / C**2


def wavy(x, xp=jnp):
    return -x + xp.sin(3.0 * x)


def test_a_step_has_its_formula():
    x, s, z = rng.standard_normal((3, 4, 2, 3))
    size = np.array([0.1, 0.5, 1.0, 4.0])
    expected = x + 0.5 * size[:, None, None] * s + np.sqrt(size)[:, None, None] * z
    np.testing.assert_allclose(langevin_step(f32(s), f32(x), size, f32(z)), expected, rtol=1e-5)
    np.testing.assert_allclose(langevin_step(f32(s), f32(x), 0.5, f32(z))[1], expected[1], 1e-5)


def test_given_noise_is_replayed():
    """The loop of the formula in float64; the trajectory holds x after every step."""
    x, z = rng.standard_normal((3, 2)), rng.standard_normal((7, 3, 2))
    expected = [x]
    for noise in z:
        expected.append(expected[-1] + 0.1 * wavy(expected[-1], np) + np.sqrt(0.2) * noise)
    end, kept = langevin(wavy, f32(x), 0.2, num_steps=7, noise=f32(z), keep=True)
    np.testing.assert_allclose(kept, expected[1:], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(end, kept[-1])
    assert langevin(wavy, f32(x), 0.2, num_steps=7, noise=f32(z)).trajectory is None


plain_chains = jax.jit(partial(langevin, gaussian_score, num_steps=40))


@pytest.mark.parametrize("size", [0.2, 1.0, 2.2])
def test_the_variance_at_finite_steps_is_the_one_known(size):
    """ε/(1 - (1 - ε/2c²)²), and the mean stays m, at every step from a start in that law."""
    variance = size / (1 - (1 - size / (2 * C**2)) ** 2)
    np.testing.assert_allclose(variance, C**2 / (1 - size / (4 * C**2)))
    start = f32(M + np.sqrt(variance) * rng.standard_normal((20, 2000)))
    x = np.float64(plain_chains(start, size, keys=keys(20)).x)
    assert abs(x.mean() - M) < 4 * np.sqrt(variance / x.size)
    assert abs(x.var() - variance) < 4 * variance * np.sqrt(2 / x.size)
    # The law is not the target's: the error of the step size shows above the sampling error.
    assert abs(variance - C**2) > 6 * variance * np.sqrt(2 / x.size)


def test_chains_forget_their_start_at_the_known_rate():
    """E[x_n] - m shrinks by 1 - ε/2c² a step; without noise exactly."""
    x = langevin(gaussian_score, f32([9.0]), 0.3, num_steps=10, noise=np.zeros((10, 1), np.float32))
    np.testing.assert_allclose(x.x[0], M + 7.5 * (1 - 0.3 / (2 * C**2)) ** 10, rtol=1e-5)


def test_steps_beyond_four_variances_diverge():
    share = np.repeat([0.98, 1.02], 10)  # one step size a chain
    size = f32(share * 4 * C**2)
    end = f32(np.full((20, 2000), 3.0))
    for seed in range(10):
        end = plain_chains(end, size, keys=keys(20, seed)).x
    assert np.abs(end[:10]).max() < 100 < 1000 < np.median(np.abs(end[10:]))


@pytest.mark.parametrize(
    "run",
    [
        lambda x, keys: (
            metropolis_adjusted_langevin(
                lambda x: -jnp.sum(x**4, axis=1), x, 0.3, num_steps=3, keys=keys
            ).x
        ),
        lambda x, keys: (
            annealed_langevin_chains(
                lambda x, level: -x, x, [2.0, 0.5], step_size=0.1, steps_per_level=2, keys=keys
            ).x
        ),
    ],
)
def test_a_chain_depends_on_its_row_and_key_alone(run):
    """Also under jit; chains from one start part, as every example has noise of its own."""
    x = f32(np.full((5, 2), 0.4))
    whole = jax.jit(run)(x, keys(5))
    np.testing.assert_allclose(run(x[:2], keys(2)), whole[:2], rtol=1e-5, atol=1e-6)
    assert len(np.unique(whole)) > 5


def quartic(x):
    """An energy whose density e^{-x⁴/4} has known moments; [B, D] -> [B], by coordinate."""
    return jnp.sum(x**4 / 4, axis=1)


QUARTIC = stats.gennorm(4, scale=4**0.25)


def distance(x):
    """Kolmogorov-Smirnov's p-value of independent chains against the quartic density."""
    return stats.kstest(np.float64(x).ravel(), QUARTIC.cdf).pvalue


@jax.jit
def adjusted(x, size):
    return metropolis_adjusted_langevin(
        lambda x: -quartic(x), x, size, num_steps=60, keys=keys(4000)
    )


def test_adjusted_chains_have_the_targets_law_where_unadjusted_ones_have_not():
    """At ε = 1, from the wrong law N(0, 0.3²), for any score that proposes."""
    start, score = f32(0.3 * rng.standard_normal((4000, 1))), score_of_energy(quartic)
    sizes = jnp.ones(4000)

    @jax.jit
    def others(x):
        poor = metropolis_adjusted_langevin(
            lambda x: -quartic(x), x, sizes, num_steps=60, keys=keys(4000), score_fn=lambda x: -x
        )
        return poor, langevin(score, x, 1.0, num_steps=60, keys=keys(4000)).x

    poor, unadjusted = others(start)
    for chains in (adjusted(start, sizes), poor):
        x = np.float64(chains.x)
        assert distance(x) > 1e-3
        for power in (1, 2, 4):
            truth, square = QUARTIC.moment(power), QUARTIC.moment(2 * power)
            assert abs((x**power).mean() - truth) < 4 * np.sqrt((square - truth**2) / x.size)
        assert 0.4 < np.mean(chains.acceptance_rate) < 0.95
    assert not distance(unadjusted) > 1e-9


def test_adjusted_chains_replay_given_draws_by_the_textbook_ratio():
    """Both proposal densities written out, in float64; [B, 2] events of unequal scale."""
    scale = np.array([1.0, 0.3])

    def log_p(x, xp=np):
        return -0.5 * ((x / xp.asarray(scale, x.dtype)[None]) ** 2).sum(axis=1)

    x, z, u = rng.standard_normal((4, 2)), rng.standard_normal((9, 4, 2)), rng.random((9, 4))
    chains = metropolis_adjusted_langevin(
        lambda x: log_p(x, jnp), f32(x), 0.2, num_steps=9, noise=f32(z), uniform=f32(u), keep=True
    )
    accepted, expected = np.zeros(4), []
    for noise, draw in zip(z, u, strict=True):

        def log_q(y, x):
            return -((y - x + 0.1 * x / scale**2) ** 2).sum(1) / 0.4

        new = x - 0.1 * x / scale**2 + np.sqrt(0.2) * noise
        ratio = np.exp(log_p(new) - log_p(x) + log_q(x, new) - log_q(new, x))
        x = np.where((draw < ratio)[:, None], new, x)
        accepted += draw < ratio
        expected.append(x)
    np.testing.assert_allclose(chains.trajectory, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(chains.acceptance_rate, accepted / 9, rtol=1e-6)
    assert 0 < accepted.sum() < 36


def test_small_adjusted_steps_are_all_accepted():
    """The acceptance tends to 1, with 1 - rate of order ε^{3/2}; every chain has its own ε."""
    chains = adjusted(
        f32(QUARTIC.rvs((4000, 1), random_state=1)), f32(np.repeat([0.16, 0.04], 2000))
    )
    large, small = 1 - np.reshape(chains.acceptance_rate, (2, 2000)).mean(axis=1)
    np.testing.assert_allclose(np.log(large / small) / np.log(4), 1.5, atol=0.2)


def test_proposals_outside_of_the_domain_are_rejected():
    """log p = -x for x > 0, NaN below: an exponential law, mean 1."""

    def log_p(x):
        return jnp.sum(jnp.where(x > 0, -x, jnp.nan), axis=1)

    start = f32(rng.exponential(size=(4000, 1)))
    x = metropolis_adjusted_langevin(log_p, start, 0.8, num_steps=30, keys=keys(4000)).x
    assert stats.kstest(np.float64(x).ravel(), "expon").pvalue > 1e-3


MODES, WEIGHTS, WIDTH = np.array([-4.0, 4.0]), np.array([0.2, 0.8]), 0.3


def mixture_score(x, variance):
    """∇ log Σ w_k N(x; m_k, variance) of every coordinate of x [B, D]; variance [B, 1]."""
    away = x[..., None] - jnp.asarray(MODES, x.dtype)[None, None]
    logits = np.log(WEIGHTS)[None, None] - 0.5 * away**2 / variance[..., None]
    return -jnp.sum(jax.nn.softmax(logits, axis=-1) * away, axis=-1) / variance


def test_annealing_finds_the_weights_of_far_modes_and_plain_chains_do_not():
    """0.2 against 0.8, 27 standard deviations apart, from a uniform start: a plain chain stays in
    the half it began in."""
    sigmas = np.asarray(geometric_noise_levels(5.0, 0.1, 20))
    start = f32(np.random.default_rng(5).uniform(-8, 8, (100, 40)))

    def noisy_score(x, level):
        return mixture_score(x, WIDTH**2 + jnp.square(jnp.asarray(sigmas)[level])[:, None])

    @jax.jit
    def both(x):
        annealed = annealed_langevin_chains(
            noisy_score, x, sigmas, step_size=0.003, steps_per_level=50, keys=keys(100)
        )
        plain = langevin(
            lambda x: mixture_score(x, jnp.full((1, 1), WIDTH**2)),
            x,
            0.03,
            num_steps=300,
            keys=keys(100, seed=1),
        )
        return annealed.x, plain.x

    annealed, plain = (np.float64(x) for x in both(start))
    assert abs((annealed > 0).mean() - 0.8) < 3.5 * np.sqrt(0.16 / start.size)
    assert abs((plain > 0).mean() - 0.5) < 3.5 * np.sqrt(0.25 / start.size)
    right = annealed[annealed > 0]
    np.testing.assert_allclose(right.mean(), 4.0, atol=0.03)
    # The last step takes the mean of x given x + 0.1 z, which is narrower than x.
    np.testing.assert_allclose(right.std(), WIDTH**2 / np.hypot(WIDTH, 0.1), rtol=0.06)


@pytest.mark.parametrize("final_denoise", [True, False])
def test_annealed_steps_replay_algorithm_1(final_denoise):
    """In float64, level by level; the step of level i is ε σ_i²/σ_L²."""
    sigmas = np.array([3.0, 1.0, 0.5])
    x, z = rng.standard_normal((2, 4)), rng.standard_normal((3, 2, 2, 4))

    def score(x, level, xp=np):
        return xp.cos(x) - x / (1.0 + level[:, None])

    def traced(x, level):
        assert level.shape == (2,) and level.dtype == jnp.int32
        return score(x, level.astype(x.dtype), jnp)

    got = annealed_langevin_chains(
        traced,
        f32(x),
        sigmas,
        step_size=0.02,
        steps_per_level=2,
        noise=f32(z),
        final_denoise=final_denoise,
        keep=True,
    )
    expected = []
    for i, sigma in enumerate(sigmas):
        size = 0.02 * sigma**2 / 0.25
        for noise in z[i]:
            x = x + 0.5 * size * score(x, np.full(2, i)) + np.sqrt(size) * noise
        expected.append(x)
    if final_denoise:
        x = x + 0.25 * score(x, np.full(2, 2))
    np.testing.assert_allclose(got.trajectory, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.x, x, rtol=1e-4, atol=1e-5)


def test_every_level_draws_anew():
    """One step a level of score 0 leaves √ε_i z of each."""

    @jax.jit
    def run(x):
        return annealed_langevin_chains(
            lambda x, level: 0.0 * x,
            x,
            [2.0, 1.0],
            step_size=1.0,
            steps_per_level=1,
            keys=keys(3),
            keep=True,
        ).trajectory

    kept = np.asarray(run(jnp.zeros((3, 2))))
    assert np.abs(kept[0] / 2.0 - (kept[1] - kept[0])).min() > 1e-3


X = f32(np.zeros((2, 3)))
anneal = partial(annealed_langevin_chains, lambda x, i: x, X, step_size=0.1, steps_per_level=1)
adjust = partial(metropolis_adjusted_langevin, quartic, X, 0.1, num_steps=2)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: langevin(wavy, X, 0.1, num_steps=2), "got neither"),
        (lambda: langevin(wavy, X, 0.1, num_steps=2, keys=keys(2), noise=X), "got both"),
        (lambda: langevin(wavy, X, 0.1, num_steps=2, noise=X), r"\(2, 2, 3\)"),
        (lambda: langevin(wavy, X, 0.1, num_steps=2, keys=keys(3)), r"keys \[B\]"),
        (lambda: langevin(wavy, X, 0.1, num_steps=0, keys=keys(2)), "at least 1, got 0"),
        (lambda: langevin(wavy, X, -0.1, num_steps=1, keys=keys(2)), "step_size > 0"),
        (lambda: langevin(wavy, X, jnp.ones(3), num_steps=1, keys=keys(2)), "one step_size per"),
        (lambda: langevin_step(X, X, jnp.ones(3), X), "one step_size per"),
        (lambda: adjust(noise=f32(np.zeros((2, 2, 3)))), "uniform"),
        (lambda: adjust(keys=keys(2), uniform=f32(np.zeros((2, 2)))), "none with keys"),
        (lambda: metropolis_adjusted_langevin(jnp.sum, X, 0.1, num_steps=1, keys=keys(2)), "log_d"),
        (lambda: anneal([0.1, 1.0], keys=keys(2)), "positive and falling"),
        (lambda: anneal([1.0, 0.0], keys=keys(2)), "positive and falling"),
        (lambda: anneal([1.0, 0.1], noise=X), r"\(2, 1, 2, 3\)"),
    ],
)
def test_bad_calls_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
