"""A generative adversarial network (Goodfellow et al. 2014, 1406.2661).

    max_D  E log D(x) + E log (1 - D(G(z)))                              (Eq. 1)
    max_G  E log D(G(z))             instead of min_G log (1 - D(G(z))), §3 there

with the penalty ½ γ E ‖∇ logit D(x)‖² on the discriminator, without which the game need not
converge (R1: Mescheder, Geiger, Nowozin 2018, 1801.04406, Eq. 9). A step updates both networks at
once. Samples come with no density: neither p(x) nor a bound of it is defined.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.keys import normal_per_example
from ddpm_jax.types import Array, Key
from rivals.rival import Perceptron, Rival


def gan(dim: int, width: int, *, latent: int = 2, penalty: float = 0.1) -> Rival:
    """A GAN of data [B, dim]; generator and discriminator are equally wide.

    The parameters of both count: half of them draw samples.
    """
    generator: Any = Perceptron(width, dim)
    discriminator: Any = Perceptron(width, 1)

    def init(key: Key):
        keys = jax.random.split(key)
        return {
            "generator": generator.init(keys[0], jnp.zeros((1, latent))),
            "discriminator": discriminator.init(keys[1], jnp.zeros((1, dim))),
        }

    def generate(params, z: Array) -> Array:
        return generator.apply(params["generator"], z)

    def logit(params, x: Array) -> Array:
        return discriminator.apply(params["discriminator"], x)[:, 0]

    def discriminator_loss(params, x: Array, fake: Array) -> Array:
        """-log D(x) - log (1 - D(G(z))) + ½ γ ‖∇ logit D(x)‖², with D = sigmoid(logit)."""
        real, pull_back = jax.vjp(lambda x: logit(params, x), x)
        (slope,) = pull_back(jnp.ones_like(real))
        r1 = 0.5 * penalty * jnp.sum(jnp.square(slope), axis=1)
        return jnp.mean(jax.nn.softplus(-real) + jax.nn.softplus(logit(params, fake)) + r1)

    def generator_loss(params, z: Array) -> Array:
        return jnp.mean(jax.nn.softplus(-logit(params, generate(params, z))))

    def gradient(params, x: Array, key: Key):
        z = jax.random.normal(key, (len(x), latent))
        fake = generate(params, z)
        loss, of_discriminator = jax.value_and_grad(discriminator_loss)(params, x, fake)
        of_generator = jax.grad(generator_loss)(params, z)
        return loss, {
            "generator": of_generator["generator"],
            "discriminator": of_discriminator["discriminator"],
        }

    def sample(params, keys: Key) -> Array:
        return generate(params, normal_per_example(keys, (latent,)))

    return Rival("GAN", init, gradient, sample, 1, {}, b1=0.5)
