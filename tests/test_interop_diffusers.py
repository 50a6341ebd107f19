"""The weight map: complete both ways by itself, and the same function where torch is installed."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.interop import (
    unet_from_diffusers_config,
    unet_params_from_diffusers,
    unet_params_to_diffusers,
    unet_to_diffusers_config,
)
from ddpm_jax.nn import UNet, count_parameters
from ddpm_jax.nn.unet import parameter_shapes
from tests.reference_unet import random_params

SMALL = UNet(
    channels=16,
    channel_multipliers=(1, 2, 2),
    num_res_blocks=1,
    attention_resolutions=(8, 4),
    num_groups=4,
)
IMAGE = (2, 16, 16, 3)


def images(shape=IMAGE, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def small_params():
    return random_params(SMALL, images(), 0)


@pytest.fixture
def small_state(small_params):
    return unet_params_to_diffusers(small_params, SMALL)


def same_trees(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(np.array_equal, a, b))
    )


def test_there_and_back(small_params, small_state):
    back = unet_params_from_diffusers(small_state, SMALL)
    assert same_trees(back, small_params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(back))
    assert sum(tensor.size for tensor in small_state.values()) == count_parameters(small_params)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_resolutions": ()},
        {"attention_resolutions": (16, 8, 4)},
        {"num_classes": 5, "out_channels": 6},
        {"scale_shift": True, "head_channels": 8, "middle_attention": "plain"},
        {"middle_attention": "none"},
        {"resample_with_conv": False},
    ],
)
def test_there_and_back_with_other_parts(change):
    unet = SMALL.clone(**change)
    params = random_params(unet, images(), 0)
    back = unet_params_from_diffusers(unet_params_to_diffusers(params, unet), unet)
    assert same_trees(back, params)


def test_names_and_shapes_of_the_cifar10_checkpoint():
    """A sample of google/ddpm-cifar10-32: every kind of tensor, levels up and down."""
    unet = UNet()
    shapes = parameter_shapes(unet, (32, 32, 3))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    state = unet_params_to_diffusers(params, unet)
    known = {
        "conv_in.weight": (128, 3, 3, 3),
        "time_embedding.linear_1.weight": (512, 128),
        "time_embedding.linear_2.bias": (512,),
        "down_blocks.0.downsamplers.0.conv.weight": (128, 128, 3, 3),
        "down_blocks.1.resnets.0.conv_shortcut.weight": (256, 128, 1, 1),
        "down_blocks.1.resnets.0.time_emb_proj.weight": (256, 512),
        "down_blocks.1.attentions.1.group_norm.weight": (256,),
        "down_blocks.1.attentions.1.to_k.bias": (256,),
        "mid_block.resnets.1.norm2.bias": (256,),
        "mid_block.attentions.0.to_out.0.weight": (256, 256),
        "up_blocks.0.resnets.0.conv1.weight": (256, 512, 3, 3),
        "up_blocks.0.upsamplers.0.conv.weight": (256, 256, 3, 3),
        "up_blocks.2.attentions.2.to_q.weight": (256, 256),
        "up_blocks.3.resnets.0.conv_shortcut.weight": (128, 384, 1, 1),
        "conv_norm_out.weight": (128,),
        "conv_out.weight": (3, 128, 3, 3),
    }
    assert {key: state[key].shape for key in known} == known
    assert sum(tensor.size for tensor in state.values()) == 35_746_307


def test_what_corresponds(small_params, small_state):
    """Tensor by tensor, level by level, with axes: what shapes alone would let pass."""
    same, linear, shortcut, conv = None, "io->oi", "io->oi", "abio->oiab"
    pairs = [
        ("conv_in/kernel", "conv_in.weight", conv),
        ("time_dense_0/kernel", "time_embedding.linear_1.weight", linear),
        ("time_dense_1/bias", "time_embedding.linear_2.bias", same),
        ("down_1_block_0/norm1/scale", "down_blocks.1.resnets.0.norm1.weight", same),
        ("down_2_block_0/norm2/bias", "down_blocks.2.resnets.0.norm2.bias", same),
        ("down_2_block_0/conv1/kernel", "down_blocks.2.resnets.0.conv1.weight", conv),
        ("down_2_block_0/conv2/kernel", "down_blocks.2.resnets.0.conv2.weight", conv),
        ("down_2_block_0/embedding/kernel", "down_blocks.2.resnets.0.time_emb_proj.weight", linear),
        (
            "down_1_block_0/shortcut/kernel",
            "down_blocks.1.resnets.0.conv_shortcut.weight",
            shortcut,
        ),
        ("down_1_downsample/conv/kernel", "down_blocks.1.downsamplers.0.conv.weight", conv),
        ("down_2_attention_0/norm/scale", "down_blocks.2.attentions.0.group_norm.weight", same),
        ("down_2_attention_0/query/kernel", "down_blocks.2.attentions.0.to_q.weight", linear),
        ("middle_attention/key/kernel", "mid_block.attentions.0.to_k.weight", linear),
        ("middle_attention/value/bias", "mid_block.attentions.0.to_v.bias", same),
        ("middle_attention/out/kernel", "mid_block.attentions.0.to_out.0.weight", linear),
        ("middle_block_1/conv1/bias", "mid_block.resnets.1.conv1.bias", same),
        ("up_2_block_0/conv2/kernel", "up_blocks.0.resnets.0.conv2.weight", conv),
        ("up_2_attention_1/norm/bias", "up_blocks.0.attentions.1.group_norm.bias", same),
        ("up_1_upsample/conv/kernel", "up_blocks.1.upsamplers.0.conv.weight", conv),
        ("up_0_block_1/norm1/scale", "up_blocks.2.resnets.1.norm1.weight", same),
        ("norm_out/scale", "conv_norm_out.weight", same),
        ("conv_out/bias", "conv_out.bias", same),
    ]
    for path, key, axes in pairs:
        ours = functools.reduce(dict.__getitem__, path.split("/"), small_params)
        expected = np.einsum(axes, ours) if axes else ours
        theirs = small_state[key][..., 0, 0] if "shortcut" in key else small_state[key]
        np.testing.assert_array_equal(theirs, expected, err_msg=key)


def test_old_attention_names(small_params, small_state):
    """Checkpoints of 2022 say query, key, value, proj_attn."""
    old = {
        key.replace("to_q", "query")
        .replace("to_k", "key")
        .replace("to_v", "value")
        .replace("to_out.0", "proj_attn"): tensor
        for key, tensor in small_state.items()
    }
    assert old.keys() != small_state.keys()
    assert same_trees(unet_params_from_diffusers(old, SMALL), small_params)
    twice = small_state | old
    with pytest.raises(ValueError, match=r"attentions\.0\.to_\w+\.\S+ twice"):
        unet_params_from_diffusers(twice, SMALL)


def test_a_copy_is_made(small_state):
    """`jax.device_put` takes over NumPy memory aligned to 64 bytes and would follow its changes."""
    memory = np.zeros(16 + 16, np.float32)
    start = -(memory.ctypes.data // 4) % 16
    small_state["conv_norm_out.weight"] = memory[start : start + 16]
    params = unet_params_from_diffusers(small_state, SMALL)
    memory[:] = 7
    np.testing.assert_array_equal(params["norm_out"]["scale"], np.zeros(16))


def test_tensors_missing_left_over_or_misshapen_are_named(small_state):
    missing = dict(small_state)
    del missing["mid_block.resnets.1.conv2.bias"]
    with pytest.raises(ValueError, match=r"missing \['mid_block.resnets.1.conv2.bias'\], left"):
        unet_params_from_diffusers(missing, SMALL)
    more = small_state | {"mid_block.extra.weight": np.zeros(3)}
    with pytest.raises(ValueError, match=r"missing \[\], left over \['mid_block.extra.weight'\]"):
        unet_params_from_diffusers(more, SMALL)
    wrong = small_state | {"conv_out.weight": np.zeros((4, 16, 3, 3))}
    with pytest.raises(ValueError, match=r"conv_out.weight has shape \(4, 16, 3, 3\).*\(3, 16, 3"):
        unet_params_from_diffusers(wrong, SMALL)
    with pytest.raises(ValueError, match="without a kernel conv_in.weight"):
        unet_params_from_diffusers({"state_dict": small_state}, SMALL)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"num_res_blocks": 2}, r"down_blocks.0.resnets.1.conv1.bias"),
        ({"num_classes": 3}, r"missing \['class_embedding.weight'\]"),
        ({"resample_with_conv": False}, r"left over .*downsamplers.0.conv.bias"),
        ({"attention_resolutions": (8,)}, r"at levels \[1, 2\]"),
        ({"attention_resolutions": (16, 4)}, r"at levels \[1, 2\]"),
        ({"channels": 32}, r"has shape \(\d+.*this UNet needs"),
    ],
)
def test_weights_of_another_network_are_refused(small_state, change, message):
    with pytest.raises(ValueError, match=message):
        unet_params_from_diffusers(small_state, SMALL.clone(**change))


def test_params_of_another_network_are_refused(small_params):
    with pytest.raises(ValueError, match="missing .*label_embedding/table/embedding"):
        unet_params_to_diffusers(small_params, SMALL.clone(num_classes=3))
    with pytest.raises(ValueError, match=r"has shape \(\d+.*this UNet needs"):
        unet_params_to_diffusers(small_params, SMALL.clone(channels=32))
    with pytest.raises(
        ValueError, match=r"has shape \(3, 3, 3, 16\), this UNet needs \(3, 3, 4, 16"
    ):
        unet_params_to_diffusers(small_params, SMALL.clone(patch_size=2))
    unet = SMALL.clone(cond_features=3)
    with pytest.raises(ValueError, match="cond_dense"):
        unet_params_to_diffusers(random_params(unet, images(), 0), unet)
    with pytest.raises(ValueError, match=r"\['params'\] without conv_in/kernel"):
        unet_params_to_diffusers({"params": small_params}, SMALL)


def test_importing_the_map_does_not_import_torch():
    code = "import sys, ddpm_jax.interop; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def torch_unet(unet, height):
    """The public UNet2DModel that computes what `unet` does, every parameter moved."""
    reason = "needs the extra [interop] to compare with PyTorch"
    torch = pytest.importorskip("torch", reason=reason)
    diffusers = pytest.importorskip("diffusers", reason=reason)
    torch.manual_seed(0)
    config = unet_to_diffusers_config(unet, (height, height, 3))
    return torch, perturbed(torch, diffusers.UNet2DModel.from_config(config))


def perturbed(torch, model):
    """Moves every parameter, so that none is at a value where it has no effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.5 if parameter.ndim == 1 else 0.5 * parameter.std()
            parameter.add_(spread * torch.randn_like(parameter))
    return model.eval()


