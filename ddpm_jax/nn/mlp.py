"""A denoiser of vectors: a residual multi-layer perceptron told the step t.

For data without spatial structure: toy densities, features, checks of samplers and losses. It has
no normalisation, so the size of x reaches the output, and it is smooth, so exact and sliced score
matching may differentiate it.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax.nn.blocks import (
    NEAR_ZERO,
    Dtype,
    check_dropout,
    check_dropout_keys,
    dense,
    dropout,
)
from ddpm_jax.nn.embeddings import (
    LabelEmbedding,
    broadcast_steps,
    check_label,
    check_num_classes,
    sinusoidal_embedding,
)
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
        max_period: longest wavelength of that embedding, over 2π. The shortest is 2π, so steps are
            told apart where they differ by about 1: give a time in [0, 1] multiplied by 1000.
        dropout: share of activations dropped in each layer when `dropout_keys` are given.
        out_features: length of the output; None for as long as the input.
        num_classes: labels of a class-conditional network; None for an unconditional one.
        dtype: computation dtype, None for float32. Parameters and output are always float32.

    Raises ValueError for a dropout outside [0, 1) and for less than one class.
    """

    features: int = 128
    num_layers: int = 3
    embedding_features: int = 64
    max_period: float = 10_000.0
    dropout: float = 0.0
    out_features: int | None = None
    num_classes: int | None = None
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        """Checks what can be checked without an input."""
        super().__post_init__()
        check_dropout("MLP", self.dropout)
        check_num_classes("MLP", self.num_classes)

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: ArrayLike,
        label: ArrayLike | None = None,
        *,
        dropout_keys: Key | None = None,
    ) -> Array:
        """Predicts from x [B, D] at steps t, [B] or [], integer or float.

        `label` int32 [B] in 0 … num_classes-1, or num_classes for "no label"; None is no label for
        all, and labels beyond give NaN. `dropout_keys` [B], one typed key each, turn dropout on.
        Raises ValueError for shapes that do not fit and for a label on an unconditional network.
        """
        if x.ndim != 2:
            raise ValueError(
                f"MLP needs vectors [B, D], got shape {x.shape}. Flatten each example with "
                "x.reshape(len(x), -1), or use UNet for images."
            )
        batch, data_features = x.shape
        check_dropout_keys("MLP", dropout_keys, batch)
        check_label("MLP", label, self.num_classes)
        dtype = jnp.float32 if self.dtype is None else self.dtype
        embedding = sinusoidal_embedding(
            broadcast_steps("MLP", t, batch), self.embedding_features, self.max_period
        )
        embedding = dense(self.features, jnp.float32, name="time_dense")(embedding)
        if self.num_classes is not None:
            table = LabelEmbedding(self.num_classes, self.features, name="label_embedding")
            embedding += table(label, batch)

        h = dense(self.features, dtype, name="dense_in")(x)
        for i in range(self.num_layers):
            h = ResidualLayer(self.dropout, dtype, name=f"layer_{i}")(h, embedding, dropout_keys)
        h = nn.silu(h.astype(jnp.float32))
        out_features = data_features if self.out_features is None else self.out_features
        return dense(out_features, jnp.float32, scale=NEAR_ZERO, name="dense_out")(h)
