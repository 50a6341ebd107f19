"""How a network reads its conditions: the step t, a label, a vector.

With half = dim // 2 and ω_i = max_period^(-i / (half - shift)), i = 0 … half-1, the step is

    embedding(t) = [sin(ω_0 t), …, sin(ω_{half-1} t), cos(ω_0 t), …, cos(ω_{half-1} t)].

DDPM has shift = 1. Other projects have shift = 0 or put the cosines first. Weights trained with
one convention are useless with another, and do not show which they need.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ddpm_jax.nn.blocks import dense
from ddpm_jax.nn.checks import check_conditions, check_embedding
from ddpm_jax.types import Array, ArrayLike, as_array, describe


def sinusoidal_embedding(
    t: ArrayLike, dim: int, max_period: float = 10_000.0, *, order: str = "sin_cos", shift: int = 1
) -> Array:
    """Embeds t [...], integers or floats, as float32 [..., dim]: sines and cosines of ω_i t.

    The wavelengths 2π / ω_i run geometrically from 2π to 2π max_period, both included for the
    `shift` of 1. The `order` "sin_cos" puts the sines first, "cos_sin" the cosines. An odd `dim`
    ends in one zero. Float32 represents the angle ω t to about 6e-8 t radians.

    Raises ValueError for `dim` below 4 (one frequency is no geometric sequence), `max_period` not
    above 1, or another `order` or `shift`. Source: Ho et al. 2020, Appendix B, after Vaswani et al.
    2017, §3.5; guided-diffusion and diffusers' default: "cos_sin" and 0.

    >>> dj.nn.sinusoidal_embedding(jnp.array([0, 10]), dim=4).shape
    (2, 4)
    """
    for name, value in {"dim": dim, "max_period": max_period}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise TypeError(f"sinusoidal_embedding needs {name}, a number, got {describe(value)}.")
    if not isinstance(dim, (int, np.integer)) or dim < 4:
        raise ValueError(
            f"sinusoidal_embedding needs dim >= 4, got {dim=}: it needs at least two frequencies, "
            "each with a sine and a cosine. DDPM uses 128."
        )
    if not 1 < max_period < math.inf:
        raise ValueError(
            f"sinusoidal_embedding needs max_period > 1 and finite, got {max_period=}. DDPM uses "
            "10000."
        )
    check_embedding("sinusoidal_embedding", order, shift)
    half = dim // 2
    # On the host in float64: a float32 exp is off by a few units in the last place, and t ≈ 1000
    # turns that into 1e-4 of a radian.
    exponents = np.arange(half, dtype=np.float64) / (half - shift)
    frequencies = np.exp(-np.log(max_period) * exponents).astype(np.float32)
    t = as_array("sinusoidal_embedding", "t", t)
    if not any(jnp.issubdtype(t.dtype, kind) for kind in (jnp.integer, jnp.floating)):
        raise TypeError(f"sinusoidal_embedding needs t, real numbers, got {describe(t)}.")
    angles = t.astype(jnp.float32)[..., None] * frequencies.reshape((1,) * t.ndim + (half,))
    waves = [jnp.sin(angles), jnp.cos(angles)]
    embedding = jnp.concatenate(waves if order == "sin_cos" else waves[::-1], axis=-1)
    if dim % 2:
        embedding = jnp.pad(embedding, [(0, 0)] * t.ndim + [(0, 1)])
    return embedding


class LabelEmbedding(nn.Module):
    """A table of num_classes + 1 learned rows, the last of which stands for "no label"."""

    num_classes: int
    features: int

    @nn.compact
    def __call__(self, label: ArrayLike | None, batch: int) -> Array:
        """Looks up labels [batch] in 0 … num_classes; None is "no label": [batch, features].

        Labels outside the table give NaN, never a wrong row.
        """
        indices = jnp.broadcast_to(self.num_classes if label is None else label, (batch,))
        # The table gives NaN beyond its end alone: -1 would be its last row, "no label".
        indices = jnp.where(indices < 0, self.num_classes + 1, indices.astype(jnp.int32))
        return nn.Embed(self.num_classes + 1, self.features, name="table")(indices)


def add_conditions(
    module: Any, embedding: Array, label: ArrayLike | None, cond: ArrayLike | None
) -> Array:
    """Adds the embeddings of the labels and vectors that `module` takes to embedding [B, E].

    For the compact method of a network with attributes `num_classes` and `cond_features`.

    Raises ValueError for a condition that the network does not take and for another shape,
    TypeError for another dtype.
    """
    batch, features = embedding.shape
    check_conditions(module, batch, label, cond)
    if module.num_classes is not None:
        table = LabelEmbedding(module.num_classes, features, name="label_embedding")
        embedding += table(label, batch)
    if module.cond_features is not None:
        vectors = jnp.zeros((batch, module.cond_features)) if cond is None else jnp.asarray(cond)
        embedding += dense(features, jnp.float32, name="cond_dense")(vectors)
    return embedding
