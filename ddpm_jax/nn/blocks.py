"""The parts of the U-Net: normalisation, dropout, residual and attention blocks, and resampling.

Images are NHWC. Parameters are float32 whatever the computation `dtype`; what bfloat16 would spoil
(group statistics, softmax) is computed in float32 inside each part.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.nn.convolution import convolution, flat_product, upsampled_convolution
from ddpm_jax.types import Array, Key

Dtype = Any

EPSILON = 1e-6  # of every GroupNorm; 1e-5, PyTorch's default, moves the output by 4e-5
NEAR_ZERO = 1e-10  # variance scale of the layer closing a branch: every block starts as identity


def scaled_init(scale: float = 1.0) -> nn.initializers.Initializer:
    """Uniform initialiser of variance 2 scale / (fan_in + fan_out), as DDPM draws every kernel."""
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


def dropout(x: Array, rate: float, keys: Key | None, path: Sequence[str]) -> Array:
    """Zeroes entries of x [B, ...] with probability `rate` and divides the rest by 1 - rate.

    `keys` [B] holds one typed key an example; None leaves x as it is. The layer's own stream is its
    module `path`, hashed and folded into each key, so a mask depends on the example and the layer
    alone: not on the batch around the example, nor on how devices split it. That holds for JAX's
    default generator; its "rbg" ones do not promise it under `vmap`.
    """
    if keys is None or rate == 0.0:
        return x
    # A checksum, because Python's hash of a string differs from process to process.
    stream = zlib.crc32("/".join(path).encode())

    def keep(key: Key) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, stream), 1.0 - rate, x.shape[1:])

    return jnp.where(jax.vmap(keep)(keys), x / (1.0 - rate), jnp.zeros_like(x))


def check_dropout(call: str, rate: float) -> None:
    """Raises ValueError unless 0 <= rate < 1."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(
            f"{call} needs 0 <= dropout < 1, got dropout={rate}. It is the share of activations "
            "dropped (DDPM: 0.1 on CIFAR-10, 0 elsewhere), not the share kept."
        )


def check_dropout_keys(call: str, keys: Key | None, batch: int) -> None:
    """Raises ValueError unless `keys` is None or holds one typed key an example."""
    if keys is None:
        return
    if not (hasattr(keys, "dtype") and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)):
        raise ValueError(
            f"{call} needs typed dropout_keys, got {getattr(keys, 'dtype', type(keys))}. Make them "
            "with jax.random.key and jax.random.split, not jax.random.PRNGKey."
        )
    if keys.shape != (batch,):
        raise ValueError(
            f"{call} needs one dropout key an example, shape ({batch},), got shape {keys.shape}. "
            "Make them with jax.random.split(key, batch), or fold each example's index into a key."
        )


class GroupNorm(nn.Module):
    """Normalises x [B, H, W, C] over space and C / num_groups channels at a time (Wu, He 2018).

    y = (x - mean) / √(variance + 1e-6) · scale + bias, computed in float32, then cast to x's dtype.
    """

    num_groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, H, W, C] to the same shape and dtype."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x32 = x.astype(jnp.float32)
        # Two passes: E[x²] - E[x]² in one pass cancels when a group's mean is far above its spread,
        # and saves a tenth of the time at most.
        centred = x32 - self._group_mean(x32)
        variance = self._group_mean(jnp.square(centred))
        gain = jax.lax.rsqrt(variance + EPSILON) * scale[None, None, None, :]
        return (centred * gain + bias[None, None, None, :]).astype(x.dtype)

    def _group_mean(self, x: Array) -> Array:
        """Averages x [B, H, W, C] over space, then over each group's channels: [B, 1, 1, C]."""
        # Space first keeps the channels in vector lanes: on a CPU 2 to 3 times as fast as one mean
        # over [B, H, W, groups, C / groups].
        size = x.shape[-1] // self.num_groups
        by_group = x.mean(axis=(1, 2)).reshape(x.shape[0], self.num_groups, size).mean(axis=-1)
        return jnp.repeat(by_group, size, axis=-1)[:, None, None, :]


