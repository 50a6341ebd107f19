"""U-Net weights under the names of diffusers' UNet2DModel, as google/ddpm-cifar10-32 is stored.

The map is data: MODULES, INNER and TENSORS say how names correspond, LAYOUTS how axes do, and
`unet_weight_map` spells it out for one network as a list of (our path, their key, layout).

With `patch_size` p > 1 the UNet2DModel works on images of patches, in the order of PyTorch's
`pixel_unshuffle`: pixel (u, v) of channel c is their channel (c p + u) p + v, while in our
`space_to_depth` it is (u p + v) C + c. PATCHED names the tensors that are reordered for that.

The weights do not show the settings they were trained with, such as norm_eps or flip_sin_to_cos.
`diffusers_unet` reads those from config.json; with other settings the weights fit, but compute
something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ddpm_jax.forward.checks import check_kind, host_numbers
from ddpm_jax.interop.tensors import check_names, numbers_in
from ddpm_jax.nn import UNet
from ddpm_jax.nn.unet import parameter_shapes
from ddpm_jax.types import PyTree

# Our module -> theirs, after "up" levels are counted from the coarsest, as theirs are.
MODULES: tuple[tuple[str, str], ...] = (
    (r"conv_in", r"conv_in"),
    (r"time_dense_0", r"time_embedding.linear_1"),
    (r"time_dense_1", r"time_embedding.linear_2"),
    (r"label_embedding", r"class_embedding"),
    (r"(down|up)_(\d+)_block_(\d+)", r"\1_blocks.\2.resnets.\3"),
    (r"(down|up)_(\d+)_attention_(\d+)", r"\1_blocks.\2.attentions.\3"),
    (r"(down|up)_(\d+)_(down|up)sample", r"\1_blocks.\2.\3samplers.0"),
    (r"middle_block_(\d+)", r"mid_block.resnets.\1"),
    (r"middle_attention", r"mid_block.attentions.0"),
    (r"norm_out", r"conv_norm_out"),
    (r"conv_out", r"conv_out"),
)
# Names inside a module that differ; the table of labels has no name of its own there.
INNER: dict[str, str] = {
    "embedding": "time_emb_proj",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
    "table": "",
}
TENSORS: dict[str, str] = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
}
# Tensors with the channels of patches, and the axis that has them, in our layout.
PATCHED: dict[tuple[str, ...], int] = {
    ("conv_in", "kernel"): 2,
    ("conv_out", "kernel"): 3,
    ("conv_out", "bias"): 0,
}
# Names of the attention layers in checkpoints saved before 2023.
OLD_ATTENTION: dict[str, str] = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


class Layout(NamedTuple):
    """How one tensor's axes are converted, in both directions."""

    to_theirs: Callable[[np.ndarray], np.ndarray]
    to_ours: Callable[[np.ndarray], np.ndarray]


LAYOUTS: dict[str, Layout] = {
    "same": Layout(lambda w: w, lambda w: w),
    "linear": Layout(lambda w: w.T, lambda w: w.T),  # [in, out] and [out, in]
    "conv": Layout(  # [3, 3, in, out] and [out, in, 3, 3]
        lambda w: w.transpose(3, 2, 0, 1), lambda w: w.transpose(2, 3, 1, 0)
    ),
    "shortcut": Layout(  # [in, out] and [out, in, 1, 1]
        lambda w: w.T[:, :, None, None], lambda w: w[:, :, 0, 0].T
    ),
}


class Entry(NamedTuple):
    """One tensor of the map: its path in our tree, its key in theirs, and a name in LAYOUTS."""

    path: tuple[str, ...]
    key: str
    layout: str


def unet_weight_map(paths: Iterable[tuple[str, ...]], num_levels: int) -> list[Entry]:
    """Lists where each parameter of a U-Net of `num_levels` levels is stored, in order of `paths`.

    Raises ValueError for a parameter that UNet2DModel does not have.

    >>> from ddpm_jax.interop.diffusers import unet_weight_map
    >>> unet_weight_map([("up_0_block_2", "conv1", "kernel")], num_levels=4)[0].key
    'up_blocks.3.resnets.2.conv1.weight'
    """
    return [Entry(path, _their_key(path, num_levels), _layout(path)) for path in paths]


