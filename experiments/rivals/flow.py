"""A normalising flow of affine couplings (RealNVP: Dinh, Sohl-Dickstein, Bengio 2017, 1605.08803).

    log p(x) = log N(f(x); 0, I) + log |det ∂f/∂x|                       (Eq. 2)
    y_a = x_a,    y_b = x_b exp(s(x_a)) + t(x_a)                         (Eqs. 4, 5)

f is a chain of couplings, in which even and odd coordinates take turns as a and b. The Jacobian of
each is triangular, so log |det| = Σ s(x_a) (Eq. 6). No batch normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.keys import normal_per_example
from ddpm_jax.likelihood import normal_log_density
from ddpm_jax.types import Array, Key
from rivals.rival import Perceptron, Rival, descend

Coupling = Callable[[Array], tuple[Array, Array]]
"""`x_a [B, d/2] -> (t, s)`, both [B, d/2]."""
LARGEST = 3.0
"""s lies in (-3, 3), by a tanh as in the paper: unbounded exponentials overflow in training."""


def forward(couplings: Sequence[Coupling], x: Array) -> tuple[Array, Array]:
    """f(x) [B, d] and log |det ∂f/∂x| [B] for x [B, d], d even."""
    log_det = jnp.zeros(x.shape[:1], x.dtype)
    for i, coupling in enumerate(couplings):
        a, b = x[:, i % 2 :: 2], x[:, (i + 1) % 2 :: 2]
        t, s = coupling(a)
        x = interleave(a, b * jnp.exp(s) + t, i % 2)
        log_det = log_det + jnp.sum(s, axis=1)
    return x, log_det


def inverse(couplings: Sequence[Coupling], z: Array) -> Array:
    """f⁻¹(z): x_b = (y_b - t(y_a)) exp(-s(y_a)), the couplings in reverse (Eq. 8)."""
    for i, coupling in reversed(list(enumerate(couplings))):
        a, b = z[:, i % 2 :: 2], z[:, (i + 1) % 2 :: 2]
        t, s = coupling(a)
        z = interleave(a, (b - t) * jnp.exp(-s), i % 2)
    return z


def interleave(a: Array, b: Array, first: int) -> Array:
    """[B, 2n] with a [B, n] at the coordinates first, first + 2, … and b at the others."""
    pair = (a, b) if first == 0 else (b, a)
    return jnp.stack(pair, axis=2).reshape(len(a), -1)


def flow(dim: int, width: int, *, couplings: int = 12) -> Rival:
    """A flow of data [B, dim], dim even."""
    half = dim // 2
    network: Any = Perceptron(width, 2 * half, zero=True)

    def init(key: Key):
        keys = jax.random.split(key, couplings)
        return [network.init(k, jnp.zeros((1, half))) for k in keys]

    def log_density(params, x: Array, keys: Key | None = None) -> Array:
        z, log_det = forward(couplings_of(network, params), x)
        return jnp.sum(normal_log_density(z, 0.0, 0.0), axis=1) + log_det

    def sample(params, keys: Key) -> Array:
        return inverse(couplings_of(network, params), normal_per_example(keys, (dim,)))

    def loss(params, x: Array, key: Key) -> Array:
        return -log_density(params, x)

    kinds = {"exact": log_density}
    return Rival("Flow", init, descend(loss), sample, 1, kinds)


def couplings_of(network: Any, params) -> list[Coupling]:
    """The couplings of the parameters of each, `init`'s list; their s is bounded."""

    def coupling(layer) -> Coupling:
        def shift_and_scale(x_a: Array) -> tuple[Array, Array]:
            t, s = jnp.split(network.apply(layer, x_a), 2, axis=1)
            return t, LARGEST * jnp.tanh(s / LARGEST)

        return shift_and_scale

    return [coupling(layer) for layer in params]