class ResidualBlock(nn.Module):
    """h = conv1(SiLU(norm1(x))) + project(SiLU(emb));  y = x + conv2(dropout(SiLU(norm2(h)))).

    x passes a 1×1 projection on its way to the sum where the number of channels changes.
    Source: Ho et al. 2020, Appendix B.
    """

    channels: int
    num_groups: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array, embedding: Array, dropout_keys: Key | None) -> Array:
        """Maps x [B, H, W, C_in] and embedding [B, E] to [B, H, W, channels]."""
        h = nn.silu(GroupNorm(self.num_groups, name="norm1")(x))
        h = conv(self.channels, self.dtype, name="conv1")(h)
        shift = dense(self.channels, self.dtype, name="embedding")(nn.silu(embedding))
        h += shift[:, None, None, :]
        h = nn.silu(GroupNorm(self.num_groups, name="norm2")(h))
        h = dropout(h, self.dropout, dropout_keys, self.path)
        h = conv(self.channels, self.dtype, scale=NEAR_ZERO, name="conv2")(h)
        if x.shape[-1] != self.channels:
            # A 1×1 convolution, written as the matrix product it is: up to 1.8 times as fast.
            x = dense(self.channels, self.dtype, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """y = x + out(softmax(q kᵀ / √C) v), one head over all H·W positions, q, k, v from norm(x).

    Source: Ho et al. 2020, Appendix B.
    """

    num_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, H, W, C] to the same shape."""
        batch, height, width, channels = x.shape
        h = GroupNorm(self.num_groups, name="norm")(x).reshape(batch, height * width, channels)
        query = dense(channels, self.dtype, name="query")(h)
        key = dense(channels, self.dtype, name="key")(h)
        value = dense(channels, self.dtype, name="value")(h)
        logits = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32)
        weights = nn.softmax(logits * channels**-0.5, axis=-1).astype(value.dtype)
        h = jnp.einsum("bqk,bkc->bqc", weights, value)
        h = dense(channels, self.dtype, scale=NEAR_ZERO, name="out")(h)
        return x + h.reshape(x.shape)


class Downsample(nn.Module):
    """Halves height and width: a 3×3 convolution of stride 2, or a 2×2 mean."""

    with_conv: bool
    padding: str
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, H, W, C] to [B, H/2, W/2, C]."""
        if not self.with_conv:
            return nn.avg_pool(x, (2, 2), strides=(2, 2))
        # On even sizes TensorFlow's SAME adds one row below and one column to the right only.
        pad = {"same": (0, 1), "symmetric": (1, 1)}[self.padding]
        return conv(x.shape[-1], self.dtype, strides=2, padding=(pad, pad), name="conv")(x)


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then a 3×3 convolution if asked for."""

    with_conv: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, H, W, C] to [B, 2H, 2W, C]."""
        batch, height, width, channels = x.shape
        if self.with_conv:
            return conv(channels, self.dtype, form=upsampled_convolution, name="conv")(x)
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
        return x.reshape(batch, 2 * height, 2 * width, channels)


def conv(
    features: int,
    dtype: Dtype,
    *,
    name: str,
    scale: float = 1.0,
    strides: int = 1,
    padding: Any = "SAME",
    form: Any = convolution,
) -> nn.Conv:
    """A 3×3 convolution with DDPM's initialisation, as a submodule called `name`.

    `form` computes it from image and kernel: `convolution`, or `upsampled_convolution`.
    """
    return nn.Conv(
        features,
        (3, 3),
        strides,
        padding,
        dtype=dtype,
        kernel_init=scaled_init(scale),
        conv_general_dilated=form,
        name=name,
    )


def dense(features: int, dtype: Dtype, *, name: str, scale: float = 1.0) -> nn.Dense:
    """A linear map of the last axis with DDPM's initialisation, as a submodule called `name`."""
    return nn.Dense(
        features, dtype=dtype, kernel_init=scaled_init(scale), dot_general=flat_product, name=name
    )
