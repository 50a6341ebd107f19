"""The U-Net of DDPM (Ho et al. 2020, Appendix B): predicts ε, or whatever is shaped like x_t.

Level ℓ works at height H / 2^ℓ with `channels · channel_multipliers[ℓ]` channels. On the way down
each level has `num_res_blocks` residual blocks, with attention after each where its height is in
`attention_resolutions`; on the way up it has one more. Every feature map of the way down (conv_in,
each block after its attention, each downsampling) is kept and joined on the way up, last in first
out. Between the ways: block, attention, block. The step t enters every block through one embedding.

With `patch_size` p > 1 all of this happens on a grid of H/p × W/p, whose pixels are the image's
p × p patches (`space_to_depth`): the same widths then cost 1/p² of the arithmetic.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.nn.blocks import (
    NEAR_ZERO,
    AttentionBlock,
    Downsample,
    Dtype,
    GroupNorm,
    ResidualBlock,
    Upsample,
    check_dropout,
    check_dropout_keys,
    conv,
    dense,
)
from ddpm_jax.nn.embeddings import (
    LabelEmbedding,
    broadcast_steps,
    check_label,
    check_num_classes,
    sinusoidal_embedding,
)
from ddpm_jax.nn.space_to_depth import depth_to_space, space_to_depth
from ddpm_jax.types import Array, ArrayLike, Key, PyTree


class UNet(nn.Module):
    """Maps images x [B, H, W, C] and steps t [B] to float32 [B, H, W, out_channels].

    The defaults are DDPM's network for CIFAR-10, of 35,746,307 parameters. For 256×256 images the
    paper uses multipliers (1, 1, 2, 2, 4, 4), attention at 16 and no dropout: 113,673,219.

    Attributes:
        channels: width of the first level.
        channel_multipliers: width of each level over `channels`, from fine to coarse.
        num_res_blocks: residual blocks a level on the way down; the way up has one more.
        attention_resolutions: heights with attention after every block; each must occur in the
            network, whose first height is H / patch_size. The middle always has attention.
        dropout: share of activations dropped in each residual block when `dropout_keys` are given.
        out_channels: channels of the output, None for the input's C; 2C for a learned variance.
        num_groups: groups of each GroupNorm; must divide every level's width, and should be fewer
            than `channels`: a group of one channel normalises the embedding of t away.
        num_classes: labels of a class-conditional network; None for an unconditional one.
        resample_with_conv: True: halve by a convolution of stride 2, double by repeating pixels and
            a convolution. False: halve by 2×2 means, double by repeating.
        downsample_padding: "same", TensorFlow's and DDPM's, or "symmetric", PyTorch's padding=1.
        patch_size: side p of the square patches that the network takes as pixels. It works on
            H/p × W/p positions of p² C channels, and its output is put back in place. 1 for none.
        dtype: computation dtype, None for float32. Parameters, group statistics, softmax, the last
            convolution and the output are float32 whatever it is.
        remat: keep only what enters each block for the backward pass, and compute its inside again
            there: less memory (not on CPUs), about a third more arithmetic, the same numbers.

    Raises ValueError for a configuration or an input that cannot work, before any computation.
    """

    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    out_channels: int | None = None
    num_groups: int = 32
    num_classes: int | None = None
    resample_with_conv: bool = True
    downsample_padding: str = "same"
    patch_size: int = 1
    dtype: Dtype | None = None
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks what can be checked without an input."""
        super().__post_init__()
        _check_configuration(self)

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: ArrayLike,
        label: ArrayLike | None = None,
        *,
        dropout_keys: Key | None = None,
    ) -> Array:
        """Predicts from x [B, H, W, C] at steps t, [B] or [], integer or float.

        `label` int32 [B] in 0 … num_classes-1, or num_classes for "no label"; None is no label for
        all, and labels beyond give NaN. `dropout_keys` [B], one typed key each, turn dropout on.
        """
        _check_input(self, x, label)
        batch, height, _, in_channels = x.shape
        height //= self.patch_size
        check_dropout_keys("UNet", dropout_keys, batch)
        dtype = jnp.float32 if self.dtype is None else self.dtype
        heights = [height >> level for level in range(len(self.channel_multipliers))]
        embedding = self._embed(broadcast_steps("UNet", t, batch), label)

        residual_block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        attention_block = nn.remat(AttentionBlock) if self.remat else AttentionBlock

        def block(h: Array, level: int, name: str) -> Array:
            width = self.channels * self.channel_multipliers[level]
            module = residual_block(width, self.num_groups, self.dropout, dtype, name=name)
            return module(h, embedding, dropout_keys)

        def attend(h: Array, name: str) -> Array:
            return attention_block(self.num_groups, dtype, name=name)(h)

        def halve(h: Array, name: str) -> Array:
            padding = self.downsample_padding
            return Downsample(self.resample_with_conv, padding, dtype, name=name)(h)

        def double(h: Array, name: str) -> Array:
            return Upsample(self.resample_with_conv, dtype, name=name)(h)

        h = conv(self.channels, dtype, name="conv_in")(space_to_depth(x, self.patch_size))
        skips = [h]
        last = len(heights) - 1
        for level, resolution in enumerate(heights):
            for i in range(self.num_res_blocks):
                h = block(h, level, f"down_{level}_block_{i}")
                if resolution in self.attention_resolutions:
                    h = attend(h, f"down_{level}_attention_{i}")
                skips.append(h)
            if level != last:
                h = halve(h, f"down_{level}_downsample")
                skips.append(h)

        h = block(h, last, "middle_block_0")
        h = attend(h, "middle_attention")
        h = block(h, last, "middle_block_1")

        for level in reversed(range(len(heights))):
            for i in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, level, f"up_{level}_block_{i}")
                if heights[level] in self.attention_resolutions:
                    h = attend(h, f"up_{level}_attention_{i}")
            if level != 0:
                h = double(h, f"up_{level}_upsample")

        # The last convolution is 0.06 % of the work, and in bfloat16 would round the prediction to
        # 8 bits.
        h = nn.silu(GroupNorm(self.num_groups, name="norm_out")(h.astype(jnp.float32)))
        out_channels = in_channels if self.out_channels is None else self.out_channels
        features = self.patch_size**2 * out_channels
        h = conv(features, jnp.float32, scale=NEAR_ZERO, name="conv_out")(h)
        return depth_to_space(h, self.patch_size)

    def _embed(self, t: Array, label: ArrayLike | None) -> Array:
        """Embeds steps t [B] and labels as float32 [B, 4 · channels]."""
        width = 4 * self.channels
        h = sinusoidal_embedding(t, self.channels)
        h = nn.silu(dense(width, jnp.float32, name="time_dense_0")(h))
        h = dense(width, jnp.float32, name="time_dense_1")(h)
        if self.num_classes is not None:
            h += LabelEmbedding(self.num_classes, width, name="label_embedding")(label, t.shape[0])
        return h


