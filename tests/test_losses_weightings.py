import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.denoisers.prediction import TARGETS
from ddpm_jax.forward import rescale_zero_terminal_snr
from ddpm_jax.losses import (
    bound_loss,
    bound_weight,
    loss_weight,
    min_snr_weighting,
    p2_weighting,
    simple_loss,
    snr_plus_one_weighting,
    snr_weighting,
    truncated_snr_weighting,
)
from tests.oracles import Tables

BETA = np.linspace(5e-4, 0.1, 200)
TABLES = Tables(BETA)
SNR = TABLES.alpha_bar / (1 - TABLES.alpha_bar)
STEPS = np.arange(200)
LOG_TABLE = np.log(0.7 * BETA)
LARGE = np.append(np.exp(TABLES.log_variance[0]), BETA[1:])
FIXED = {
    "fixed_large": LARGE,
    "fixed_small": np.exp(TABLES.log_variance),
    "table": np.exp(LOG_TABLE),
}
WEIGHTINGS = {
    "snr": (snr_weighting, SNR),
    "snr + 1": (snr_plus_one_weighting, SNR + 1),
    "truncated": (truncated_snr_weighting, np.maximum(SNR, 1)),
    "min-snr": (min_snr_weighting(5.0), np.minimum(SNR, 5)),
    "p2": (p2_weighting(2.0, 0.5), SNR / (2 + SNR) ** 0.5),
    "one's own": (lambda log_snr: 1 / (1 + jnp.abs(log_snr)), 1 / (1 + np.abs(np.log(SNR)))),
}
# By how much an error of the target moves the mean of the reverse step: Ho et al. 2020, Eqs. 7, 11.
ROOT = np.sqrt(1 - TABLES.alpha_bar)
MEAN_MOVES = {
    "epsilon": BETA / (ROOT * np.sqrt(1 - BETA)),
    "x_0": TABLES.coef_x_0,
    "v": TABLES.coef_x_0 * ROOT,
    "previous_mean": np.ones(200),
    "score": BETA / np.sqrt(1 - BETA),
}


def schedule_of(dtype):
    return dj.linear_schedule(200, 5e-4, 0.1, dtype=dtype)


def named(variance):
    return jnp.asarray(LOG_TABLE) if variance == "table" else variance


@pytest.mark.parametrize("dtype,rtol", [("float32", 2e-5), ("float64", 1e-11)])
def test_the_bound_weighs_what_the_mean_moves(dtype, rtol):
    """(∂μ_θ/∂target)²/2σ², for every step, target and fixed variance; for ε it is
    β²/(2σ² (1-β)(1-ᾱ))."""
    with jax.enable_x64(dtype == "float64"):
        schedule = schedule_of(dtype)
        for variance, sigma_2 in FIXED.items():
            for target in TARGETS:
                weight = bound_weight(schedule, STEPS, target=target, variance=named(variance))
                assert weight.dtype == dtype
                wanted = MEAN_MOVES[target] ** 2 / (2 * sigma_2)
                np.testing.assert_allclose(weight, wanted, rtol=rtol, err_msg=target + variance)
            of_epsilon = bound_weight(schedule, STEPS, target="epsilon", variance=named(variance))
            wanted = BETA**2 / (2 * sigma_2 * (1 - BETA) * (1 - TABLES.alpha_bar))
            np.testing.assert_allclose(of_epsilon, wanted, rtol=rtol)


def draw(count):
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.standard_normal((4, 3, 2)), jnp.float32) for _ in range(count))


@pytest.mark.parametrize("target", TARGETS)
def test_the_weight_times_the_squared_error_is_the_bound(target):
    """L_t(prediction) - L_t(truth) in nats, for t ≥ 1 and all fixed variances: with β̃ as the
    variance L_t(truth) is 0."""
    t = np.array([1, 2, 100, 199])
    schedule = schedule_of("float32")
    x_0, noise, error = draw(3)
    truth = dj.training_target(schedule, x_0, t, noise, target=target)
    wrong = truth + error
    simple = simple_loss(schedule, lambda x, s: wrong, x_0, t, noise, target=target)
    for variance in FIXED:
        bounds = [
            bound_loss(
                schedule,
                lambda x, s, output=output: output,
                x_0,
                t,
                noise,
                target=target,
                variance=named(variance),
            )
            for output in (wrong, truth)
        ]
        weight = bound_weight(schedule, t, target=target, variance=named(variance))
        nats = (bounds[0] - bounds[1]) * math.log(2)
        np.testing.assert_allclose(weight * simple, nats, rtol=2e-3)
        if variance == "fixed_small":
            assert (bounds[1] < 1e-4 * bounds[0]).all()


def test_of_x_0_the_bound_weighs_the_fall_of_the_signal_to_noise_ratio():
    """½ (SNR_{t-1} - SNR_t), with β̃ as the variance (Kingma et al. 2021, Eq. 14), on two
    schedules."""
    with jax.enable_x64(True):
        for schedule in (schedule_of("float64"), dj.cosine_schedule(200, dtype=jnp.float64)):
            snr = np.exp(np.asarray(schedule.log_snr))
            weight = bound_weight(schedule, STEPS, target="x_0", variance="fixed_small")
            np.testing.assert_allclose(weight[1:], 0.5 * (snr[:-1] - snr[1:]), rtol=1e-9)


