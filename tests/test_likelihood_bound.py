"""Every term of the bound against the paper's formulas in float64 NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import ddpm_jax as dj
from ddpm_jax.denoisers.prediction import TARGETS
from ddpm_jax.forward import rescale_zero_terminal_snr
from ddpm_jax.likelihood.bound import bound_term, prior_term
from tests.oracles import Tables

BETA = np.linspace(0.002, 0.35, 50)
SCHEDULE, TRUTH = dj.schedule_from_beta(BETA), Tables(BETA)
STEPS = np.array([0, 1, 0, 9, 30, 49])
RNG = np.random.default_rng(0)
SHAPE = (len(STEPS), 2, 3, 2)
X_0 = -1 + 2 / 255 * RNG.integers(0, 256, SHAPE)
X_0[0, 0, 0], X_0[2, 0, 0] = -1.0, 1.0
NOISE = RNG.standard_normal(SHAPE)
TABLE = np.log(TRUTH.beta) - 0.3 * np.cos(np.arange(50))
f32 = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731


def at(table, t=STEPS):
    return table[t].reshape(-1, 1, 1, 1)


def diffuse(truth, t):
    signal, sigma = np.sqrt(at(truth.alpha_bar, t)), np.sqrt(1 - at(truth.alpha_bar, t))
    return signal, sigma, signal * X_0 + sigma * NOISE


def reference(truth, x_0_hat, log_variance, t):
    """L_t in bits/dim [B]: Ho et al. 2020, Eqs. 5 to 8 and 13, term by term."""
    first = t.reshape(-1, 1, 1, 1) == 0
    _, _, x_t = diffuse(truth, t)
    mean = at(truth.coef_x_0, t) * x_0_hat + at(truth.coef_x_t, t) * x_t
    true_mean = at(truth.coef_x_0, t) * X_0 + at(truth.coef_x_t, t) * x_t
    variance = np.exp(log_variance)
    posterior = np.where(first, 1.0, at(truth.posterior_variance, t))
    kl = 0.5 * (np.log(variance / posterior) + (posterior + (true_mean - mean) ** 2) / variance - 1)
    lower = np.where(X_0 < -0.999, -np.inf, (X_0 - 1 / 255 - mean) / np.sqrt(variance))
    upper = np.where(X_0 > 0.999, np.inf, (X_0 + 1 / 255 - mean) / np.sqrt(variance))
    # From the lighter tail: the first number of each pair is the larger in magnitude of log.
    right = lower > 0
    near, far = np.where(right, -lower, upper), np.where(right, -upper, lower)
    decoder = special.log_ndtr(near) + np.log1p(
        -np.exp(special.log_ndtr(far) - special.log_ndtr(near))
    )
    return np.where(first, -decoder, kl).mean((1, 2, 3)) / np.log(2)


def views(truth, x_0_hat, t):
    """What a network of each target says when it means this x̂_0."""
    signal, sigma, x_t = diffuse(truth, t)
    noise_hat = (x_t - signal * x_0_hat) / sigma
    return {
        "epsilon": noise_hat,
        "x_0": x_0_hat,
        "v": signal * noise_hat - sigma * x_0_hat,
        "previous_mean": at(truth.coef_x_0, t) * x_0_hat + at(truth.coef_x_t, t) * x_t,
        "score": -noise_hat / sigma,
    }


X_0_HAT = X_0 + 0.15 * np.sin(np.arange(X_0.size)).reshape(SHAPE)
SPREAD = np.cos(np.arange(X_0.size)).reshape(SHAPE)
FIRST = np.log(TRUTH.posterior_variance[1])
LOG_VARIANCES = {
    "fixed_large": at(np.append(FIRST, np.log(TRUTH.beta[1:]))),
    "fixed_small": at(TRUTH.log_variance),
    "learned": SPREAD - 3,
    "learned_range": (1 + SPREAD) / 2 * at(np.log(TRUTH.beta))
    + (1 - SPREAD) / 2 * at(TRUTH.log_variance),
    "table": at(TABLE),
}


@pytest.mark.parametrize("target", TARGETS)
def test_every_term_equals_the_papers_formula(target):
    """For all variances, with and without clipping, t = 0 and the others in one batch."""
    x_t = diffuse(TRUTH, STEPS)[2]
    for (name, log_variance), clip in itertools.product(LOG_VARIANCES.items(), (True, False)):
        output = views(TRUTH, X_0_HAT, STEPS)[target]
        if name.startswith("learned"):
            spread = log_variance if name == "learned" else SPREAD
            output = np.concatenate([output, spread], axis=-1)
        reverse = dj.p_mean_variance(
            SCHEDULE,
            f32(output),
            f32(x_t),
            STEPS,
            target=target,
            variance=f32(TABLE) if name == "table" else name,
            clip=clip,
        )
        got = bound_term(SCHEDULE, reverse, f32(X_0), f32(x_t), STEPS)
        # A predicted mean is kept, whatever is clipped.
        x_0_hat = np.clip(X_0_HAT, -1, 1) if clip and target != "previous_mean" else X_0_HAT
        expected = reference(TRUTH, x_0_hat, log_variance, STEPS)
        np.testing.assert_allclose(got, expected, rtol=2e-4, err_msg=f"{name} {clip=}")


def test_a_thousand_steps_in_float32():
    """The paper's process at its ends: the terms span ten orders of magnitude."""
    truth, schedule = Tables(np.linspace(1e-4, 0.02, 1000)), dj.linear_schedule()
    t = np.array([0, 1, 2, 100, 600, 999])
    x_t = diffuse(truth, t)[2]
    log_variance = at(np.append(np.log(truth.posterior_variance[1]), np.log(truth.beta[1:])), t)
    # An ε-network: its error in x̂_0 grows with the noise.
    noise_hat = NOISE + 0.1 * SPREAD
    signal, sigma, _ = diffuse(truth, t)
    x_0_hat = (x_t - sigma * noise_hat) / signal
    reverse = dj.p_mean_variance(schedule, f32(noise_hat), f32(x_t), t, clip=False)
    got = bound_term(schedule, reverse, f32(X_0), f32(x_t), t)
    np.testing.assert_allclose(got, reference(truth, x_0_hat, log_variance, t), rtol=1e-3)