def count_parameters(params: PyTree) -> int:
    """Counts the numbers in a tree of arrays, or of the shapes that `jax.eval_shape` returns."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _check_configuration(unet: UNet) -> None:
    """Raises ValueError for attributes no input could make work."""
    check_dropout("UNet", unet.dropout)
    check_num_classes("UNet", unet.num_classes)
    if not isinstance(unet.patch_size, int) or unet.patch_size < 1:
        raise ValueError(
            f"UNet needs a whole patch_size of at least 1, got {unet.patch_size!r}. 1 works on "
            "pixels, 2 on patches of 2×2 pixels."
        )
    if unet.downsample_padding not in ("same", "symmetric"):
        raise ValueError(
            "UNet needs downsample_padding 'same' or 'symmetric', got "
            f"{unet.downsample_padding!r}. DDPM's own is 'same': below and to the right only."
        )
    if not unet.channel_multipliers or unet.num_res_blocks < 1:
        raise ValueError(
            "UNet needs at least one level and one block a level, got channel_multipliers="
            f"{unet.channel_multipliers}, num_res_blocks={unet.num_res_blocks}. "
            "DDPM uses (1, 2, 2, 2) and 2."
        )
    for width in [unet.channels] + [unet.channels * m for m in unet.channel_multipliers]:
        if width < 1 or unet.num_groups < 1 or width % unet.num_groups:
            raise ValueError(
                f"UNet(channels={unet.channels}, channel_multipliers={unet.channel_multipliers}) "
                f"has blocks of {width} channels, which num_groups={unet.num_groups} does not "
                "divide. Choose num_groups to divide `channels`, a quarter of it for example."
            )


def _check_input(unet: UNet, x: Array, label: ArrayLike | None) -> None:
    """Raises ValueError for an image or label the network cannot take."""
    check_label("UNet", label, unet.num_classes)
    if x.ndim != 4:
        raise ValueError(
            f"UNet needs images [B, H, W, C], got shape {x.shape}. "
            "Add the batch axis with x[None], or the channel axis with x[..., None]."
        )
    height, width = x.shape[1:3]
    halvings, patch = len(unet.channel_multipliers) - 1, unet.patch_size
    multiple = patch * 2**halvings
    if min(height, width) < 1 or height % multiple or width % multiple:
        first = "" if patch == 1 else f"takes patches of {patch}×{patch} pixels and "
        smaller = "" if patch == 1 else " or a smaller patch_size"
        raise ValueError(
            f"UNet {first}halves its images {halvings} times, so height and width must be "
            f"multiples of {multiple}, got {height}×{width}. Pad or resize the images, or use "
            f"fewer channel_multipliers{smaller}."
        )
    heights = [height // patch >> level for level in range(halvings + 1)]
    absent = sorted(set(unet.attention_resolutions) - set(heights))
    if absent:
        raise ValueError(
            f"UNet never reaches attention_resolutions {absent}: on images of {height}×{width}"
            f"{'' if patch == 1 else f' in patches of {patch}×{patch}'} its heights are {heights}. "
            "Choose among those, or () for attention in the middle only."
        )
