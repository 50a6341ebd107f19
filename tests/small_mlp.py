"""The tiny problem of `small`, with a network that compiles in a moment."""

import jax
import jax.numpy as jnp

import ddpm_jax as dj
from tests.small import IMAGES, SCHEDULE, batches, draws, fetch  # noqa: F401

NETWORK = dj.MLP(features=32, num_layers=1, dropout=0.2)


def init_params():
    params = NETWORK.init(jax.random.key(0), jnp.zeros((1, 64)), jnp.zeros(1, jnp.int32))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def loss_fn(params, batch, keys):
    x_0, t, noise, key_dropout = draws(batch, keys)

    def apply_fn(x_t, timesteps):
        vectors = x_t.reshape(len(x_t), -1)
        output = NETWORK.apply({"params": params}, vectors, timesteps, dropout_keys=key_dropout)
        return output.reshape(x_t.shape)

    return dj.simple_loss(SCHEDULE, apply_fn, x_0, t, noise)
