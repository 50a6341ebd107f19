import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import ddpm_jax as dj
from ddpm_jax.prediction import TARGETS
from tests.oracles import GaussianData

SCHEDULE = dj.linear_schedule(200, 5e-4, 0.1)
T = np.array([0, 50, 199])


def draw(shape=(3, 4, 4, 2)):
    rng = np.random.default_rng(1)
    return (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))


@pytest.mark.parametrize("target", TARGETS)
def test_a_constant_error_costs_its_square(target):
    """A network that is off by 0.5 everywhere loses 0.25, in every example and for every target."""
    x_0, noise = draw()
    truth = dj.training_target(SCHEDULE, x_0, T, noise, target=target)
    loss = dj.simple_loss(SCHEDULE, lambda x, t: truth + 0.5, x_0, T, noise, target=target)
    np.testing.assert_allclose(loss, np.full(3, 0.25), rtol=1e-4)


def test_network_sees_x_t_and_its_own_timesteps():
    x_0, noise = draw()
    grid = dj.respace(SCHEDULE, [2, 90, 150])
    seen = {}

    def apply_fn(x_t, timesteps):
        seen.update(x_t=x_t, timesteps=timesteps)
        return x_t

    dj.simple_loss(grid, apply_fn, x_0, np.array([0, 1, 2]), noise)
    np.testing.assert_array_equal(seen["timesteps"], [2, 90, 150])
    np.testing.assert_allclose(
        seen["x_t"], dj.q_sample(SCHEDULE, x_0, np.array([2, 90, 150]), noise), rtol=1e-5, atol=1e-6
    )


def test_the_exact_denoiser_reaches_the_known_minimum():
    """Gaussian data: E‖ε - E[ε|x_t]‖² = ᾱc²/(ᾱc² + 1 - ᾱ), and nothing can be lower."""
    data = GaussianData(0.3, 0.7, np.asarray(SCHEDULE.alpha_bar, np.float64))
    t = 60
    a = data.alpha_bar[t]
    rng = np.random.default_rng(0)
    x_0 = jnp.asarray(0.3 + 0.7 * rng.standard_normal((64, 4096)), jnp.float32)
    noise = jnp.asarray(rng.standard_normal((64, 4096)), jnp.float32)

    def exact(x_t, timesteps):
        x_0_hat = data.denoise(x_t, timesteps)
        return dj.convert_prediction(
            SCHEDULE, x_0_hat, x_t, timesteps, source="x_0", target="epsilon"
        )

    minimum = a * 0.49 / (a * 0.49 + 1 - a)
    loss = dj.simple_loss(SCHEDULE, exact, x_0, t, noise)
    np.testing.assert_allclose(loss.mean(), minimum, rtol=0.01)
    worse = dj.simple_loss(SCHEDULE, lambda x, s: 0.95 * exact(x, s), x_0, t, noise)
    assert worse.mean() > loss.mean()


def test_rows_are_independent():
    x_0, noise = draw()

    def apply_fn(x_t, t):
        return jnp.tanh(x_t) * t.astype(jnp.float32).reshape(-1, 1, 1, 1)

    together = dj.simple_loss(SCHEDULE, apply_fn, x_0, T, noise)
    alone = [
        dj.simple_loss(SCHEDULE, apply_fn, x_0[i : i + 1], T[i : i + 1], noise[i : i + 1])[0]
        for i in range(3)
    ]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-6)


def test_gradients_flow_to_parameters():
    x_0, noise = draw()

    def loss(scale):
        return dj.simple_loss(SCHEDULE, lambda x, t: scale * x, x_0, T, noise).mean()

    check_grads(loss, (jnp.float32(0.7),), order=1, modes=["rev"], rtol=1e-2)
    x_t = dj.q_sample(SCHEDULE, x_0, T, noise)
    by_hand = jnp.mean(2 * (0.7 * x_t - noise) * x_t)
    np.testing.assert_allclose(jax.grad(loss)(jnp.float32(0.7)), by_hand, rtol=1e-5)


def test_a_bfloat16_network_is_measured_in_float32():
    x_0, noise = draw()
    loss = dj.simple_loss(SCHEDULE, lambda x, t: x.astype(jnp.bfloat16), x_0, T, noise)
    assert loss.dtype == jnp.float32


def test_other_shapes_and_a_shared_t():
    x_0, noise = draw((3,))
    assert dj.simple_loss(SCHEDULE, lambda x, t: x, x_0, 5, noise).shape == (3,)


def test_a_doubled_output_is_refused():
    x_0, noise = draw()
    with pytest.raises(ValueError, match="variances"):
        dj.simple_loss(SCHEDULE, lambda x, t: jnp.concatenate([x, x], -1), x_0, T, noise)


def test_uniform_timesteps_are_uniform():
    """A χ² test over 10 steps and 20,000 draws; 27.9 is its 99.9 % point with 9 degrees of
    freedom."""
    keys = dj.example_keys(jax.random.key(0), jnp.arange(20_000))
    counts = np.bincount(dj.uniform_timesteps(keys, 10), minlength=10)
    assert len(counts) == 10 and ((counts - 2000) ** 2 / 2000).sum() < 27.9


@pytest.mark.parametrize("B,steps", [(32, 1000), (128, 100), (7, 7), (1, 50)])
def test_stratified_timesteps_lie_in_their_strata_and_fill_them(B, steps):
    draws = np.stack(
        [
            dj.stratified_timesteps(
                dj.example_keys(jax.random.key(seed), jnp.arange(B)), jnp.arange(B), B, steps
            )
            for seed in range(100)
        ]
    )
    low = np.floor(np.arange(B) * steps / B)
    high = np.ceil((np.arange(B) + 1) * steps / B) - 1
    assert (draws >= low).all() and (draws <= high).all()
    # Every step has the same expected count, 100 B/T; the mean of all draws has standard error
    # T/(√12 √(100 B) B).
    expected, error = (steps - 1) / 2, steps / np.sqrt(12 * 100 * B) / B
    np.testing.assert_allclose(draws.mean(), expected, atol=5 * error + 0.5 * (steps % B > 0))


def test_stratifying_estimates_the_same_loss_with_less_variance():
    """For a loss that is a function f(t) alone: the mean of f over a batch, many times."""
    f = np.asarray(SCHEDULE.noise_scale)
    estimates = {"uniform": [], "stratified": []}
    for seed in range(300):
        keys = dj.example_keys(jax.random.key(seed), jnp.arange(16))
        estimates["uniform"].append(f[dj.uniform_timesteps(keys, 200)].mean())
        keys = dj.example_keys(jax.random.key(1000 + seed), jnp.arange(16))
        stratified = dj.stratified_timesteps(keys, jnp.arange(16), 16, 200)
        estimates["stratified"].append(f[stratified].mean())
    spread = {name: np.std(values) for name, values in estimates.items()}
    np.testing.assert_allclose(
        np.mean(estimates["stratified"]), f.mean(), atol=4 * spread["stratified"] / np.sqrt(300)
    )
    assert spread["stratified"] < spread["uniform"] / 5
