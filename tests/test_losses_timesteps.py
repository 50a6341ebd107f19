import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ddpm_jax as dj
from ddpm_jax.losses import (
    LossHistory,
    importance_probabilities,
    importance_timesteps,
    init_loss_history,
    stratified_timesteps,
    uniform_timesteps,
    update_loss_history,
)
from tests.oracles import Tables

MANY = np.arange(40_000)
UPDATE = jax.jit(update_loss_history)


@jax.jit
def jitted_draw(key, index, history):
    return importance_timesteps(dj.example_keys(key, index), history)


def draw(seed, index, history):
    """(t, weights) of these examples, on the host; histories of 200 steps share a program."""
    t, weights = jitted_draw(jax.random.key(seed), index, history)
    return np.asarray(t), np.asarray(weights, np.float64)


def history_of(losses, length=10):
    """Every step has had the same loss, `length` times."""
    table = np.repeat(np.asarray(losses, np.float32)[:, None], length, axis=1)
    return LossHistory(jnp.asarray(table), jnp.full(len(table), length, jnp.int32))


@functools.cache
def bound_terms():
    """E[L_t] in nats of an exact denoiser of N(m, 0.5² I) with the variance β_t: the shape of a
    real bound, three orders of magnitude from the first step to the last."""
    tables = Tables(np.linspace(5e-4, 0.1, 200))
    a, small = tables.alpha_bar, np.exp(tables.log_variance)
    mse = 0.25 * (1 - a) / (a * 0.25 + 1 - a)
    spread = small + tables.coef_x_0**2 * mse
    return 0.5 * (np.log(tables.beta / small) + spread / tables.beta - 1)


def test_uniform_timesteps_are_uniform():
    """A χ² test over 10 steps and 40,000 draws, at its 99.9 % point."""
    keys = dj.example_keys(jax.random.key(0), MANY)
    counts = np.bincount(uniform_timesteps(keys, 10), minlength=10)
    assert len(counts) == 10
    assert ((counts - 4000) ** 2 / 4000).sum() < stats.chi2.ppf(0.999, 9)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def stratified_draws(key, draws, B, steps):
    """[draws, B]: as many batches, each from a key of its own."""

    def one(key):
        return stratified_timesteps(dj.example_keys(key, jnp.arange(B)), jnp.arange(B), B, steps)

    return jax.vmap(one)(jax.random.split(key, draws))


@pytest.mark.parametrize("B,steps", [(32, 1000), (128, 100), (7, 7), (1, 50)])
def test_stratified_timesteps_lie_in_their_strata_and_fill_them(B, steps):
    draws = np.asarray(stratified_draws(jax.random.key(0), 100, B, steps))
    low = np.floor(np.arange(B) * steps / B)
    high = np.ceil((np.arange(B) + 1) * steps / B) - 1
    assert (draws >= low).all() and (draws <= high).all()
    # Every step has the same expected count, 100 B/T; the mean of all draws has standard error
    # T/(√12 √(100 B) B).
    expected, error = (steps - 1) / 2, steps / np.sqrt(12 * 100 * B) / B
    np.testing.assert_allclose(draws.mean(), expected, atol=5 * error + 0.5 * (steps % B > 0))


def test_stratifying_estimates_the_same_loss_with_less_variance():
    """For a loss that is a function f(t) alone: the mean of f over a batch of 32, 100 times."""
    f = np.asarray(dj.linear_schedule().noise_scale)
    stratified = f[stratified_draws(jax.random.key(1), 100, 32, 1000)].mean(axis=1)
    np.testing.assert_allclose(stratified.mean(), f.mean(), atol=4 * stratified.std() / 10)
    # Independent draws would leave the standard deviation of f over √32.
    assert stratified.std() < f.std() / np.sqrt(32) / 5


def test_probabilities_follow_the_root_of_the_mean_square():
    """iDDPM Eq. 18 with 0.1 % of the uniform, in float64 NumPy."""
    losses = np.random.default_rng(0).exponential(size=(7, 10)) * np.arange(1, 8)[:, None]
    history = LossHistory(jnp.asarray(losses, jnp.float32), jnp.full(7, 10, jnp.int32))
    share = np.sqrt((losses**2).mean(axis=1))
    share /= share.sum()
    for mix, words in ((1e-3, {}), (0.25, {"uniform_mix": 0.25})):
        p = importance_probabilities(history, **words)
        np.testing.assert_allclose(p, (1 - mix) * share + mix / 7, rtol=1e-5)
        np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-6)
    # Only ratios count, also of losses whose squares float32 cannot hold.
    for unit in (1e-30, 1e30):
        scaled = history._replace(losses=history.losses * np.float32(unit))
        np.testing.assert_allclose(importance_probabilities(scaled), 0.999 * share + 1e-3 / 7, 1e-5)


def test_uniform_until_every_step_has_had_as_many_losses_as_are_kept():
    """One loss too few at one step is enough; losses that are all zero say nothing either."""
    history = history_of(np.arange(1.0, 6.0), length=3)
    lacking = history._replace(count=history.count.at[4].set(2))
    for waiting in (init_loss_history(5, 3), lacking, history_of(np.zeros(5), 3)):
        np.testing.assert_allclose(importance_probabilities(waiting), np.full(5, 0.2), rtol=1e-6)
    _, weights = draw(0, np.arange(64), init_loss_history(200))
    np.testing.assert_allclose(weights, np.ones(64), rtol=1e-6)
    share = 0.999 * np.arange(1, 6) / 15 + 2e-4
    np.testing.assert_allclose(importance_probabilities(history), share, rtol=1e-5)


