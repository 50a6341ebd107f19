"""An energy-based model trained by denoising score matching and sampled by MALA.

    p(x) = e^{-f(x)}/Z,    min E ½ ‖-∇f(x + σz) + z/σ‖²       (Vincent 2011, Eq. 11 with s = -∇f)

The loss never touches Z, and so the model has no likelihood: only ratios p(x)/p(x') are known. That
is all a Metropolis test needs. Its minimiser is the density of x + σz, for one small σ.

f(x) = ‖x‖²/(2c²) plus a network: SiLU networks grow linearly at most, so Z is finite.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.keys import fold_in_each, normal_per_example
from ddpm_jax.score import denoising_score_matching, metropolis_adjusted_langevin, score_of_energy
from ddpm_jax.types import Array, Key
from rivals.rival import Perceptron, Rival, descend

SPREAD = 2.0
"""The default c, and standard deviation of the chains' starts, for data with one of about 1."""


def energy_of(network: Any, params, x: Array, spread: float = SPREAD) -> Array:
    """f(x) [B] of x [B, d], with c = `spread`."""
    base = 0.5 * jnp.sum(jnp.square(x / spread), axis=1)
    return base + network.apply(params, x)[:, 0]


def energy(
    dim: int,
    width: int,
    *,
    sigma: float = 0.1,
    num_steps: int = 1000,
    step_size: float = 0.01,
    spread: float = SPREAD,
    denoise: bool = False,
) -> Rival:
    """An energy network of data [B, dim], with `num_steps` steps of MALA per sample.

    `denoise` ends with the mean of the data given a sample x of the blurred density, which is
    x - σ² ∇f(x) (Tweedie's formula), at one more evaluation.
    """
    network: Any = Perceptron(width, 1)

    def init(key: Key):
        return network.init(key, jnp.zeros((1, dim)))

    def energy_fn(params):
        return lambda x: energy_of(network, params, x, spread)

    def loss(params, x: Array, key: Key) -> Array:
        noise = jax.random.normal(key, x.shape)
        score_fn = score_of_energy(energy_fn(params))
        # times σ², which brings the loss to the order of d
        return sigma**2 * denoising_score_matching(score_fn, x, noise, sigma)

    def sample(params, keys: Key) -> Array:
        start = spread * normal_per_example(fold_in_each(keys, 0), (dim,))
        f = energy_fn(params)
        x = metropolis_adjusted_langevin(
            lambda x: -f(x), start, step_size, num_steps=num_steps, keys=keys
        ).x
        return x + sigma**2 * score_of_energy(f)(x) if denoise else x

    return Rival("Energy", init, descend(loss), sample, num_steps + 1 + denoise, {})
