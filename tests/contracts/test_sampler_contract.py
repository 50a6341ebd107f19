"""What every sampler promises: the loop, keys, replay, jit, vmap over examples, shapes of any
kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from tests.oracles import GaussianData

FULL = dj.linear_schedule()
SAMPLERS = {
    "ancestral large": lambda s: dj.ancestral(s, variance="fixed_large"),
    "ancestral small": lambda s: dj.ancestral(s, variance="fixed_small"),
    "ddim": lambda s: dj.ddim(s),
    "ddim 0.5": lambda s: dj.ddim(s, eta=0.5),
    "ddim 1": lambda s: dj.ddim(s, eta=1.0),
}
SPACINGS = ["fractional", "uniform", "quadratic", "leading", "trailing"]
EXACT = GaussianData(0.0, 0.5, np.asarray(FULL.alpha_bar, np.float64))


def make(name, num_steps=10, spacing="trailing"):
    return SAMPLERS[name](dj.respace(FULL, dj.spaced_timesteps(1000, num_steps, spacing)))


def start(shape, count=4):
    keys = dj.example_keys(jax.random.key(0), jnp.arange(count, dtype=jnp.uint32))
    return keys, dj.initial_noise(keys, shape)


@pytest.mark.parametrize("shape", [(), (3,), (4, 4, 2)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_event_shape_and_jit(name, shape):
    sampler = make(name)
    keys, x_T = start(shape)

    def run(x_T, keys):
        return dj.sample(sampler, EXACT.denoise, x_T, keys=keys)

    plain = run(x_T, keys)
    assert plain.shape == (4, *shape) and plain.dtype == x_T.dtype
    np.testing.assert_allclose(jax.jit(run)(x_T, keys), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_replaying_the_noise_replays_the_sample(name):
    sampler = make(name)
    keys, x_T = start((3,))
    drawn = dj.sample(sampler, EXACT.denoise, x_T, keys=keys)
    if not sampler.stochastic:
        np.testing.assert_array_equal(drawn, dj.sample(sampler, EXACT.denoise, x_T))
        return
    from ddpm_jax.samplers.base import step_noise

    noise = jnp.stack([step_noise(keys, t, x_T) for t in dj.grid_steps(sampler)])
    replayed = dj.sample(sampler, EXACT.denoise, x_T, noise=noise)
    np.testing.assert_allclose(replayed, drawn, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_examples_do_not_see_each_other(name):
    sampler = make(name)
    keys, x_T = start((3,))
    together = dj.sample(sampler, EXACT.denoise, x_T, keys=keys)
    alone = dj.sample(sampler, EXACT.denoise, x_T[2:3], keys=keys[2:3])
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_denoiser_is_obeyed_at_the_end(name, spacing):
    """If x̂_0 is always the same, every sampler ends exactly there, on any grid."""
    sampler = make(name, 20, spacing)
    keys, x_T = start((3,))
    truth = jnp.array([0.3, -0.9, 0.1])
    got = dj.sample(sampler, lambda x, t: jnp.broadcast_to(truth, x.shape), x_T, keys=keys)
    np.testing.assert_allclose(got, np.tile(truth, (4, 1)), atol=2e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_is_fed_the_steps_of_the_full_process(name):
    seen = []
    sampler = make(name, 4, "leading")
    keys, x = start((3,), 1)
    noise = jnp.zeros((1, 3)) if sampler.stochastic else None
    for t in (3, 2, 1, 0):

        def denoise(x_t, step):
            seen.append(int(step[0]))
            return x_t

        x = sampler.step(denoise, x, jnp.array([t]), noise, ()).x
    assert seen == [750, 500, 250, 0]


def test_any_network_will_do():
    """Flax NNX and plain functions serve as the network."""
    from flax import nnx

    class Small(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x, t):
            return self.dense(jnp.concatenate([x, t[:, None] / 1000], -1))

    model = Small(nnx.Rngs(0))
    graph, weights = nnx.split(model)

    def apply_fn(x, t):
        # NNX's own layers rely on rank promotion.
        with jax.numpy_rank_promotion("allow"):
            return nnx.merge(graph, weights)(x, t)

    keys, x_T = start((3,))
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, 5))
    got = dj.sample(dj.ddim(grid), dj.make_denoiser(FULL, apply_fn), x_T)
    kernel, bias = np.asarray(model.dense.kernel[...]), np.asarray(model.dense.bias[...])

    def plain(x, t):
        return jnp.concatenate([x, t[:, None] / 1000], -1) @ kernel + bias[None]

    expected = dj.sample(dj.ddim(grid), dj.make_denoiser(FULL, plain), x_T)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    loss = dj.simple_loss(FULL, apply_fn, jnp.zeros((4, 3)), 10, x_T)
    assert loss.shape == (4,)