def test_weighted_losses_have_the_uniform_mean():
    """Σ_t p_t w_t L_t = mean L_t for losses that the history knows nothing of; and so says the mean
    of 40,000 draws, to four standard errors."""
    rng = np.random.default_rng(1)
    losses, history = rng.exponential(size=200), history_of(0.2 + rng.exponential(size=200))
    p = np.asarray(importance_probabilities(history), np.float64)
    t, weights = draw(3, MANY, history)
    assert t.dtype == np.int32
    by_step = np.full(200, np.nan)
    by_step[t] = weights
    np.testing.assert_allclose((p * by_step * losses).sum(), losses.mean(), rtol=1e-6)
    drawn = weights * losses[t]
    np.testing.assert_allclose(drawn.mean(), losses.mean(), atol=4 * drawn.std() / 200)


def test_weights_stay_within_bounds():
    """1/(T p) ≤ 1/0.001, reached by a step without loss, and ≥ 1/T, by one that has it all."""
    spike = history_of(np.eye(200)[17])
    t, weights = draw(4, MANY, spike)
    at_spike = 1 / (0.999 * 200 + 1e-3)
    np.testing.assert_allclose(weights, np.where(t == 17, at_spike, 1000.0), rtol=1e-4)
    # 40 of the draws are expected elsewhere.
    assert 15 < (t != 17).sum() < 75


def test_steps_are_drawn_with_their_probabilities():
    """A χ² test over 200 steps and 40,000 draws, at its 99.9 % point."""
    history = history_of(np.linspace(0.5, 4.0, 200))
    expected = 40_000 * np.asarray(importance_probabilities(history), np.float64)
    t, _ = draw(6, MANY, history)
    counts = np.bincount(t, minlength=200)
    assert len(counts) == 200
    assert ((counts - expected) ** 2 / expected).sum() < stats.chi2.ppf(0.999, 199)


def test_importance_takes_the_variance_out_of_a_bound():
    """Losses L_t (1 + noise) as large as the history says: what is left of the variance is that of
    the noise and of the uniform share. By the closed form Σ p_t w_t² E[L²] - (mean L)², and by
    40,000 draws."""
    L, noise = bound_terms(), 0.3
    assert L.max() > 1000 * L.min()
    history = history_of(np.sqrt(1 + noise**2) * L)
    p = np.asarray(importance_probabilities(history), np.float64)
    second = L**2 * (1 + noise**2)
    uniform = second.mean() - L.mean() ** 2
    importance = (second / (200**2 * p)).sum() - L.mean() ** 2
    assert importance < 0.05 * uniform
    t, weights = draw(5, MANY, history)
    drawn = weights * L[t] * (1 + noise * np.random.default_rng(0).standard_normal(len(t)))
    np.testing.assert_allclose(drawn.var(), importance, rtol=0.1)
    np.testing.assert_allclose(drawn.mean(), L.mean(), atol=4 * drawn.std() / 200)


@pytest.mark.parametrize("steps,length,B", [(5, 3, 24), (3, 1, 8), (1, 4, 8)])
def test_the_history_is_a_queue_for_each_step(steps, length, B):
    """Against Python's own queues, over batches with more repeats of a step than are kept, in the
    order of the batch."""
    rng = np.random.default_rng(steps)
    history = init_loss_history(steps, length)
    queues = [collections.deque(maxlen=length) for _ in range(steps)]
    counts = np.zeros(steps, int)
    for _ in range(12):
        t = rng.integers(0, rng.integers(1, steps + 1), B).astype(np.int32)
        losses = rng.standard_normal(B).astype(np.float32)
        history = UPDATE(history, t, losses)
        for step, loss in zip(t, losses, strict=True):
            queues[step].append(loss)
            counts[step] += 1
        np.testing.assert_array_equal(history.count, counts)
        for step, queue in enumerate(queues):
            # The ring's oldest entry lies where the next one goes.
            ring = np.asarray(history.losses[step])
            if counts[step] >= length:
                ring = np.roll(ring, -(counts[step] % length))
            np.testing.assert_array_equal(ring[: len(queue)], queue)
    assert history.losses.dtype == jnp.float32 and history.count.dtype == jnp.int32


def test_one_step_is_drawn_with_weight_one():
    t, weights = draw(0, np.arange(64), history_of([2.5], 4))
    np.testing.assert_array_equal(t, np.zeros(64))
    np.testing.assert_allclose(weights, np.ones(64), rtol=1e-6)


def test_each_example_draws_by_its_own_key():
    """The same t whichever examples share its batch; under another key another."""
    history = history_of(np.arange(1.0, 201.0))
    here, weights = draw(2, np.arange(64), history)
    there, their_weights = draw(2, np.arange(100, 36, -1), history)
    np.testing.assert_array_equal(there[::-1][:27], here[37:])
    np.testing.assert_array_equal(their_weights[::-1][:27], weights[37:])
    assert len(np.unique(here)) > 40
    assert (here != draw(3, np.arange(64), history)[0]).mean() > 0.8


def test_the_history_takes_no_part_in_gradients():
    """Neither where losses enter it nor, by way of the weights, where they are drawn by it."""

    def remembered(losses):
        history = update_loss_history(history_of([1.0, 2.0], 2), jnp.array([0, 1, 1]), losses)
        return importance_probabilities(history)[0] + history.losses.sum()

    value_and_slope = jax.jit(jax.value_and_grad(remembered))
    value, slope = value_and_slope(np.float32([1, 2, 3]))
    np.testing.assert_array_equal(slope, np.zeros(3))
    assert value_and_slope(np.float32([9, 2, 3]))[0] != value


@pytest.mark.parametrize("steps,length,name", [(0, 10, "num_timesteps"), (10, 0, "length")])
def test_bad_values_are_named(steps, length, name):
    with pytest.raises(ValueError, match=f"needs {name}.* got 0"):
        init_loss_history(steps, length)
