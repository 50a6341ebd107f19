"""U-Net weights to and from the naming of diffusers' UNet2DModel, as used by google/ddpm-cifar10-32.

The map is data: MODULES and TENSORS say how names correspond, `unet_weight_map` spells them out for one
network, and two short functions read that list in either direction. A kernel is [3, 3, in, out] or
[in, out] here; PyTorch keeps [out, in, 3, 3], [out, in], or [out, in, 1, 1] for a shortcut.

The weights mean the same function only under the settings of that checkpoint: norm_eps 1e-6, act_fn
silu, flip_sin_to_cos False, freq_shift 1, attention_head_dim None (one head), and downsample_padding 0
for UNet's "same", 1 for its "symmetric".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ddpm_jax.nn import UNet
from ddpm_jax.types import PyTree

# Our module -> theirs. Groups are level and place; {up} counts their up_blocks, from coarse to fine.
MODULES: tuple[tuple[str, str], ...] = (
    (r"conv_in", "conv_in"),
    (r"time_dense_0", "time_embedding.linear_1"),
    (r"time_dense_1", "time_embedding.linear_2"),
    (r"label_embedding/table", "class_embedding"),
    (r"down_(\d+)_block_(\d+)(/\w+)", "down_blocks.{0}.resnets.{1}{inner}"),
    (r"down_(\d+)_attention_(\d+)(/\w+)", "down_blocks.{0}.attentions.{1}{inner}"),
    (r"down_(\d+)_downsample/conv", "down_blocks.{0}.downsamplers.0.conv"),
    (r"middle_block_(\d+)(/\w+)", "mid_block.resnets.{0}{inner}"),
    (r"middle_attention(/\w+)", "mid_block.attentions.0{inner}"),
    (r"up_(\d+)_block_(\d+)(/\w+)", "up_blocks.{up}.resnets.{1}{inner}"),
    (r"up_(\d+)_attention_(\d+)(/\w+)", "up_blocks.{up}.attentions.{1}{inner}"),
    (r"up_(\d+)_upsample/conv", "up_blocks.{up}.upsamplers.0.conv"),
    (r"norm_out", "conv_norm_out"),
    (r"conv_out", "conv_out"),
)