def run_torch(torch, model, x, t, label=None):
    """Calls the PyTorch model on NHWC images and returns a torch tensor of them."""
    more = {} if label is None else {"class_labels": torch.as_tensor(label)}
    return model(x.permute(0, 3, 1, 2), torch.as_tensor(t), **more).sample.permute(0, 2, 3, 1)


@functools.partial(jax.jit, static_argnums=0)
def run_flax(unet, params, x, t, label=None):
    return unet.apply({"params": params}, x, t, label)


NETWORKS = {
    "CIFAR-10": (UNet(), 32),
    "256×256, narrower": (
        UNet(
            channels=32,
            channel_multipliers=(1, 1, 2, 2, 4, 4),
            attention_resolutions=(4,),
            num_groups=8,
        ),
        64,
    ),
    "symmetric padding and labels": (
        SMALL.clone(downsample_padding="symmetric", num_classes=4),
        16,
    ),
    "guided-diffusion's settings": (
        SMALL.clone(
            downsample_padding="symmetric",
            num_heads=4,
            scale_shift=True,
            embedding_order="cos_sin",
            embedding_shift=0,
            norm_epsilon=1e-5,
            num_classes=4,
        ),
        16,
    ),
    "scale and shift, unnormalised attention in the middle": (
        SMALL.clone(scale_shift=True, middle_attention="plain", head_channels=8),
        16,
    ),
    "no attention in the middle": (
        SMALL.clone(middle_attention="none", embedding_order="cos_sin", norm_epsilon=1e-3),
        16,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_pytorch(name):
    """Outputs of size 1: float32 alone makes 2e-6; an epsilon of 1e-5 would make 4e-5."""
    unet, height = NETWORKS[name]
    torch, model = torch_unet(unet, height)
    x, t = images((2, height, height, 3)), np.array([3, 999])
    label = None if unet.num_classes is None else np.array([4, 1])
    with torch.no_grad():
        truth = run_torch(torch, model, torch.as_tensor(x), t, label).numpy()
    params = unet_params_from_diffusers(model.state_dict(), unet)
    assert count_parameters(params) == sum(p.numel() for p in model.parameters())
    assert np.std(truth) > 0.2
    np.testing.assert_allclose(run_flax(unet, params, x, t, label), truth, atol=1e-5, rtol=0)
    state = unet_params_to_diffusers(params, unet)
    assert state.keys() == model.state_dict().keys()
    assert all(np.array_equal(state[key], value) for key, value in model.state_dict().items())


# The network of diffusers' example train_unconditional.py, narrower by 4: everything that is not
# here is UNet2DModel's default.
EXAMPLE = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": (32, 32, 64, 64, 128, 128),
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
    "norm_num_groups": 8,
}


@pytest.mark.parametrize(
    "change",
    [{}, {"num_class_embeds": 5}, {"resnet_time_scale_shift": "scale_shift"}],
    ids=["default", "labels", "scale and shift"],
)
def test_their_training_example(change):
    """Their config and weights give our network, and ours give theirs: the same function."""
    torch, model = torch_unet(SMALL, 16)
    model = perturbed(torch, type(model)(**EXAMPLE, **change))
    # As config.json holds it.
    config = json.loads(model.to_json_string())
    unet, shape = unet_from_diffusers_config(config)
    assert shape == (64, 64, 3) and unet.attention_resolutions == (4,)
    x, t = images((2, *shape)), np.array([3, 999])
    label = None if unet.num_classes is None else np.array([4, 1])
    with torch.no_grad():
        truth = run_torch(torch, model, torch.as_tensor(x), t, label).numpy()
    params = unet_params_from_diffusers(model.state_dict(), unet)
    assert np.std(truth) > 0.2
    np.testing.assert_allclose(run_flax(unet, params, x, t, label), truth, atol=2e-5, rtol=0)

    back = type(model).from_config(unet_to_diffusers_config(unet, shape)).eval()
    state = unet_params_to_diffusers(params, unet)
    back.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
    with torch.no_grad():
        again = run_torch(torch, back, torch.as_tensor(x), t, label).numpy()
    np.testing.assert_allclose(again, truth, atol=1e-6)


def test_gradients_equal_pytorch():
    """Of a random linear function of the output, in every parameter and in the image."""
    torch, model = torch_unet(SMALL, 16)
    x, t, weights = images(), np.array([3, 999]), images(seed=2)
    x_torch = torch.tensor(x, requires_grad=True)
    (run_torch(torch, model, x_torch, t) * torch.as_tensor(weights)).sum().backward()
    params = unet_params_from_diffusers(model.state_dict(), SMALL)

    def loss(params, x):
        return jnp.sum(run_flax(SMALL, params, x, t) * weights)

    by_params, by_image = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    np.testing.assert_allclose(by_image, x_torch.grad, atol=1e-4 * float(x_torch.grad.abs().max()))
    got = unet_params_to_diffusers(by_params, SMALL)
    for key, parameter in model.named_parameters():
        # The key's bias moves all logits of a query alike: its gradient is zero but for rounding.
        if key.endswith("to_k.bias"):
            continue
        largest = float(parameter.grad.abs().max())
        np.testing.assert_allclose(got[key], parameter.grad, atol=1e-4 * largest, err_msg=key)