def test_the_terms_are_divergences():
    """≥ 0, and 0 for the true posterior, which only x̂_0 = x_0 with fixed_small reaches."""
    x_t = f32(diffuse(TRUTH, STEPS)[2])
    exact = dj.p_mean_variance(SCHEDULE, f32(X_0), x_t, STEPS, target="x_0", variance="fixed_small")
    got = np.asarray(bound_term(SCHEDULE, exact, f32(X_0), x_t, STEPS))
    np.testing.assert_allclose(got[STEPS > 0], 0.0, atol=1e-9)
    assert (got[STEPS == 0] > 0).all()


def test_a_shared_step_and_other_shapes():
    x_0, x_t = f32(X_0[:, 0, 0, 0]), f32(diffuse(TRUTH, np.full(6, 7))[2][:, 0, 0, 0])
    reverse = dj.p_mean_variance(SCHEDULE, x_t, x_t, 7, target="x_0")
    shared = bound_term(SCHEDULE, reverse, x_0, x_t, 7)
    np.testing.assert_array_equal(shared, bound_term(SCHEDULE, reverse, x_0, x_t, np.full(6, 7)))
    assert shared.shape == (6,)


def test_no_branch_spoils_the_others_gradient():
    """Log-variances that overflow where a branch is not asked for: gradients as if it were not."""
    steps = np.array([0, 0, 9, 9, 9, 0])
    extreme = np.array([-4.0, -89.0, -4.0, 89.0, 100.0, 60.0])
    x_t = f32(diffuse(TRUTH, steps)[2])
    x_0_hat = np.clip(X_0_HAT, -0.99, 0.99)

    @jax.jit
    def gradients(output, steps):
        def total(output):
            reverse = dj.p_mean_variance(
                SCHEDULE, output, x_t, steps, target="x_0", variance="learned"
            )
            return bound_term(SCHEDULE, reverse, f32(X_0), x_t, steps).sum()

        return jax.grad(total)(output)

    spread = np.broadcast_to(extreme.reshape(-1, 1, 1, 1), SHAPE)
    output = np.concatenate([x_0_hat, spread], axis=-1)
    got = np.asarray(gradients(f32(output), steps))
    assert np.isfinite(got).all()
    # The KL's own gradient by hand: ½ (1 - (β̃ + w²(x_0-x̂_0)²)/σ²) with respect to log σ².
    row, scale = 2, X_0[0].size * np.log(2)
    w, posterior = TRUTH.coef_x_0[9], TRUTH.posterior_variance[9]
    error = (posterior + w**2 * (X_0[row] - x_0_hat[row]) ** 2) / np.exp(-4.0)
    np.testing.assert_allclose(got[row, ..., 2:], 0.5 * (1 - error) / scale, rtol=1e-3)
    # And far out, where 1/σ² is nothing, ½.
    np.testing.assert_allclose(got[3, ..., 2:], 0.5 / scale, rtol=1e-5)
    # The decoder's, by hand from a bin that is much narrower than σ = e^30: nothing but ½ is left.
    inner = np.abs(X_0[5]) < 0.999
    np.testing.assert_allclose(got[5, ..., 2:][inner], 0.5 / scale, rtol=1e-4)


@pytest.mark.parametrize("beta", [BETA, np.linspace(1e-4, 0.02, 1000)], ids=["50", "1000"])
def test_the_prior_term_is_its_closed_form(beta):
    """½ ((1-ᾱ) + ᾱ x_0² - 1 - log(1-ᾱ)), by SciPy's entropy of a normal for the last part."""
    a = Tables(beta).alpha_bar[-1]
    entropy = stats.norm(0, np.sqrt(1 - a)).entropy()
    cross = 0.5 * (np.log(2 * np.pi) + 1 - a + a * X_0**2)
    expected = (cross - entropy).mean((1, 2, 3)) / np.log(2)
    got = prior_term(dj.schedule_from_beta(beta), f32(X_0))
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_nothing_is_left_to_send_at_zero_terminal_snr():
    schedule = rescale_zero_terminal_snr(SCHEDULE)
    np.testing.assert_array_equal(prior_term(schedule, f32(X_0)), np.zeros(6))