@pytest.mark.parametrize("dtype,rtol", [("float32", 3e-5), ("float64", 1e-11)])
def test_weights_of_each_target(dtype, rtol):
    """w of x_0; over SNR of ε, over SNR + 1 of v, over SNR/(1-ᾱ) of the score and over the squared
    coefficient of x_0 of the previous mean: every weighting, every step."""
    over = {
        "x_0": 1.0,
        "epsilon": SNR,
        "v": SNR + 1,
        "score": SNR / (1 - TABLES.alpha_bar),
        "previous_mean": TABLES.coef_x_0**2,
    }
    with jax.enable_x64(dtype == "float64"):
        schedule = schedule_of(dtype)
        for name, (weighting, of_x_0) in WEIGHTINGS.items():
            for target in TARGETS:
                weight = loss_weight(schedule, STEPS, weighting, target=target)
                assert weight.dtype == dtype and weight.shape == (200,)
                wanted = of_x_0 / over[target]
                np.testing.assert_allclose(weight, wanted, rtol=rtol, err_msg=f"{name} {target}")


@pytest.mark.parametrize("target", TARGETS)
def test_all_targets_have_the_same_weighted_loss(target):
    """A network that says one x̂_0, whichever way it says it: w ‖x_0 - x̂_0‖²/d."""
    t = np.array([0, 1, 100, 199])
    schedule = schedule_of("float32")
    x_0, noise, x_0_hat = draw(3)

    def network(x_t, timesteps):
        return dj.convert_prediction(schedule, x_0_hat, x_t, timesteps, source="x_0", target=target)

    simple = simple_loss(schedule, network, x_0, t, noise, target=target)
    wanted = np.mean((np.float64(x_0) - x_0_hat) ** 2, axis=(1, 2))
    for weighting, of_x_0 in WEIGHTINGS.values():
        loss = simple * loss_weight(schedule, t, weighting, target=target)
        np.testing.assert_allclose(loss, of_x_0[t] * wanted, rtol=1e-3)


def test_published_forms():
    """L_simple weighs ε by 1, v-prediction v by 1, min-SNR-γ as its three rows, P2 ε by
    1/(k + SNR)^γ, and truncation ε by max(1, 1/SNR)."""
    schedule = schedule_of("float32")

    def check(weighting, target, wanted, **close):
        weight = loss_weight(schedule, STEPS, weighting, target=target)
        np.testing.assert_allclose(weight, wanted * np.ones(200), **(close or {"rtol": 3e-5}))

    check(snr_weighting, "epsilon", 1.0, rtol=1e-6)
    check(snr_plus_one_weighting, "v", 1.0, rtol=1e-6)
    for gamma in (1.0, 5.0):
        least = np.minimum(SNR, gamma)
        check(min_snr_weighting(gamma), "epsilon", least / SNR)
        check(min_snr_weighting(gamma), "x_0", least)
        check(min_snr_weighting(gamma), "v", least / (SNR + 1))
    for k, gamma in ((1.0, 1.0), (1.0, 0.5), (3.0, 2.0), (1.0, 0.0)):
        check(p2_weighting(k, gamma), "epsilon", 1 / (k + SNR) ** gamma)
    check(truncated_snr_weighting, "epsilon", np.maximum(1, 1 / SNR))


def test_v_and_x_0_have_weights_where_no_signal_is_left():
    """Zero terminal SNR: the limits SNR → 0 of the formulas, in value and as a loss."""
    schedule = rescale_zero_terminal_snr(schedule_of("float32"))
    last = np.array([199])
    limits = {
        "snr": (0.0, 0.0),
        "snr + 1": (1.0, 1.0),
        "truncated": (1.0, 1.0),
        "min-snr": (0.0, 0.0),
        "p2": (0.0, 0.0),
    }
    for name, (of_x_0, of_v) in limits.items():
        weighting = WEIGHTINGS[name][0]
        assert loss_weight(schedule, last, weighting, target="x_0") == of_x_0
        assert loss_weight(schedule, last, weighting, target="v") == of_v
    for target in ("x_0", "v"):
        # β = 1 there: μ̃ = √ᾱ_{t-1} x_0, β̃ = 1-ᾱ_{t-1}, and v = -x_0.
        weight = bound_weight(schedule, last, target=target, variance="fixed_small")
        before = float(schedule.alpha_bar[198])
        np.testing.assert_allclose(weight, 0.5 * before / (1 - before), rtol=1e-5)
        loss = simple_loss(
            schedule, lambda x, t: 0 * x, jnp.ones((1, 6)), last, jnp.ones((1, 6)), target=target
        )
        np.testing.assert_allclose(loss, 1.0, rtol=1e-6)


def test_a_weight_for_one_t_and_inside_jit():
    schedule = schedule_of("float32")
    for function in (
        lambda t: loss_weight(schedule, t, min_snr_weighting(), target="previous_mean"),
        lambda t: bound_weight(schedule, t, target="v"),
    ):
        each = function(STEPS)
        one = function(7)
        assert one.shape == ()
        np.testing.assert_array_equal(one, each[7])
        np.testing.assert_allclose(jax.jit(function)(jnp.asarray(STEPS)), each, rtol=1e-5)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda s: min_snr_weighting(0.0), r"gamma in \(0, inf\], got 0.0"),
        (lambda s: min_snr_weighting(float("nan")), "gamma in .*got nan"),
        (lambda s: p2_weighting(0.0, 1.0), r"k in \(0, inf\), got 0.0"),
        (lambda s: p2_weighting(1.0, -1.0), r"gamma in \[0, inf\), got -1.0"),
        (lambda s: loss_weight(s, 0, snr_weighting, target="noise"), "loss_weight needs target"),  # type: ignore
        (lambda s: bound_weight(s, 0, target="noise"), "bound_weight needs target"),  # type: ignore
        (lambda s: bound_weight(s, 0, target="v", variance="learned"), "bound_loss"),
        (lambda s: bound_weight(s, 0, target="v", variance="learned_range"), "bound_loss"),
        (lambda s: bound_weight(s, 0, target="v", variance=np.zeros(7)), "7 steps"),
    ],
)
def test_bad_values_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(schedule_of("float32"))
