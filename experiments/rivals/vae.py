"""A variational autoencoder (Kingma, Welling 2014, arXiv 1312.6114).

    log p(x) ≥ E_q(z|x)[log p(x | z)] - KL(q(z | x) ‖ N(0, I))          (Eq. 3)

with q(z | x) and p(x | z) Gaussians whose means and diagonal variances are networks (App. C.2),
trained by z = μ + σ ε (Eq. 10). The gap is KL(q(z | x) ‖ p(z | x)). With K draws the bound

    log p(x) ≥ E log (1/K) Σ_k p(x, z_k)/q(z_k | x)                      (Burda et al. 2016,
                                                                          1509.00519, Eq. 8)
is closer and tends to log p(x).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from ddpm_jax.keys import normal_per_example, split_each
from ddpm_jax.likelihood import normal_kl, normal_log_density
from ddpm_jax.types import Array, Key
from rivals.rival import Perceptron, Rival, descend

Gaussian = Callable[[Array], tuple[Array, Array]]
"""`[B, n] -> (mean, log-variance)`, both [B, m]."""


def elbo(encode: Gaussian, decode: Gaussian, x: Array, noise: Array) -> Array:
    """One draw of the bound of Eq. 3 [B] for x [B, d], noise [B, latent]; its KL is exact."""
    mean, log_variance = encode(x)
    z = mean + jnp.exp(0.5 * log_variance) * noise
    kl = jnp.sum(normal_kl(mean, log_variance, 0.0, 0.0), axis=1)
    return jnp.sum(normal_log_density(x, *decode(z)), axis=1) - kl


def importance_bound(encode: Gaussian, decode: Gaussian, x: Array, noise: Array) -> Array:
    """The bound of K draws [B] for noise [K, B, latent], Burda et al. (2016), Eq. 8."""
    mean, log_variance = encode(x)

    def log_weight(noise: Array) -> Array:
        z = mean + jnp.exp(0.5 * log_variance) * noise
        log_ratio = normal_log_density(z, 0.0, 0.0) - normal_log_density(z, mean, log_variance)
        log_x = normal_log_density(x, *decode(z))
        return jnp.sum(log_x, axis=1) + jnp.sum(log_ratio, axis=1)

    log_weights = jax.lax.map(log_weight, noise)
    return logsumexp(log_weights, axis=0) - jnp.log(float(len(noise)))


def halves(output: Array) -> tuple[Array, Array]:
    """Mean and log-variance [B, m] from a network's output [B, 2m]."""
    mean, log_variance = jnp.split(output, 2, axis=1)
    return mean, log_variance


def vae(dim: int, width: int, *, latent: int = 4, draws: int = 256) -> Rival:
    """A VAE of data [B, dim]; encoder and decoder are equally wide."""
    encoder: Any = Perceptron(width, 2 * latent)
    decoder: Any = Perceptron(width, 2 * dim)

    def init(key: Key):
        keys = jax.random.split(key)
        return {
            "encoder": encoder.init(keys[0], jnp.zeros((1, dim))),
            "decoder": decoder.init(keys[1], jnp.zeros((1, latent))),
        }

    def networks(params) -> tuple[Gaussian, Gaussian]:
        def encode(x):
            return halves(encoder.apply(params["encoder"], x))

        def decode(z):
            return halves(decoder.apply(params["decoder"], z))

        return encode, decode

    def loss(params, x: Array, key: Key) -> Array:
        return -elbo(*networks(params), x, jax.random.normal(key, (len(x), latent)))

    def sample(params, keys: Key) -> Array:
        z_keys, x_keys = split_each(keys, 2)
        mean, log_variance = networks(params)[1](normal_per_example(z_keys, (latent,)))
        return mean + jnp.exp(0.5 * log_variance) * normal_per_example(x_keys, (dim,))

    def one_draw(params, x: Array, keys: Key) -> Array:
        return elbo(*networks(params), x, normal_per_example(keys, (latent,)))

    def many_draws(params, x: Array, keys: Key) -> Array:
        noise = jnp.moveaxis(normal_per_example(keys, (draws, latent)), 1, 0)
        return importance_bound(*networks(params), x, noise)

    kinds = {"ELBO": one_draw, f"bound of {draws} draws": many_draws}
    return Rival("VAE", init, descend(loss), sample, 1, kinds)
