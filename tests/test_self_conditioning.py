"""Self-conditioning by hand: what the network is given in training and in sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax import samplers
from ddpm_jax.denoisers import self_conditioned_denoiser, with_previous_estimate

SCHEDULE = dj.linear_schedule(10, 1e-2, 0.3)
rng = np.random.default_rng(0)
X, EPSILON = (jnp.float32(rng.standard_normal((4, 3))) for _ in range(2))
T = jnp.array([0, 3, 6, 9])


def denoise(x, t, before):
    return jnp.tanh(0.7 * x + 0.4 * before) * (1.0 - 0.02 * t[:, None])


@pytest.mark.parametrize("name", ["ddim", "dpm_solver_pp", "unipc"])
def test_every_step_gets_the_estimate_of_the_step_before(name):
    """0 at the first; the loop by hand, a step at a time, with the estimate bound."""
    inner = getattr(dj, name)(SCHEDULE)
    sampler = samplers.self_conditioned(inner)
    got, way = dj.sample_trajectory(sampler, denoise, X)
    x, state, before = X, inner.init(X), jnp.zeros_like(X)
    for t in range(9, -1, -1):
        bound = lambda x, s, before=before: denoise(x, s, before)  # noqa: E731
        x, x_0_hat, state = inner.step(bound, x, jnp.full(4, t), None, state)
        np.testing.assert_allclose(way.x_0_hat[9 - t], x_0_hat, rtol=1e-5, atol=1e-6)
        before = x_0_hat
    np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-6)


def test_draws_and_keys_are_the_samplers_own():
    sampler = samplers.self_conditioned(dj.ancestral(SCHEDULE))
    keys = dj.example_keys(jax.random.key(0), jnp.arange(4))
    ignoring = dj.sample(sampler, lambda x, t, before: 0.5 * x, X, keys=keys)
    plain = dj.sample(dj.ancestral(SCHEDULE), lambda x, t: 0.5 * x, X, keys=keys)
    np.testing.assert_array_equal(ignoring, plain)


def network(weight):
    return lambda x, t, before: weight * x + jnp.sin(before)


@pytest.mark.parametrize("target", ["epsilon", "x_0", "v"])
def test_training_gives_half_of_the_examples_the_networks_own_estimate(target):
    """And no gradient flows through it: as if it were data."""
    use = jnp.array([True, False, True, False])
    kinds = {"target": target, "clip": False}
    x_t = dj.q_sample(SCHEDULE, X, T, EPSILON)
    first = 0.4 * x_t
    estimate = dj.predict_x_0(SCHEDULE, first, x_t, T, target=target)
    estimate = jnp.where(use[:, None], estimate, 0.0)

    def loss(weight):
        apply_fn = with_previous_estimate(SCHEDULE, network(weight), use, **kinds)
        return dj.simple_loss(SCHEDULE, apply_fn, X, T, EPSILON, target=target).sum()

    def by_hand(weight):
        wanted = dj.training_target(SCHEDULE, X, T, EPSILON, target=target)
        return jnp.square(weight * x_t + jnp.sin(estimate) - wanted).mean(-1).sum()

    np.testing.assert_allclose(
        jax.value_and_grad(loss)(0.4), jax.value_and_grad(by_hand)(0.4), rtol=1e-4
    )


def test_the_denoiser_is_make_denoisers_with_the_estimate_bound():
    made = self_conditioned_denoiser(SCHEDULE, network(0.3), target="v", clip=False)
    bound = dj.make_denoiser(
        SCHEDULE, lambda x, t: network(0.3)(x, t, EPSILON), target="v", clip=False
    )
    np.testing.assert_array_equal(made(X, T, EPSILON), bound(X, T))


@pytest.mark.parametrize("use", [jnp.ones(4), jnp.ones(3, bool), jnp.ones((4, 1), bool), True])
def test_a_use_that_is_not_one_bool_per_example_is_refused(use):
    with pytest.raises(ValueError, match="^with_previous_estimate needs .*one"):
        with_previous_estimate(SCHEDULE, network(0.3), use)(X, T)


def test_bad_calls_are_named():
    with pytest.raises(TypeError, match="^self_conditioned needs sampler, a Sampler"):
        samplers.self_conditioned(dj.ddim)
    with pytest.raises(ValueError, match="^self_conditioned_denoiser needs target"):
        self_conditioned_denoiser(SCHEDULE, network(0.3), target="eps")
