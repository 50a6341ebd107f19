"""U-Net weights under the variable names of the DDPM authors' TensorFlow code.

The names are those of `diffusion_tf/models/unet.py` in github.com/hojonathanho/diffusion, under the
scope "model": model/down_0/block_0/conv1/W and so on. Kernels already have our axes ([kh, kw, in,
out] and [in, out]), so only names are mapped. The map follows from that source; it has not been
tried on the released checkpoint files. Reading those needs TensorFlow, which is not used here: save
the variables by name as an .npz or .safetensors file first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ddpm_jax.forward.checks import check_flag, check_text, check_whole, host_numbers
from ddpm_jax.interop.tensors import check_names, numbers_in
from ddpm_jax.nn import UNet
from ddpm_jax.nn.unet import parameter_shapes
from ddpm_jax.types import PyTree, describe

# Our module -> their scope.
SCOPES: tuple[tuple[str, str], ...] = (
    (r"(conv_in|conv_out|norm_out)", r"\1"),
    (r"time_dense_(\d)", r"temb/dense\1"),
    (r"(down|up)_(\d+)_block_(\d+)", r"\1_\2/block_\3"),
    (r"(down|up)_(\d+)_attention_(\d+)", r"\1_\2/attn_\3"),
    (r"(down|up)_(\d+)_(down|up)sample", r"\1_\2/\3sample"),
    (r"middle_block_0", r"mid/block_1"),
    (r"middle_block_1", r"mid/block_2"),
    (r"middle_attention", r"mid/attn_1"),
)
INNER: dict[str, str] = {
    "embedding": "temb_proj",
    "shortcut": "nin_shortcut",
    "query": "q",
    "key": "k",
    "value": "v",
    "out": "proj_out",
}
TENSORS: dict[str, str] = {"kernel": "W", "bias": "b"}
NORM_TENSORS: dict[str, str] = {"scale": "gamma", "bias": "beta"}
AVERAGE = "/ExponentialMovingAverage"
# What training saves beside the weights: its step and the optimiser's state.
TRAINING = re.compile(r"(.*/(Adam|Adam_1|RMSProp|RMSProp_1|Momentum)|global_step|beta[12]_power)")


def tensorflow_name(path: tuple[str, ...], scope: str = "model") -> str:
    """Names the variable that holds the parameter at `path` of a `UNet`'s tree.

    Raises ValueError for a module that the authors' network does not have.

    >>> from ddpm_jax.interop import tensorflow_name
    >>> tensorflow_name(("down_1_attention_0", "query", "kernel"))
    'model/down_1/attn_0/q/W'
    """
    check_text("tensorflow_name", "scope", scope)
    if not isinstance(path, tuple) or len(path) < 2 or not all(isinstance(p, str) for p in path):
        raise TypeError(f"tensorflow_name needs path, names as a tuple, got {describe(path)}.")
    for ours, theirs in SCOPES:
        match = re.fullmatch(ours, path[0])
        if match:
            inner = [INNER.get(name, name) for name in path[1:-1]]
            normalises = path[-2].startswith("norm")
            tensor = (NORM_TENSORS if normalises else TENSORS).get(path[-1])
            if tensor is not None:
                return "/".join([scope, match.expand(theirs), *inner, tensor])
    raise ValueError(
        f"tensorflow_name has no name for {'/'.join(path)}. It maps the parameters of a UNet."
    )


def unet_from_tensorflow(
    variables: Mapping[str, np.ndarray], resolution: int, *, average: bool = True
) -> tuple[UNet, PyTree]:
    """Reads the network and its parameters from variables by name; shapes give its sizes.

    `resolution` is the height of the images, which the attention's levels are counted from. With
    `average`, the moving averages NAME/ExponentialMovingAverage are taken if there are any. Names
    may end in ":0".

    Raises ValueError naming what is missing, left over or of another shape.
    """
    call = "unet_from_tensorflow"
    check_names(call, "variables", variables)
    resolution = check_whole(call, "resolution", resolution)
    check_flag(call, "average", average)
    weights = _weights(call, variables, average)
    unet = _unet_of(call, weights, resolution)
    channels = np.shape(weights["model/conv_in/W"])[2]
    shapes = parameter_shapes(unet, (resolution, resolution, channels))
    flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(shapes))
    names = {path: tensorflow_name(path) for path in flat}
    missing = sorted(set(names.values()) - set(weights))
    left = sorted(set(weights) - set(names.values()))
    if missing or left:
        raise ValueError(f"{call}: missing {missing}, left over {left}.")
    params = {}
    for path, leaf in flat.items():
        tensor = host_numbers(call, names[path], weights[names[path]]).astype(np.float32)
        if tensor.shape != leaf.shape:
            raise ValueError(
                f"{call}: {names[path]} has shape {tensor.shape}, the network of the other "
                f"variables needs {leaf.shape}."
            )
        params[path] = jnp.array(tensor)
    return unet, traverse_util.unflatten_dict(params)


def _weights(call: str, variables: Mapping[str, Any], average: bool) -> dict[str, Any]:
    """Selects the variables that are weights, by their names without suffixes."""
    plain, averaged = {}, {}
    for name, value in variables.items():
        name = name.removesuffix(":0")
        kind = averaged if name.endswith(AVERAGE) else plain
        if (bare := name.removesuffix(AVERAGE)) in kind:
            raise ValueError(f"{call} got {name} twice, with and without :0. Keep one.")
        if kind is averaged or not TRAINING.fullmatch(name):
            kind[bare] = value
    weights = averaged if average and averaged else plain
    if "model/conv_in/W" not in weights or np.ndim(weights["model/conv_in/W"]) != 4:
        raise ValueError(
            f"{call} needs the variables of the authors' U-Net, got {len(variables)} without a "
            "kernel model/conv_in/W [3, 3, in, out]. Save every variable under its own name."
        )
    return weights


def _unet_of(call: str, weights: Mapping[str, Any], resolution: int) -> UNet:
    """Makes a `UNet` of the sizes that names and shapes give."""
    width = np.shape(weights["model/conv_in/W"])[3]
    bare = sorted(
        name for name, value in weights.items() if 0 in np.shape(value) or not np.ndim(value)
    )
    if bare:
        raise ValueError(f"{call} got {bare[:4]}, which have no values or no axes.")
    levels = numbers_in(r"model/down_(\d+)/block_0/conv1/W$", weights)
    if levels != list(range(len(levels))) or not levels:
        raise ValueError(f"{call} got the levels {levels} of a U-Net, not 0, 1, … without gaps.")
    blocks = numbers_in(r"model/down_0/block_(\d+)/conv1/W$", weights)
    widths = [np.shape(weights[f"model/down_{i}/block_0/conv1/W"])[-1] for i in levels]
    if any(w % width for w in widths):
        raise ValueError(f"{call} got levels of {widths} channels, not multiples of {width}.")
    attended = numbers_in(r"model/down_(\d+)/attn_0/q/W$", weights)
    if "model/conv_out/W" not in weights:
        raise ValueError(f"{call}: missing ['model/conv_out/W'].")
    try:
        return UNet(
            channels=width,
            channel_multipliers=tuple(w // width for w in widths),
            num_res_blocks=len(blocks),
            attention_resolutions=tuple(resolution >> level for level in attended),
            out_channels=np.shape(weights["model/conv_out/W"])[-1],
        )
    except ValueError as error:
        raise ValueError(f"{call} got weights of no network: {error}") from error
