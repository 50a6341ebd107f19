"""A normalising flow of affine couplings (RealNVP: Dinh, Sohl-Dickstein, Bengio 2017, 1605.08803).

    log p(x) = log N(f(x); 0, I) + log |det ∂f/∂x|                       (Eq. 2)
    y_a = x_a,    y_b = x_b exp(s(x_a)) + t(x_a)                         (Eqs. 4, 5)

f is a chain of couplings, in which even and odd coordinates take turns as a and b. The Jacobian of
each is triangular, so log |det| = Σ s(x_a) (Eq. 6). No batch normalisation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ddpm_jax.keys import normal_per_example
from ddpm_jax.likelihood import normal_log_density
from ddpm_jax.types import Array, Key
from rivals.rival import Perceptron, Rival, descend

LARGEST = 3.0
"""s lies in (-3, 3), by a tanh as in the paper: unbounded exponentials overflow in training."""


def shift_and_scale(network: Perceptron, params, x_a: Array, size: int) -> tuple[Array, Array]:
    """t and s [B, size] of a coupling."""
    output = network.apply(params, x_a)
    t, s = output[:, :size], output[:, size:]  # type: ignore[index]
    return t, LARGEST * jnp.tanh(s / LARGEST)


def flow(dim: int, width: int, *, couplings: int = 8) -> Rival:
    """A flow of data [B, dim], dim even."""
    half = dim // 2
    network = Perceptron(width, 2 * half, zero=True)

    def init(key: Key):
        keys = jax.random.split(key, couplings)
        return [network.init(k, jnp.zeros((1, half))) for k in keys]

    def forward(params, x: Array) -> tuple[Array, Array]:
        """f(x) [B, dim] and log |det ∂f/∂x| [B]."""
        log_det = jnp.zeros(x.shape[:1], x.dtype)
        for i, layer in enumerate(params):
            a, b = x[:, i % 2 :: 2], x[:, (i + 1) % 2 :: 2]
            t, s = shift_and_scale(network, layer, a, half)
            x = interleave(a, b * jnp.exp(s) + t, i % 2)
            log_det = log_det + jnp.sum(s, axis=1)
        return x, log_det

    def inverse(params, z: Array) -> Array:
        """f⁻¹(z): x_b = (y_b - t(y_a)) exp(-s(y_a)), the couplings in reverse (Eq. 8)."""
        for i, layer in reversed(list(enumerate(params))):
            a, b = z[:, i % 2 :: 2], z[:, (i + 1) % 2 :: 2]
            t, s = shift_and_scale(network, layer, a, half)
            z = interleave(a, (b - t) * jnp.exp(-s), i % 2)
        return z

    def log_density(params, x: Array, keys: Key | None = None) -> Array:
        z, log_det = forward(params, x)
        return jnp.sum(normal_log_density(z, 0.0, 0.0), axis=1) + log_det

    def sample(params, keys: Key) -> Array:
        return inverse(params, normal_per_example(keys, (dim,)))

    def loss(params, x: Array, key: Key) -> Array:
        return -log_density(params, x)

    kinds = {"exact": log_density}
    return Rival("Flow", init, descend(loss), sample, 1, kinds, learning_rate=3e-3)


def interleave(a: Array, b: Array, first: int) -> Array:
    """[B, 2n] with a [B, n] at the coordinates first, first + 2, … and b at the others."""
    pair = (a, b) if first == 0 else (b, a)
    return jnp.stack(pair, axis=2).reshape(len(a), -1)
