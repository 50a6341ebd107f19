"""A denoiser of vectors: a residual multi-layer perceptron with an embedding of the step t.

For data without spatial structure: toy densities, features, checks of samplers and losses. It has
no normalisation, so the scale of x reaches the output. It is smooth, so exact and sliced score
matching can differentiate it.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax.nn.blocks import NEAR_ZERO, Dtype, dense, dropout, resolve_dropout_keys
from ddpm_jax.nn.checks import broadcast_steps, check_dropout, check_float, check_num_conditions
from ddpm_jax.nn.embeddings import add_conditions, sinusoidal_embedding
from ddpm_jax.types import Array, ArrayLike, Key


class ResidualLayer(nn.Module):
    """y = h + linear2(dropout(SiLU(linear1(SiLU(h)) + project(SiLU(emb)))))."""

    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, h: Array, embedding: Array, dropout_keys: Key | None) -> Array:
        """Maps h [B, F] and embedding [B, E] to [B, F]."""
        features = h.shape[-1]
        r = dense(features, self.dtype, name="dense_0")(nn.silu(h))
        r = nn.silu(r + dense(features, self.dtype, name="embedding")(nn.silu(embedding)))
        r = dropout(r, self.dropout, dropout_keys, self.path)
        return h + dense(features, self.dtype, name="dense_1")(r)


class MLP(nn.Module):
    """Maps vectors x [B, D] and steps t [B] to float32 [B, out_features].

    The output starts at (almost) zero, as the U-Net's does.

    Attributes:
        features: width of the hidden layers.
        num_layers: residual layers, each of two linear maps.
        embedding_features: length of the sinusoidal embedding of t.
        max_period: longest wavelength of that embedding, over 2π. The shortest is 2π, which
            resolves steps about 1 apart: multiply a time in [0, 1] by 1000.
        dropout: share of activations dropped in each layer when a call gives keys for it.
        out_features: length of the output; None for the input's length.
        num_classes: labels of a class-conditional network; None for no labels.
        cond_features: length of the vector `cond` that conditions each example; None for none.
        dtype: computation dtype, None for float32. Parameters and output are always float32.

    Raises ValueError for a dropout outside [0, 1) and for fewer than one class or condition.

    >>> mlp = dj.MLP(features=16)
    >>> mlp.init_with_output(jax.random.key(0), jnp.ones((2, 3)), t=5)[0].shape
    (2, 3)
    """

    features: int = 128
    num_layers: int = 3
    embedding_features: int = 64
    max_period: float = 10_000.0
    dropout: float = 0.0
    out_features: int | None = None
    num_classes: int | None = None
    cond_features: int | None = None
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        """Checks what can be checked without an input."""
        super().__post_init__()
        check_dropout("MLP", self.dropout)
        check_num_conditions(self)

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: ArrayLike,
        label: ArrayLike | None = None,
        *,
        cond: Array | None = None,
        dropout_keys: Key | None = None,
    ) -> Array:
        """Predicts from x [B, D] at steps t, [B] or [], integer or float.

        `label` int32 [B], `cond` [B, cond_features] and the two ways to turn dropout on are those
        of `UNet`. Raises ValueError for shapes that do not fit and for a condition that the network
        does not take, TypeError for dtypes that do not fit.
        """
        if x.ndim != 2:
            raise ValueError(
                f"MLP needs vectors [B, D], got shape {x.shape}. Flatten each example with "
                "x.reshape(len(x), -1), or use UNet for images."
            )
        check_float("MLP", x)
        batch, data_features = x.shape
        dropout_keys = resolve_dropout_keys(self, self.dropout, dropout_keys, batch)
        dtype = jnp.float32 if self.dtype is None else self.dtype
        embedding = sinusoidal_embedding(
            broadcast_steps("MLP", t, x), self.embedding_features, self.max_period
        )
        embedding = dense(self.features, jnp.float32, name="time_dense")(embedding)
        embedding = add_conditions(self, embedding, label, cond)

        h = dense(self.features, dtype, name="dense_in")(x)
        for i in range(self.num_layers):
            h = ResidualLayer(self.dropout, dtype, name=f"layer_{i}")(h, embedding, dropout_keys)
        h = nn.silu(h.astype(jnp.float32))
        out_features = data_features if self.out_features is None else self.out_features
        return dense(out_features, jnp.float32, scale=NEAR_ZERO, name="dense_out")(h)
