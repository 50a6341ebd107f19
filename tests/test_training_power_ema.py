"""Power-function averages (EDM2): against sums over a known trajectory, and made afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from ddpm_jax.training import (
    init_state,
    make_optimizer,
    make_train_step,
    post_hoc_weights,
    power_ema_decay_at,
    update_ema,
)
from ddpm_jax.training.power_ema import LARGEST_SIGMA_REL, _inner, power_gamma

STEPS = 2000
# A random walk beside a decaying oscillation: parameters that drift, and that settle.
TIME = np.arange(1, STEPS + 1) / STEPS
TRAJECTORY = np.stack(
    [
        np.cumsum(np.random.default_rng(0).normal(size=STEPS)) / np.sqrt(STEPS),
        np.exp(-3 * TIME) * np.cos(40 * TIME),
        np.random.default_rng(1).normal(size=STEPS),
    ],
    axis=1,
)


def direct(sigma_rel, step):
    """The average after `step` steps as the weighted sum that it is, in float64."""
    exponent = power_gamma(sigma_rel) + 1
    s = np.arange(1, step + 1, dtype=np.float64)
    weights = (1 - (1 - 1 / s) ** exponent) * (s / step) ** exponent
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-12)
    return weights @ TRAJECTORY[:step]


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25, LARGEST_SIGMA_REL])
def test_the_width_of_the_profile_is_sigma_rel(sigma_rel):
    gamma = power_gamma(sigma_rel)
    s, height = np.linspace(0, 1, 200_001), (gamma + 1) * np.linspace(0, 1, 200_001) ** gamma
    mean = integrate.simpson(s * height, x=s)
    deviation = np.sqrt(integrate.simpson((s - mean) ** 2 * height, x=s))
    np.testing.assert_allclose(deviation, sigma_rel, rtol=1e-5)


def test_the_widths_of_the_paper_have_its_exponents():
    """EDM2, §3.1: σ_rel 0.05 and 0.10 are γ ≈ 16.97 and 6.94."""
    assert power_gamma(0.05) == pytest.approx(16.97, abs=0.005)
    assert power_gamma(0.10) == pytest.approx(6.94, abs=0.005)


def test_updates_give_the_weighted_sum():
    def update(average, inputs):
        step, x = inputs
        return update_ema(average, x, power_ema_decay_at(step, 0.1)), None

    start = jnp.full(3, 1e6)  # the first decay is 0: nothing of it remains
    inputs = jnp.arange(STEPS), jnp.asarray(TRAJECTORY, jnp.float32)
    average, _ = jax.jit(lambda: jax.lax.scan(update, start, inputs))()
    np.testing.assert_allclose(average, direct(0.1, STEPS), atol=2e-4)


def test_the_inner_product_is_the_integral():
    for t_a, gamma_a, t_b, gamma_b in ((3.0, 5.0, 4.0, 16.97), (4.0, 0.5, 1.0, 6.94)):
        profiles = [
            lambda s, t=t, g=g: (g + 1) * s**g / t ** (g + 1)
            for t, g in ((t_a, gamma_a), (t_b, gamma_b))
        ]
        truth, _ = integrate.quad(lambda s: profiles[0](s) * profiles[1](s), 0, min(t_a, t_b))  # noqa: B023
        np.testing.assert_allclose(_inner(t_a, gamma_a, t_b, gamma_b), truth, rtol=1e-10)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.05, 0.075, 0.1, 0.15, 0.2])
@pytest.mark.parametrize("step", [2000, 1600])
def test_snapshots_give_back_the_average_of_another_width(sigma_rel, step):
    """Twenty snapshots of two widths against the average that was never stored."""
    stored = [(s, width) for s in range(100, STEPS + 1, 100) for width in (0.05, 0.1)]
    weights, error = post_hoc_weights(stored, step, sigma_rel)
    assert weights.sum() == pytest.approx(1.0, abs=5e-3) and error < 0.05
    found = weights @ np.stack([direct(width, s) for s, width in stored])
    truth = direct(sigma_rel, step)
    # Of the parameters' spread over the last of training, which the choice of the width averages.
    spread = TRAJECTORY[step // 2 : step].std(axis=0)
    np.testing.assert_array_less(np.abs(found - truth), 0.01 * spread)
    # And far nearer than the nearest stored average.
    if sigma_rel not in (0.05, 0.1):
        nearest = min(abs(direct(w, step) - truth)[0] for w in (0.05, 0.1))
        assert np.abs(found - truth)[0] < 0.03 * nearest


def test_a_stored_average_is_itself():
    stored = [(s, width) for s in (100, 200, 300) for width in (0.05, 0.1)]
    weights, error = post_hoc_weights(stored, 200, 0.1)
    np.testing.assert_allclose(weights, [0, 0, 0, 1, 0, 0], atol=1e-9)
    assert error < 1e-6


def test_the_distance_that_remains_is_that_of_the_profiles():
    """Three steps near the end cannot make a wide average, and say by how much."""
    stored = [(s, width) for s in (1900, 1950, 2000) for width in (0.05, 0.1)]
    weights, error = post_hoc_weights(stored, 2000, 0.2)
    s = np.linspace(0, 2000, 400_001)
    profiles = [
        np.where(s <= t, (power_gamma(w) + 1) * (s / t) ** power_gamma(w) / t, 0.0)
        for t, w in [*stored, (2000, 0.2)]
    ]
    difference = integrate.simpson((weights @ np.stack(profiles[:-1]) - profiles[-1]) ** 2, x=s)
    truth = np.sqrt(difference / integrate.simpson(profiles[-1] ** 2, x=s))
    assert truth > 0.3 and error == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: power_gamma(0.0), "relative width"),
        (lambda: power_gamma(0.3), "relative width"),
        (lambda: power_gamma(float("nan")), "relative width"),
        (lambda: post_hoc_weights([], 1, 0.1), "got none"),
        (lambda: post_hoc_weights([(10, 0.1)], 11, 0.1), "1..10"),
        (lambda: post_hoc_weights([(10, 0.1)], 0, 0.1), "1..10"),
        (lambda: post_hoc_weights([(0, 0.1), (10, 0.1)], 5, 0.1), "from 1, got 0"),
    ],
)
def test_wrong_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_step_updates_every_average_and_skips_none_or_all():
    optimizer = make_optimizer(1e-2)
    decays = [lambda step: jnp.float32(0.5), lambda step: power_ema_decay_at(step, 0.1)]

    def loss_fn(params, batch, keys):
        return jnp.square(params["w"] - 1.0) * batch["x"]

    step = jax.jit(make_train_step(loss_fn, optimizer, ema_decay=0.9, extra_emas=decays))
    plain = jax.jit(make_train_step(loss_fn, optimizer, ema_decay=0.9))
    start = {"w": jnp.float32(0.3)}
    state = init_state(start, optimizer, jax.random.key(0), num_extra_emas=2)
    alone = init_state(start, optimizer, jax.random.key(0))
    expected = [np.float64(0.3)] * 2
    for i in range(20):
        batch = {"x": jnp.full(4, np.nan if i == 7 else 1.0), "index": jnp.arange(4)}
        before = state
        state, _ = step(state, batch)
        alone, _ = plain(alone, batch)
        if i == 7:
            assert state.extra_ema_params == before.extra_ema_params
            continue
        beta = [0.5, (1 - 1 / (i + 1)) ** (power_gamma(0.1) + 1)]
        w = float(state.params["w"])
        expected = [b * e + (1 - b) * w for b, e in zip(beta, expected, strict=True)]
    assert (state.params, state.ema_params) == (alone.params, alone.ema_params)
    np.testing.assert_allclose([e["w"] for e in state.extra_ema_params], expected, rtol=1e-5)
