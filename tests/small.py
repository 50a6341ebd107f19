"""A tiny but complete problem for the tests of training: a U-Net of 8×8 images with dropout and
flips."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import ddpm_jax as dj
from ddpm_jax.data import prepare_images
from ddpm_jax.keys import split_each

SCHEDULE = dj.linear_schedule(100, 1e-3, 0.2)
NETWORK = dj.UNet(
    channels=8,
    channel_multipliers=(1,),
    num_res_blocks=1,
    attention_resolutions=(),
    middle_attention="none",
    num_groups=4,
    dropout=0.2,
)
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1)).astype(np.uint8)
BATCH = 16


@functools.cache
def _initial():
    """On the host: every call of `jax.jit(NETWORK.init)` traces and compiles anew."""
    params = jax.jit(NETWORK.init)(
        jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32)
    )
    # The last convolutions start at zero, which would hide most of the network from a gradient
    # test.
    leaves, tree = jax.tree.flatten(params["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.device_get(jax.tree.unflatten(tree, noisy))


def init_params():
    """Parameters of their own, which a training step may overwrite."""
    return jax.tree.map(jnp.array, _initial())


def draws(batch, keys):
    """(x_0, t, noise, dropout keys) of a batch, as the loss sees them."""
    key_t, key_noise, key_flip, key_dropout = split_each(keys, 4)
    x_0 = prepare_images(batch["image"], key_flip, flip=True)
    t = jax.vmap(lambda key: jax.random.randint(key, (), 0, 100))(key_t)
    return x_0, t, dj.normal_per_example(key_noise, x_0.shape[1:]), key_dropout


def loss_fn(params, batch, keys):
    x_0, t, noise, key_dropout = draws(batch, keys)

    def apply_fn(x_t, timesteps):
        return NETWORK.apply({"params": params}, x_t, timesteps, dropout_keys=key_dropout)

    return dj.simple_loss(SCHEDULE, apply_fn, x_0, t, noise)


def fetch(dataset, batch):
    return {**batch, "image": dataset["image"][batch["example"]]}


def batches(num_steps):
    """Host batches [num_steps, B] of indices."""
    example = np.random.default_rng(1).integers(0, len(IMAGES), (num_steps, BATCH)).astype(np.int32)
    return {
        "example": example,
        "index": np.tile(np.arange(BATCH, dtype=np.int32), (num_steps, 1)),
    }
