"""A learned noise schedule: γ(t) = -log SNR(t), rising in t by construction.

Kingma et al. 2021 (2107.00630, "VDM"), App. H.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.nn.checks import check_float
from ddpm_jax.types import Array


class Gamma(NamedTuple):
    """γ(t) = (1 - share) start + share end, in parts, for losses that train them differently.

    Attributes:
        start, end: γ(0) and γ(1), each [].
        share: of the way at t, from 0 to 1, of t's shape.
    """

    start: Array
    end: Array
    share: Array

    @property
    def value(self) -> Array:
        """γ(t), of t's shape."""
        return (1.0 - self.share) * self.start + self.share * self.end


class GammaNetwork(nn.Module):
    """Maps times t [...] in [0, 1] to γ(t) = -log SNR(t) of t's shape, rising with t (VDM App. H).

        g(t) = w_1 t + 1/K Σ_k w_3k sigmoid(w_2k t + b_k),   all w > 0
        γ(t) = γ_0 + (γ_1 - γ_0) (g(t) - g(0))/(g(1) - g(0))

    The ends γ_0 and γ_1 are parameters of their own; the interior starts close to a straight line.
    `losses.continuous_bound` trains it; -γ on a grid is a table for `schedule_from_log_snr`. The
    times must be floating-point (TypeError).

    Attributes:
        features: K, width of the hidden layer (VDM: 1024).
        gamma_start, gamma_end: the ends' first values (VDM: -13.3 and 5).

    >>> network = dj.nn.GammaNetwork(features=16)
    >>> params = network.init(jax.random.key(0), jnp.zeros(1))
    >>> network.apply(params, jnp.array([0.0, 1.0]))
    Array([-13.3,   5. ], dtype=float32)
    """

    features: int = 1024
    gamma_start: float = -13.3
    gamma_end: float = 5.0

    def __post_init__(self) -> None:
        """Checks what can be checked without an input."""
        super().__post_init__()
        if self.features < 1 or not self.gamma_start < self.gamma_end:
            raise ValueError(
                "GammaNetwork needs features >= 1 and gamma_start < gamma_end, got "
                f"{self.features}, {self.gamma_start} and {self.gamma_end}. γ is -log SNR, which "
                "rises with t."
            )

    @nn.compact
    def parts(self, t: Array) -> Gamma:
        """γ in parts, as `network.apply(params, t, method="parts")`."""
        t = jnp.asarray(t)
        check_float("GammaNetwork", t)
        ends = self.param("ends", lambda _: jnp.array([self.gamma_start, self.gamma_end]))
        zeros, normal = nn.initializers.zeros, nn.initializers.normal
        # Positive by softplus; a mean over the K neurons keeps g of the size of one.
        linear = jax.nn.softplus(self.param("linear", zeros, ()))
        slope = jax.nn.softplus(self.param("slope", normal(1.0), (self.features,)))
        bias = self.param("bias", normal(1.0), (self.features,))
        weight = jax.nn.softplus(self.param("weight", normal(1.0), (self.features,)))

        def g(t: Array) -> Array:
            return linear * t + jnp.mean(weight * jax.nn.sigmoid(t * slope + bias))

        first, last = g(jnp.zeros((), t.dtype)), g(jnp.ones((), t.dtype))
        share = (jax.vmap(g)(t.ravel()).reshape(t.shape) - first) / (last - first)
        return Gamma(ends[0], ends[1], share)

    def __call__(self, t: Array) -> Array:
        """γ(t), of t's shape."""
        return self.parts(t).value