def unet_params_from_diffusers(state_dict: Mapping[str, Any], unet: UNet) -> PyTree:
    """Reads a UNet2DModel's tensors, by name, as the float32 parameters of `unet`.

    Takes anything NumPy can read as an array, and old and new names of the attention layers. The
    levels with attention come from the state dict. They must be as many and as far apart as
    `unet.attention_resolutions`. With `unet.patch_size` p, the UNet2DModel takes
    `pixel_unshuffle(x, p)`.

    Raises ValueError naming every tensor that is missing, left over, or of another shape.
    """
    call = "unet_params_from_diffusers"
    check_names(call, "state_dict", state_dict)
    check_kind(call, "unet", unet, UNet, "such as dj.UNet()")
    theirs = _modern_names(call, state_dict)
    if "conv_in.weight" not in theirs or np.ndim(theirs["conv_in.weight"]) != 4:
        raise ValueError(
            f"{call} needs the state dict of a UNet2DModel, got {len(theirs)} tensors without a "
            "kernel conv_in.weight [out, in, 3, 3]. Pass model.state_dict() itself, unwrapped."
        )
    # Every block has tensors of its own. Without this check, a small file that claims a million
    # blocks would take a day to trace.
    if unet.num_res_blocks * len(unet.channel_multipliers) > len(theirs):
        raise ValueError(
            f"{call} got {len(theirs)} tensors for {len(unet.channel_multipliers)} levels of "
            f"{unet.num_res_blocks} blocks. Give the UNet the blocks of the weights."
        )
    levels = numbers_in(r"down_blocks\.(\d+)\.attentions\.", theirs)
    expected = _expected_shapes(call, unet, levels, np.shape(theirs["conv_in.weight"])[1])
    entries = unet_weight_map(expected, len(unet.channel_multipliers))
    _check_names(call, theirs, [entry.key for entry in entries])
    params = {}
    for entry in entries:
        layout = LAYOUTS[entry.layout]
        tensor = host_numbers(call, entry.key, theirs[entry.key]).astype(np.float32, copy=False)
        shape = layout.to_theirs(np.broadcast_to(np.float32(0), expected[entry.path])).shape
        _check_shape(call, entry.key, tensor.shape, shape)
        tensor = _reorder(entry.path, layout.to_ours(tensor), (-1, unet.patch_size**2))
        # A copy: a state dict may share its memory with a model that continues training.
        params[entry.path] = jnp.array(tensor)
    return traverse_util.unflatten_dict(params)


def unet_params_to_diffusers(params: PyTree, unet: UNet) -> dict[str, np.ndarray]:
    """Writes the parameters of `unet` as a UNet2DModel's state dict of float32 NumPy arrays.

    With `unet.patch_size` p, that model takes `pixel_unshuffle(x, p)`, and `pixel_shuffle` of its
    output is the output of `unet`.

    Raises ValueError naming every parameter that is missing, left over, or of another shape.
    """
    call = "unet_params_to_diffusers"
    check_names(call, "params", params)
    check_kind(call, "unet", unet, UNet, "such as dj.UNet()")
    ours: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(params))
    if ("conv_in", "kernel") not in ours:
        raise ValueError(
            f"{call} needs the parameters of a UNet, got a tree of {sorted(params)} without "
            "conv_in/kernel. Pass variables['params']."
        )
    levels = numbers_in(r"down_(\d+)_attention_", (path[0] for path in ours))
    expected = _expected_shapes(call, unet, levels, ours["conv_in", "kernel"].shape[2])
    _check_names(call, map("/".join, ours), map("/".join, expected))
    state_dict = {}
    for entry in unet_weight_map(expected, len(unet.channel_multipliers)):
        tensor = host_numbers(call, "/".join(entry.path), ours[entry.path]).astype(np.float32)
        _check_shape(call, "/".join(entry.path), tensor.shape, expected[entry.path])
        tensor = _reorder(entry.path, tensor, (unet.patch_size**2, -1))
        state_dict[entry.key] = np.ascontiguousarray(LAYOUTS[entry.layout].to_theirs(tensor))
    return state_dict


