"""The DDPM authors' variable names: the list of their CIFAR-10 network, whole, and back."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from ddpm_jax.interop import tensorflow_name, unet_from_tensorflow
from ddpm_jax.nn import UNet
from ddpm_jax.nn.unet import parameter_shapes
from tests.reference_unet import random_params

SMALL = UNet(
    channels=64,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    out_channels=3,
)


def documented_names(levels, blocks, attended, widened):
    """The variables of diffusion_tf/models/unet.py, as its scopes nest."""

    def weights(scope):
        return {f"{scope}/W", f"{scope}/b"}

    def norm(scope):
        return {f"{scope}/gamma", f"{scope}/beta"}

    def residual(scope, shortcut):
        names = norm(f"{scope}/norm1") | norm(f"{scope}/norm2")
        for layer in ["conv1", "temb_proj", "conv2"] + ["nin_shortcut"] * shortcut:
            names |= weights(f"{scope}/{layer}")
        return names

    def attention(scope):
        parts = (weights(f"{scope}/{layer}") for layer in ("q", "k", "v", "proj_out"))
        return norm(f"{scope}/norm").union(*parts)

    names = weights("temb/dense0") | weights("temb/dense1") | weights("conv_in")
    for level in range(levels):
        for block in range(blocks):
            names |= residual(f"down_{level}/block_{block}", block == 0 and level in widened)
            names |= attention(f"down_{level}/attn_{block}") if level in attended else set()
        names |= weights(f"down_{level}/downsample/conv") if level < levels - 1 else set()
    names |= residual("mid/block_1", False) | attention("mid/attn_1")
    names |= residual("mid/block_2", False)
    for level in range(levels):
        for block in range(blocks + 1):
            # The concatenated input is wider than the output, always.
            names |= residual(f"up_{level}/block_{block}", True)
            names |= attention(f"up_{level}/attn_{block}") if level in attended else set()
        names |= weights(f"up_{level}/upsample/conv") if level > 0 else set()
    return {f"model/{name}" for name in names | norm("norm_out") | weights("conv_out")}


def variables_of(unet, params):
    flat = traverse_util.flatten_dict(params)
    return {tensorflow_name(path): np.asarray(leaf) for path, leaf in flat.items()}


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL, np.zeros((1, 8, 8, 3), np.float32), 0)


def test_the_cifar10_network_has_the_documented_names():
    unet = UNet()
    shapes = parameter_shapes(unet, (32, 32, 3))
    names = [tensorflow_name(path) for path in traverse_util.flatten_dict(shapes)]
    assert len(set(names)) == len(names)
    assert set(names) == documented_names(4, 2, attended={1}, widened={1})


@pytest.mark.parametrize(
    "path,name",
    [
        ("time_dense_0/kernel", "temb/dense0/W"),
        ("time_dense_1/bias", "temb/dense1/b"),
        ("conv_in/kernel", "conv_in/W"),
        ("down_1_block_0/norm1/scale", "down_1/block_0/norm1/gamma"),
        ("down_1_block_0/norm2/bias", "down_1/block_0/norm2/beta"),
        ("down_0_block_1/conv2/bias", "down_0/block_1/conv2/b"),
        ("down_1_block_0/embedding/kernel", "down_1/block_0/temb_proj/W"),
        ("down_1_block_0/shortcut/kernel", "down_1/block_0/nin_shortcut/W"),
        ("down_1_attention_1/query/kernel", "down_1/attn_1/q/W"),
        ("down_1_attention_1/key/kernel", "down_1/attn_1/k/W"),
        ("down_1_attention_1/value/kernel", "down_1/attn_1/v/W"),
        ("up_1_attention_2/out/bias", "up_1/attn_2/proj_out/b"),
        ("down_2_downsample/conv/kernel", "down_2/downsample/conv/W"),
        ("up_3_upsample/conv/kernel", "up_3/upsample/conv/W"),
        ("middle_block_0/conv1/kernel", "mid/block_1/conv1/W"),
        ("middle_block_1/conv1/kernel", "mid/block_2/conv1/W"),
        ("middle_attention/norm/scale", "mid/attn_1/norm/gamma"),
        ("norm_out/bias", "norm_out/beta"),
        ("conv_out/kernel", "conv_out/W"),
    ],
)
def test_what_corresponds(path, name):
    """Name by name: what the list of all names, in which two may be swapped, would let pass."""
    assert tensorflow_name(tuple(path.split("/"))) == f"model/{name}"


def test_sizes_are_read_off_the_shapes(params):
    """With the averages that training keeps, and what else it does."""
    weights = variables_of(SMALL, params)
    saved = {f"{name}:0": np.zeros_like(value) for name, value in weights.items()}
    saved |= {f"{name}/ExponentialMovingAverage": value for name, value in weights.items()}
    saved |= {f"{name}/Adam_1": value for name, value in weights.items()}
    saved |= {"global_step": np.int64(7), "beta1_power": np.float32(0.5)}
    unet, read = unet_from_tensorflow(saved, 8)
    assert unet == SMALL.clone(dropout=unet.dropout)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, read, params)))
    _, last = unet_from_tensorflow(saved, 8, average=False)
    assert not np.any(last["conv_in"]["kernel"])


def test_what_is_missing_left_over_or_misshapen_is_named(params):
    weights = variables_of(SMALL, params)
    without = {n: v for n, v in weights.items() if n != "model/mid/attn_1/norm/gamma"}
    with pytest.raises(ValueError, match=r"missing \['model/mid/attn_1/norm/gamma'\], left over"):
        unet_from_tensorflow(without, 8)
    with pytest.raises(ValueError, match=r"left over \['model/other/W'\]"):
        unet_from_tensorflow(weights | {"model/other/W": np.zeros(3)}, 8)
    with pytest.raises(ValueError, match=r"model/conv_out/b has shape \(4,\)"):
        unet_from_tensorflow(weights | {"model/conv_out/b": np.zeros(4)}, 8)
    with pytest.raises(ValueError, match="without a kernel model/conv_in/W"):
        unet_from_tensorflow({"a": np.zeros(3)}, 8)
