"""The parts of the U-Net: normalisation, dropout, residual and attention blocks, and resampling.

Events are [B, *space, C] with one, two or three axes of space: images are NHWC. Parameters are
float32 whatever the computation `dtype`. Group statistics and the softmax need float32 and are
computed in it inside each part.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.keys import is_key
from ddpm_jax.nn import kernels
from ddpm_jax.nn.attention import attend
from ddpm_jax.nn.convolution import convolution, matmul_last_axis, upsampled_convolution
from ddpm_jax.nn.normalisation import Form, normalise
from ddpm_jax.types import Array, Key

Dtype = Any

EPSILON = 1e-6  # DDPM's, in every GroupNorm; 1e-5, PyTorch's default, changes the output by 4e-5
NEAR_ZERO = 1e-10  # variance scale of a branch's last layer: every block starts as the identity


def scaled_init(scale: float = 1.0) -> nn.initializers.Initializer:
    """Uniform initialiser of variance 2 scale / (fan_in + fan_out), as for every DDPM kernel."""
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


def dropout(x: Array, rate: float, keys: Key | None, path: Sequence[str]) -> Array:
    """Zeroes entries of x [B, ...] with probability `rate` and divides the rest by 1 - rate.

    `keys` and `path` are those of `dropout_mask`.
    """
    keep = dropout_mask(x.shape, rate, keys, path)
    return x if keep is None else jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def dropout_mask(
    shape: Sequence[int], rate: float, keys: Key | None, path: Sequence[str]
) -> Array | None:
    """Which entries of an array [B, ...] to keep, bool: False with probability `rate`.

    `keys` [B] holds one typed key per example; None keeps all and returns None. The layer's stream
    is the hash of its module `path`, folded into each key. So a mask depends on the example and the
    layer alone, not on the rest of the batch nor on how devices split it. This holds for JAX's
    default generator; the "rbg" generators do not promise it under `vmap`.
    """
    if keys is None or rate == 0.0:
        return None
    # A checksum, because Python's hash of a string differs from process to process.
    stream = zlib.crc32("/".join(path).encode())
    kept = jnp.float32(1.0 - rate)  # a Python number would draw in float64 if JAX enables it

    def keep(key: Key) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, stream), kept, shape[1:])

    return jax.vmap(keep)(keys)


def resolve_dropout_keys(module: nn.Module, rate: float, keys: Key | None, batch: int) -> Any:
    """Returns one key per example [batch], or None for no dropout.

    They are `keys` where given, else `rngs={"dropout": key}` of `apply` with each row's index
    folded in. Raises ValueError for both at once, for untyped `keys` and for another shape.
    """
    call = type(module).__name__
    if keys is None:
        if rate == 0.0 or not module.has_rng("dropout"):
            return None
        key = module.make_rng("dropout")
        if not is_key(key):
            key = jax.random.wrap_key_data(key)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if module.has_rng("dropout"):
        raise ValueError(
            f"{call} got dropout_keys and rngs={{'dropout': ...}}. Give one of them: dropout_keys "
            "for masks that belong to each example, rngs for masks that belong to each row."
        )
    if not is_key(keys):
        raise ValueError(
            f"{call} needs typed dropout_keys, got {getattr(keys, 'dtype', type(keys))}. Make them "
            "with jax.random.key and jax.random.split, not jax.random.PRNGKey."
        )
    if keys.shape != (batch,):
        raise ValueError(
            f"{call} needs one dropout key per example, shape ({batch},), got shape {keys.shape}. "
            "Make them with jax.random.split(key, batch), or fold each example's index into a key."
        )
    return keys


class GroupNorm(nn.Module):
    """Normalises x [B, *space, C] over space and C / num_groups channels at once (Wu, He 2018).

    y = (x - mean) / √(variance + ε) · scale + bias, computed in float32, then cast to x's dtype.
    """

    num_groups: int
    epsilon: float = EPSILON

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        shift: Array | None = None,
        silu: bool = False,
        keep: Array | None = None,
        rate: float = 0.0,
        dtype: Dtype | None = None,
    ) -> Array:
        """Maps x [B, *space, C] to the same shape, and to its dtype unless another is given.

        `shift` [B, C] is added to x before; SiLU and dropout, with the mask `keep`, follow.
        """
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        form = Form(self.num_groups, self.epsilon, silu, rate, dtype or x.dtype)
        return normalise(x, scale, bias, shift, keep, form)


def _over_space(vectors: Array, ndim: int) -> Array:
    """Vectors [B, C] shaped to add to events of `ndim` axes, [B, *space, C]."""
    return vectors.reshape(vectors.shape[0], *(1,) * (ndim - 2), vectors.shape[-1])


class ResidualBlock(nn.Module):
    """h = conv1(SiLU(norm1(x))) + project(SiLU(emb));  y = x + conv2(dropout(SiLU(norm2(h)))).

    With `scale_shift`, (a, b) = project(SiLU(emb)) and (1 + a) norm2(conv1(…)) + b replaces
    norm2(h). A 1×1 projection of x joins the sum where the number of channels changes.
    Source: Ho et al. 2020, Appendix B; `scale_shift`: Nichol & Dhariwal 2021, §3.
    """

    channels: int
    num_groups: int
    dropout: float
    dtype: Dtype
    epsilon: float = EPSILON
    scale_shift: bool = False

    @nn.compact
    def __call__(self, x: Array, embedding: Array, dropout_keys: Key | None) -> Array:
        """Maps x [B, *space, C_in] and embedding [B, E] to [B, *space, channels]."""
        rank = x.ndim - 2
        h = GroupNorm(self.num_groups, self.epsilon, name="norm1")(x, silu=True)
        h = conv(self.channels, self.dtype, rank=rank, name="conv1")(h)
        features = self.channels * (2 if self.scale_shift else 1)
        e = dense(features, self.dtype, name="embedding")(nn.silu(embedding))
        norm2 = GroupNorm(self.num_groups, self.epsilon, name="norm2")
        if self.scale_shift:
            scale, shift = jnp.split(_over_space(e, x.ndim), 2, axis=-1)
            h = nn.silu(norm2(h) * (1 + scale) + shift)
            h = dropout(h, self.dropout, dropout_keys, self.path)
        else:
            keep = dropout_mask(h.shape, self.dropout, dropout_keys, self.path)
            h = norm2(h, shift=e, silu=True, keep=keep, rate=self.dropout)
        h = conv(self.channels, self.dtype, scale=NEAR_ZERO, rank=rank, name="conv2")(h)
        if x.shape[-1] != self.channels:
            # A 1×1 convolution, written as the matrix product it is: up to 1.8 times as fast.
            x = dense(self.channels, self.dtype, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """y = x + out(softmax(q kᵀ / √C) v) over all N positions of space, with q, k, v from norm(x).

    With tokens, k and v are theirs instead: cross-attention. Several heads split the channels into
    groups of C / num_heads, which replaces C above. `num_groups` None leaves out the normalisation.
    Source: Ho et al. 2020, Appendix B; heads: Vaswani et al. 2017, §3.2.2; cross-attention:
    Rombach et al. 2022 (2112.10752), §3.3.
    """

    num_groups: int | None
    dtype: Dtype
    epsilon: float = EPSILON
    num_heads: int = 1

    @nn.compact
    def __call__(self, x: Array, tokens: Array | None = None, mask: Array | None = None) -> Array:
        """Maps x [B, *space, C] to the same shape, with tokens [B, L, D] or its own positions.

        Tokens whose mask [B, L] is False are not seen; where none is, y = x + out's bias.
        """
        batch, channels = x.shape[0], x.shape[-1]
        size = channels // self.num_heads
        h = x
        if self.num_groups is not None:
            h = GroupNorm(self.num_groups, self.epsilon, name="norm")(h)
        h = h.reshape(batch, math.prod(x.shape[1:-1]), channels)
        positions, source = h.shape[1], h if tokens is None else tokens

        def heads(name: str, of: Array) -> Array:
            """A projection of [B, N, ·] as [B num_heads, N, size]."""
            h_ = dense(channels, self.dtype, name=name)(of)
            h_ = h_.reshape(batch, of.shape[1], self.num_heads, size).swapaxes(1, 2)
            return h_.reshape(batch * self.num_heads, of.shape[1], size)

        query, key, value = heads("query", h), heads("key", source), heads("value", source)
        seen = None if mask is None else jnp.repeat(mask, self.num_heads, axis=0)
        h = attend(query, key, value, seen)
        h = h.reshape(batch, self.num_heads, positions, size).swapaxes(1, 2)
        h = h.reshape(batch, positions, channels)
        h = dense(channels, self.dtype, scale=NEAR_ZERO, name="out")(h)
        return x + h.reshape(x.shape)


class Downsample(nn.Module):
    """Halves every axis of space: a convolution of width 3 and stride 2, or a mean of pairs."""

    with_conv: bool
    padding: str
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, H, W, C] to [B, H/2, W/2, C], and alike for other ranks of space."""
        rank = x.ndim - 2
        if not self.with_conv:
            return nn.avg_pool(x, (2,) * rank, strides=(2,) * rank)
        # On even sizes TensorFlow's SAME adds only one row below and one column on the right.
        pad = {"same": (0, 1), "symmetric": (1, 1)}[self.padding]
        pads = (pad,) * rank
        return conv(x.shape[-1], self.dtype, rank=rank, strides=2, padding=pads, name="conv")(x)