def _their_key(path: tuple[str, ...], num_levels: int) -> str:
    """Names a parameter as UNet2DModel does."""
    module = re.sub(r"(?<=^up_)\d+", lambda level: str(num_levels - 1 - int(level[0])), path[0])
    for ours, theirs in MODULES:
        match = re.fullmatch(ours, module)
        if match:
            inner = [INNER.get(name, name) for name in path[1:-1]]
            return ".".join([match.expand(theirs), *filter(None, inner), TENSORS[path[-1]]])
    raise ValueError(f"unet_weight_map knows no module called {path[0]!r}; it maps a UNet's own.")


def _layout(path: tuple[str, ...]) -> str:
    """Names the layout rule of a parameter."""
    if path[-1] != "kernel":
        return "same"
    if path[-2] == "shortcut":
        return "shortcut"
    return "conv" if path[-2].startswith("conv") else "linear"


def _reorder(path: tuple[str, ...], tensor: np.ndarray, split: tuple[int, int]) -> np.ndarray:
    """Transposes the channels of patches, `split` into pixels and channels or the reverse."""
    if path not in PATCHED:
        return tensor
    axis, shape = PATCHED[path], tensor.shape
    parts = tensor.reshape(*shape[:axis], *split, *shape[axis + 1 :])
    return parts.swapaxes(axis, axis + 1).reshape(shape)


def _modern_names(call: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Renames the attention layers of old checkpoints; a tensor under both names is an error."""
    tensors = {}
    for key, tensor in state_dict.items():
        for old, new in OLD_ATTENTION.items():
            key = re.sub(rf"(?<=\.attentions\.)(\d+)\.{old}\.", rf"\1.{new}.", key)
        if key in tensors:
            raise ValueError(f"{call} got {key} twice, under its old and its new name. Keep one.")
        tensors[key] = tensor
    return tensors


def _expected_shapes(
    call: str, unet: UNet, levels: list[int], in_channels: int
) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shapes of the parameters of `unet` with attention at these levels, by path.

    `in_channels` are those of conv_in: p² of them for each channel of an image.
    """
    patch = unet.patch_size
    resolutions = sorted(set(unet.attention_resolutions), reverse=True)
    heights = {resolution << level for resolution, level in zip(resolutions, levels, strict=False)}
    if len(levels) != len(resolutions) or len(heights) > 1:
        raise ValueError(
            f"{call} got weights with attention at levels {levels}, which no image height gives a "
            f"UNet with attention_resolutions={unet.attention_resolutions}. List the image height, "
            "in patches, divided by 2^level for each of those levels."
        )
    coarsest = 2 ** (len(unet.channel_multipliers) - 1)
    height = heights.pop() if heights else coarsest
    # Channels that p² does not divide give another shape than the weights have.
    image_shape = (height * patch, coarsest * patch, max(1, in_channels // patch**2))
    params = parameter_shapes(unet, image_shape)
    flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(params))
    return {path: leaf.shape for path, leaf in flat.items()}


def _check_names(call: str, got: Iterable[str], needed: Iterable[str]) -> None:
    """Raises ValueError naming what is missing and what is left over."""
    got, needed = set(got), set(needed)
    if got != needed:
        raise ValueError(
            f"{call}: missing {sorted(needed - got)}, left over {sorted(got - needed)}. Every "
            "tensor must be used once: give the UNet the levels, blocks, attention and classes of "
            "the weights."
        )


def _check_shape(call: str, name: str, got: tuple[int, ...], needed: tuple[int, ...]) -> None:
    """Raises ValueError naming a tensor of the wrong shape."""
    if got != needed:
        raise ValueError(
            f"{call}: {name} has shape {got}, this UNet needs {needed}. "
            "Give the UNet the channels, multipliers, patch_size and classes of the weights."
        )
