"""Every core function equals itself under jit, vmap and pmap, and nothing is traced twice."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.training import init_state, make_optimizer, make_train_step

SCHEDULE = dj.linear_schedule()
RNG = np.random.default_rng(0)
X_0, NOISE = (jnp.asarray(RNG.standard_normal((8, 4, 4, 2)), jnp.float32) for _ in range(2))
T = jnp.array([0, 1, 10, 100, 500, 900, 998, 999])
FUNCTIONS = {
    "q_sample": lambda s, x, t, e: dj.q_sample(s, x, t, e),
    "q_mean_variance": lambda s, x, t, e: dj.q_mean_variance(s, x, t),
    "q_posterior": lambda s, x, t, e: dj.q_posterior(s, x, e, t),
    "p_mean_variance": lambda s, x, t, e: dj.p_mean_variance(s, e, x, t),
    "convert": lambda s, x, t, e: dj.convert_prediction(s, e, x, t, source="v", target="score"),
    "training_target": lambda s, x, t, e: dj.training_target(s, x, t, e, target="v"),
    "simple_loss": lambda s, x, t, e: dj.simple_loss(s, lambda x_t, step: jnp.tanh(x_t), x, t, e),
    "ddim step": lambda s, x, t, e: dj.ddim(s, eta=0.5).step(lambda x, t: x, x, t, e, ()).x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jit_pmap_and_rows(name):
    function = FUNCTIONS[name]
    plain = function(SCHEDULE, X_0, T, NOISE)
    chex.assert_tree_all_finite(plain)
    chex.assert_tree_shape_prefix(plain, (8,))
    # Where 1/√ᾱ is 160 the last bit of an input is in the fifth digit of the output.
    close = dict(rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(jax.jit(function)(SCHEDULE, X_0, T, NOISE), plain, **close)
    one_each = (X_0[:, None], T[:, None], NOISE[:, None])
    mapped = jax.pmap(function, in_axes=(None, 0, 0, 0))(SCHEDULE, *one_each)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[:, 0], mapped), plain, **close)


def test_the_train_step_is_traced_once():
    def loss(params, batch, keys):
        return params["w"] * batch["x"]

    optimizer = make_optimizer(1e-3)
    step = jax.jit(chex.assert_max_traces(make_train_step(loss, optimizer), n=1))
    state = init_state({"w": jnp.float32(1.0)}, optimizer, jax.random.key(0))
    for value in (1.0, 2.0, 3.0):
        state, _ = step(state, {"x": jnp.full(4, value), "index": jnp.arange(4)})
    assert int(state.step) == 3