class Upsample(nn.Module):
    """Doubles every axis of space by repeating, then applies a convolution of width 3 or none."""

    with_conv: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, H, W, C] to [B, 2H, 2W, C], and alike for other ranks of space."""
        batch, *space, channels = x.shape
        rank = len(space)
        if self.with_conv and rank == 2:
            return conv(channels, self.dtype, form=upsampled_convolution, name="conv")(x)
        for axis in range(1, rank + 1):
            x = jnp.repeat(x, 2, axis=axis)
        if self.with_conv:
            x = conv(channels, self.dtype, rank=rank, name="conv")(x)
        return x


@jax.custom_jvp
def join(h: Array, skip: Array) -> Array:
    """Concatenates the channels of h and skip, [B, *space, C] and [B, *space, C']."""

    def written_once(h: Array, skip: Array) -> Array:
        # XLA for GPUs would write it a second time for the gradient of the shortcut's kernel.
        return jax.lax.optimization_barrier(_concatenated(h, skip))

    if not kernels.may_run():
        return _concatenated(h, skip)
    return jax.lax.platform_dependent(h, skip, cuda=written_once, default=_concatenated)


@join.defjvp
def _join_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    return join(*primals), _concatenated(*tangents)


def _concatenated(h: Array, skip: Array) -> Array:
    return jnp.concatenate([h, skip], axis=-1)


def conv(
    features: int,
    dtype: Dtype,
    *,
    name: str,
    scale: float = 1.0,
    rank: int = 2,
    strides: int = 1,
    padding: Any = "SAME",
    form: Any = convolution,
) -> nn.Conv:
    """A 3×3 convolution with DDPM's initialisation, as a submodule called `name`.

    `form` computes it from image and kernel: `convolution`, or `upsampled_convolution`. Another
    `rank` of space has 3 or 3×3×3 weights and XLA's convolution.
    """
    return nn.Conv(
        features,
        (3,) * rank,
        strides,
        padding,
        dtype=dtype,
        kernel_init=scaled_init(scale),
        conv_general_dilated=form if rank == 2 else jax.lax.conv_general_dilated,
        name=name,
    )


def dense(features: int, dtype: Dtype, *, name: str, scale: float = 1.0) -> nn.Dense:
    """A linear map of the last axis with DDPM's initialisation, as a submodule called `name`."""
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=scaled_init(scale),
        dot_general=matmul_last_axis,
        name=name,
    )
