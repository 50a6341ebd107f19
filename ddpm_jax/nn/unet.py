"""The U-Net of DDPM (Ho et al. 2020, Appendix B): predicts ε, or whatever is shaped like x_t.

Level ℓ works at height H / 2^ℓ with `channels · channel_multipliers[ℓ]` channels. On the way down
each level has `num_res_blocks` residual blocks, with attention after each where its height is in
`attention_resolutions`; on the way up it has one more. Every feature map of the way down (conv_in,
each block after its attention, each downsampling) is kept and concatenated on the way up, last in
first out. In the middle: block, attention, block. One embedding of the step t enters every block.

With `spatial_rank` 1 or 3 the same network maps signals [B, L, C] or volumes [B, D, H, W, C].

With `patch_size` p > 1 all of this happens on a grid of H/p × W/p positions, each a p × p patch of
the image (`space_to_depth`): the same widths then cost 1/p² of the arithmetic.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.nn.blocks import (
    EPSILON,
    NEAR_ZERO,
    AttentionBlock,
    Downsample,
    Dtype,
    GroupNorm,
    ResidualBlock,
    Upsample,
    conv,
    dense,
    join,
    resolve_dropout_keys,
)
from ddpm_jax.nn.checks import (
    broadcast_steps,
    check_configuration,
    check_images,
    given_context,
    num_heads,
)
from ddpm_jax.nn.embeddings import add_conditions, sinusoidal_embedding
from ddpm_jax.nn.space_to_depth import depth_to_space, space_to_depth
from ddpm_jax.types import Array, ArrayLike, Key, PyTree, describe


class UNet(nn.Module):
    """Maps images x [B, H, W, C] and steps t [B] to float32 [B, H, W, out_channels].

    The defaults are DDPM's network for CIFAR-10, of 35,746,307 parameters. For 256×256 images the
    paper uses multipliers (1, 1, 2, 2, 4, 4), attention at 16 and no dropout: 113,673,219.

    An image to condition on (super-resolution, inpainting) needs no attribute: concatenate it to x
    along the channels, and set `out_channels` to the channels of the prediction. The training
    program does this for data with an array `concat`.

    Attributes:
        channels: width of the first level.
        channel_multipliers: width of each level as a multiple of `channels`, fine to coarse.
        num_res_blocks: residual blocks per level on the way down; the way up has one more.
        attention_resolutions: heights with attention after every block; each must occur in the
            network, whose first height is H / patch_size.
        dropout: share of activations dropped in each residual block when a call gives keys for it.
        out_channels: channels of the output, None for the input's C; 2C for a learned variance.
        num_groups: groups of each GroupNorm; must divide every level's width and should be smaller,
            because a group of one channel removes the embedding of t (without `scale_shift`).
        num_classes: labels of a class-conditional network; None for no labels.
        cond_features: length D of the vector `cond` that conditions each example; None for none.
        context_features: width D of the tokens `context` [B, L, D], such as those of a text; None
            for none. Cross-attention to them follows wherever there is self-attention.
        spatial_rank: axes of space, 1, 2 or 3. "Height" is the first of them.
        resample_with_conv: True: halve with a convolution of stride 2; double by repeating pixels,
            then a convolution. False: halve with 2×2 means; double by repeating.
        downsample_padding: "same", as in TensorFlow and DDPM, or "symmetric", PyTorch's padding=1.
        patch_size: side p of the square patches that the network treats as single positions: it
            works on H/p × W/p positions of p² C channels and puts its output back in place. 1 for
            none.
        num_heads: attention heads at every level; each has an equal share of the channels.
        head_channels: channels per attention head, in place of `num_heads`: wide levels have more
            heads.
        middle_attention: attention in the middle: "normalised" as at the other levels, "plain"
            without GroupNorm, as in diffusers with scale_shift, or "none".
        scale_shift: whether the embedding scales and shifts the second normalisation of each block,
            as in improved DDPM, instead of being added before it.
        embedding_order: "sin_cos" or "cos_sin", which half of the embedding of t comes first.
        embedding_shift: 1 or 0; see `sinusoidal_embedding`.
        norm_epsilon: ε of every GroupNorm; PyTorch's default is 1e-5.
        dtype: computation dtype, None for float32. Parameters, group statistics, softmax, the last
            convolution and the output are always float32.
        remat: keep only the input of each block for the backward pass and recompute its inside
            there: less memory (not on CPUs), about a third more arithmetic, the same numbers.

    The settings of guided-diffusion (Dhariwal & Nichol 2021) are downsample_padding="symmetric",
    scale_shift=True, embedding_order="cos_sin", embedding_shift=0, norm_epsilon=1e-5 and
    num_heads=4 or head_channels=64. `interop.unet_from_diffusers_config` reads those of diffusers.

    Raises ValueError or TypeError for a configuration or an input that cannot work, before any
    computation. Warns where the embedding of t is removed at some levels.

    >>> unet = dj.UNet(channels=8, channel_multipliers=(1, 2), num_groups=4,
    ...                attention_resolutions=())
    >>> unet.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)), t=5)[0].shape
    (1, 8, 8, 3)
    """

    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    out_channels: int | None = None
    num_groups: int = 32
    num_classes: int | None = None
    cond_features: int | None = None
    context_features: int | None = None
    spatial_rank: int = 2
    resample_with_conv: bool = True
    downsample_padding: str = "same"
    patch_size: int = 1
    num_heads: int = 1
    head_channels: int | None = None
    middle_attention: str = "normalised"
    scale_shift: bool = False
    embedding_order: str = "sin_cos"
    embedding_shift: int = 1
    norm_epsilon: float = EPSILON
    dtype: Dtype | None = None
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks what can be checked without an input."""
        # Lists would leave the network without a hash, which caches and static arguments need.
        for name in ("channel_multipliers", "attention_resolutions"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        super().__post_init__()
        check_configuration(self)

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: ArrayLike,
        label: ArrayLike | None = None,
        *,
        cond: Array | None = None,
        context: Array | None = None,
        context_mask: Array | None = None,
        dropout_keys: Key | None = None,
    ) -> Array:
        """Predicts from x [B, H, W, C] at steps t, [B] or [], integer or float.

        Args:
            x: noisy images.
            t: step of each image, or of all.
            label: int32 [B] in 0 … num_classes-1, or num_classes for "no label". None is no label
                for all. Labels outside that range give NaN.
            cond: vectors [B, cond_features]; their projection is added to the embedding of t. None
                is zeros for all, so set rows to zero to drop conditions while training.
            context: tokens [B, L, context_features] in no order of their own. None is no token.
            context_mask: bool [B, L], False for tokens that are not there; an example without any
                is unconditional, so clear rows to drop conditions while training.
            dropout_keys: [B], one typed key per example. They turn dropout on, and the masks of an
                example do not depend on its place in the batch. `apply(..., rngs={"dropout": key})`
                turns it on, too, with each row's index in this call folded into `key`.
        """
        check_images(self, x)
        batch, height, in_channels = x.shape[0], x.shape[1], x.shape[-1]
        tokens, mask = given_context(self, batch, context, context_mask)
        dropout_keys = resolve_dropout_keys(self, self.dropout, dropout_keys, batch)
        dtype = jnp.float32 if self.dtype is None else self.dtype
        height //= self.patch_size
        heights = [height >> level for level in range(len(self.channel_multipliers))]
        embedding = self._embed(broadcast_steps("UNet", t, x), label, cond)

        residual_block = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        attention_block = nn.remat(AttentionBlock) if self.remat else AttentionBlock

        def block(h: Array, level: int, name: str) -> Array:
            width = self.channels * self.channel_multipliers[level]
            module = residual_block(
                width,
                self.num_groups,
                self.dropout,
                dtype,
                epsilon=self.norm_epsilon,
                scale_shift=self.scale_shift,
                name=name,
            )
            return module(h, embedding, dropout_keys)

        def attend(h: Array, name: str, groups: int | None = self.num_groups) -> Array:
            options = (groups, dtype, self.norm_epsilon, num_heads(self, h.shape[-1]))
            h = attention_block(*options, name=name)(h)
            if tokens is None:
                return h
            return attention_block(*options, name=f"{name}_context")(h, tokens, mask)

        def halve(h: Array, name: str) -> Array:
            padding = self.downsample_padding
            return Downsample(self.resample_with_conv, padding, dtype, name=name)(h)

        def double(h: Array, name: str) -> Array:
            return Upsample(self.resample_with_conv, dtype, name=name)(h)

        rank = self.spatial_rank
        h = space_to_depth(x, self.patch_size)
        h = conv(self.channels, dtype, rank=rank, name="conv_in")(h)
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
        if self.middle_attention != "none":
            normalised = self.middle_attention == "normalised"
            h = attend(h, "middle_attention", self.num_groups if normalised else None)
        h = block(h, last, "middle_block_1")

        for level in reversed(range(len(heights))):
            for i in range(self.num_res_blocks + 1):
                h = join(h, skips.pop())
                h = block(h, level, f"up_{level}_block_{i}")
                if heights[level] in self.attention_resolutions:
                    h = attend(h, f"up_{level}_attention_{i}")
            if level != 0:
                h = double(h, f"up_{level}_upsample")

        # The last convolution is 0.06 % of the work; bfloat16 would round its prediction to 8 bits.
        norm = GroupNorm(self.num_groups, self.norm_epsilon, name="norm_out")
        h = norm(h, silu=True, dtype=jnp.float32)
        out_channels = in_channels if self.out_channels is None else self.out_channels
        features = self.patch_size**rank * out_channels
        h = conv(features, jnp.float32, scale=NEAR_ZERO, rank=rank, name="conv_out")(h)
        return depth_to_space(h, self.patch_size)

    def _embed(self, t: Array, label: ArrayLike | None, cond: Array | None) -> Array:
        """Embeds steps t [B] and the conditions as float32 [B, 4 · channels]."""
        width = 4 * self.channels
        h = sinusoidal_embedding(
            t, self.channels, order=self.embedding_order, shift=self.embedding_shift
        )
        h = nn.silu(dense(width, jnp.float32, name="time_dense_0")(h))
        h = dense(width, jnp.float32, name="time_dense_1")(h)
        return add_conditions(self, h, label, cond)


def parameter_shapes(network: nn.Module, image_shape: tuple[int, ...]) -> PyTree:
    """The parameters of a network for images of this shape, as `jax.ShapeDtypeStruct`.

    Every network is traced once per shape.
    """
    shapes = _trace(network, image_shape)  # pyright: ignore[reportArgumentType]
    return jax.tree.map(lambda leaf: leaf, shapes)


@functools.lru_cache(maxsize=64)
def _trace(network: nn.Module, image_shape: tuple[int, ...]) -> PyTree:
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), x, 0)["params"]


def count_parameters(params: PyTree) -> int:
    """Counts the numbers in a tree of arrays, or of the shapes that `jax.eval_shape` returns.

    Raises TypeError for a tree that holds anything else, or nothing.

    >>> dj.nn.count_parameters({"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)})
    9
    """
    leaves = jax.tree.leaves(params)
    if not leaves or not all(hasattr(leaf, "size") and hasattr(leaf, "dtype") for leaf in leaves):
        raise TypeError(f"count_parameters needs a tree of arrays, got {describe(params)}.")
    return sum(leaf.size for leaf in leaves)
