"""Files of other libraries: what they say is understood exactly, or refused by name."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ddpm_jax.forward import linear_schedule
from ddpm_jax.interop import (
    Process,
    choose_pipeline_files,
    load_diffusers,
    process_from_diffusers_config,
    process_to_diffusers_config,
    read_npz,
    read_safetensors,
    save_diffusers,
    unet_from_diffusers_config,
    unet_to_diffusers_config,
    write_safetensors,
)
from ddpm_jax.interop.diffusers_unet import PATCH_SIZE
from ddpm_jax.nn import UNet
from ddpm_jax.programs.build import build_schedule
from ddpm_jax.programs.config import DiffusionConfig
from tests.reference_unet import random_params

TINY = UNet(
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_groups=4,
    dropout=0.0,
    out_channels=1,
)
SHAPE = (8, 8, 1)
PROCESS = Process("linear", 20, 1e-3, 0.2, False, "epsilon", "fixed_large", True)
SCHEDULE = linear_schedule(20, 1e-3, 0.2)

# What the public repositories google/ddpm-cifar10-32 and google/ddpm-cat-256 say, since 2022.
GOOGLE = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "time_embedding_type": "positional",
}
CIFAR10 = GOOGLE | {
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "sample_size": 32,
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
CAT_256 = GOOGLE | {
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "sample_size": 256,
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
}
CIFAR10_SCHEDULER = {
    "_class_name": "GaussianDDPMScheduler",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "timesteps": 1000,
    "variance_type": "fixed_large",
}
CAT_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_small",
}


@pytest.fixture(scope="module")
def params():
    return random_params(TINY, np.zeros((1, *SHAPE), np.float32), 0)


@pytest.fixture
def folder(params, tmp_path):
    save_diffusers(tmp_path / "pipeline", TINY, params, SHAPE, PROCESS, SCHEDULE)
    return tmp_path / "pipeline"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_papers_networks_by_their_public_configurations():
    assert unet_from_diffusers_config(CIFAR10) == (
        UNet(dropout=0.0, out_channels=3),
        (32, 32, 3),
    )
    unet, shape = unet_from_diffusers_config(CAT_256)
    assert shape == (256, 256, 3)
    assert unet == UNet(
        channel_multipliers=(1, 1, 2, 2, 4, 4),
        attention_resolutions=(16,),
        dropout=0.0,
        out_channels=3,
    )


def test_the_papers_processes_by_their_public_configurations():
    paper = Process("linear", 1000, 1e-4, 0.02, False, "epsilon", "fixed_large", True)
    assert process_from_diffusers_config(CIFAR10_SCHEDULER) == paper
    assert process_from_diffusers_config(CAT_SCHEDULER) == paper._replace(variance="fixed_small")


@pytest.mark.parametrize(
    "unet,shape",
    [
        (TINY, SHAPE),
        (TINY.clone(attention_resolutions=(), dropout=0.3, out_channels=2), SHAPE),
        (TINY.clone(downsample_padding="symmetric", attention_resolutions=(16, 8)), (16, 32, 1)),
        (TINY.clone(num_classes=3, norm_epsilon=1e-5, embedding_order="cos_sin"), SHAPE),
        (TINY.clone(embedding_shift=0, head_channels=4, middle_attention="none"), (4, 4, 1)),
        (TINY.clone(scale_shift=True, head_channels=8, middle_attention="plain"), SHAPE),
        (TINY.clone(scale_shift=True, head_channels=4, middle_attention="normalised"), SHAPE),
        (TINY.clone(patch_size=3, attention_resolutions=(2,)), (12, 6, 1)),
    ],
)
def test_networks_go_there_and_back(unet, shape):
    config = json.loads(json.dumps(unet_to_diffusers_config(unet, shape)))
    assert unet_from_diffusers_config(config) == (unet, shape)


@pytest.mark.parametrize(
    "change,named",
    [
        ({"norm_eps": 0}, "norm_eps=0"),
        ({"norm_eps": "1e-5"}, "norm_eps='1e-5'"),
        ({"act_fn": "gelu"}, "act_fn='gelu'"),
        ({"add_attention": 1}, "add_attention=1"),
        ({"attention_head_dim": 96}, "attention_head_dim=96"),
        ({"attention_head_dim": 8.0}, "attention_head_dim=8.0"),
        ({"attn_norm_num_groups": 16}, "attn_norm_num_groups=16"),
        ({"center_input_sample": True}, "center_input_sample=True"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ({"num_class_embeds": 1}, "num_class_embeds=1"),
        ({"downsample_padding": 2}, "downsample_padding=2"),
        ({"downsample_type": "resnet"}, "downsample_type='resnet'"),
        ({"upsample_type": "resnet"}, "upsample_type='resnet'"),
        ({"flip_sin_to_cos": 2}, "flip_sin_to_cos=2"),
        ({"freq_shift": 2}, "freq_shift=2"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor=1.4"),
        ({"mid_block_type": None}, "mid_block_type=None"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift='spatial'"),
        ({"resnet_time_scale_shift": [1]}, r"resnet_time_scale_shift=\[1\]"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ({"time_embedding_dim": 64}, "time_embedding_dim=64"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"block_out_channels": [128, 192, 256, 256]}, "multiples of the first"),
        ({"block_out_channels": [128, 256]}, "one for each of block_out_channels"),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 4}, r"CrossAttnDownBlock2D'\] \(only"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "mirrored"),
        ({"sample_size": 20}, r"sample_size=20 \(multiples of 8"),
        ({"sample_size": None}, "sample_size=None"),
        ({"layers_per_block": 0}, "layers_per_block=0"),
        ({"transformer_layers": 3}, r"transformer_layers=3 \(unknown here"),
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({PATCH_SIZE: 0}, f"{PATCH_SIZE}=0"),
        ({PATCH_SIZE: 2.0}, rf"{PATCH_SIZE}=2\.0"),
        ({PATCH_SIZE: 2}, f"in_channels=3 .a multiple of {PATCH_SIZE}² = 4.; out_channels=3"),
    ],
)
def test_settings_no_unet_of_ours_has_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        unet_from_diffusers_config(CIFAR10 | change)


def test_absent_settings_mean_what_diffusers_takes_for_them():
    """Its own defaults are another network than DDPM's: an absent norm_eps is 1e-5."""
    ours = {"norm_eps", "flip_sin_to_cos", "freq_shift", "attention_head_dim"}
    bare = {name: value for name, value in CIFAR10.items() if name not in ours}
    unet, _ = unet_from_diffusers_config(bare)
    assert unet == UNet(
        dropout=0.0,
        out_channels=3,
        norm_epsilon=1e-5,
        embedding_order="cos_sin",
        embedding_shift=0,
        head_channels=8,
    )
    with pytest.raises(ValueError, match=r"without \['sample_size'\]"):
        unet_from_diffusers_config({n: v for n, v in CIFAR10.items() if n != "sample_size"})


def test_other_spellings_of_the_same_network():
    """One head as wide as all levels with attention; several heads by their number."""
    assert unet_from_diffusers_config(CIFAR10 | {"attention_head_dim": 256}) == (
        UNet(dropout=0.0, out_channels=3),
        (32, 32, 3),
    )
    heads = UNet(num_heads=4, attention_resolutions=(16, 8), out_channels=3)
    read, _ = unet_from_diffusers_config(unet_to_diffusers_config(heads, (32, 32, 3)))
    assert read == heads.clone(num_heads=1, head_channels=64)


@pytest.mark.parametrize(
    "unet,named",
    [
        (TINY.clone(cond_features=3), "cond_features=3"),
        (TINY.clone(spatial_rank=3), "spatial_rank=3"),
        (TINY.clone(middle_attention="plain"), "middle_attention='plain' without scale_shift"),
        (TINY.clone(num_heads=2, attention_resolutions=(8,)), "num_heads=2"),
        (TINY.clone(resample_with_conv=False), "resample_with_conv=False"),
        (TINY.clone(channel_multipliers=(2, 4)), r"channel_multipliers=\(2, 4\)"),
    ],
)
def test_networks_diffusers_cannot_express_are_named(unet, named):
    with pytest.raises(ValueError, match=named):
        unet_to_diffusers_config(unet, SHAPE)


@pytest.mark.parametrize(
    "unet,shape,named",
    [
        (
            TINY.clone(patch_size=2, attention_resolutions=()),
            (8, 10, 1),
            "multiples of 4, got 8×10",
        ),
        (TINY, (16, 16, 1), r"never reaches attention_resolutions \[4\]"),
    ],
)
def test_images_the_network_does_not_take_are_named(unet, shape, named):
    with pytest.raises(ValueError, match=named):
        unet_to_diffusers_config(unet, shape)


@pytest.mark.parametrize(
    "schedule",
    ["linear", "quadratic", "cosine", "sigmoid", "constant", "warmup10", "warmup50", "jsd"],
)
@pytest.mark.parametrize("target,variance", [("x_0", "fixed_small"), ("v", "learned_range")])
def test_processes_go_there_and_back(schedule, target, variance):
    """By name, or as a table of β that is recognised: the tables are equal either way."""
    diffusion = DiffusionConfig(schedule, 40, 1e-3, 0.3, target=target, variance=variance)
    ours = Process(schedule, 40, 1e-3, 0.3, False, target, variance, False)
    table = build_schedule(diffusion)
    config = json.loads(json.dumps(process_to_diffusers_config(ours, table)))
    back = process_from_diffusers_config(config)
    assert back[4:] == ours[4:]
    assert (back.schedule, back.num_timesteps) == (schedule, 40)
    again = build_schedule(DiffusionConfig(*back[:4], target=target))
    np.testing.assert_allclose(again.beta, table.beta, rtol=1e-6)


@pytest.mark.parametrize(
    "change,named",
    [
        ({"_class_name": "PNDMScheduler"}, "_class_name='PNDMScheduler'"),
        ({"beta_schedule": "laplace"}, "beta_schedule='laplace'"),
        ({"beta_start": 0.5}, "beta_start=0.5, beta_end=0.02"),
        ({"clip_sample_range": 2.0}, "clip_sample_range=2.0"),
        ({"thresholding": True, "sample_max_value": 3.0}, "sample_max_value=3.0"),
        ({"prediction_type": "flow"}, "prediction_type='flow'"),
        ({"variance_type": "learned"}, r"variance_type='learned' \(only"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True with"),
        ({"trained_betas": [0.1, 0.3, 0.2]}, "trained_betas of no schedule"),
        ({"use_karras_sigmas": True}, r"use_karras_sigmas=True \(unknown here"),
    ],
)
def test_settings_no_process_of_ours_has_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        process_from_diffusers_config(CAT_SCHEDULER | change)


def test_other_spellings_of_the_same_process():
    old = CAT_SCHEDULER | {"predict_epsilon": False, "variance_type": "fixed_small_log"}
    read = process_from_diffusers_config(old)
    assert (read.target, read.variance) == ("x_0", "fixed_small")
    # Dynamic thresholding between limits of 1 and 1 is a clip.
    clipped = process_from_diffusers_config(CAT_SCHEDULER | {"thresholding": True})
    assert clipped.clip
    stretched = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    assert process_from_diffusers_config(CAT_SCHEDULER | stretched).zero_terminal_snr
    ddim = {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": True}
    assert not process_from_diffusers_config(ddim).clip


@pytest.mark.parametrize("change", [{"target": "score"}, {"variance": "learned"}])
def test_processes_diffusers_cannot_express_are_named(change):
    (name, value), *_ = change.items()
    with pytest.raises(ValueError, match=f"{name}='{value}'"):
        process_to_diffusers_config(PROCESS._replace(**change), SCHEDULE)


def test_both_layouts_of_a_folder_are_the_same_model(folder, params, tmp_path):
    new = load_diffusers(folder)
    assert (new.unet, new.image_shape, new.process) == (TINY, SHAPE, PROCESS)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, new.params, params)))
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        shutil.copy(folder / path, flat)
    shutil.copy(folder / "unet/diffusion_pytorch_model.safetensors", flat)
    old = load_diffusers(flat)
    assert old[:1] + old[2:] == new[:1] + new[2:]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, old.params, params)))


def test_safetensors_that_are_damaged_or_strange_are_refused(folder, params):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-4], whole[:100], b"", b"\x80\x04not tensors"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as safetensors.*cut short"):
            load_diffusers(folder)
    path.write_bytes(whole)
    tensors = read_safetensors(path)
    with pytest.raises(ValueError, match="write_safetensors needs finite conv_out.bias"):
        write_safetensors(path, tensors | {"conv_out.bias": np.full(1, np.nan, np.float32)})
    save_file(tensors | {"conv_out.bias": np.full(1, np.nan, np.float32)}, path)
    with pytest.raises(ValueError, match=r"NaN or infinite values in \['conv_out.bias'\]"):
        load_diffusers(folder)
    write_safetensors(path, tensors | {"conv_out.bias": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match=r"does not fit unet/config.json.*conv_out.bias has shape"):
        load_diffusers(folder)
    del tensors["conv_out.bias"]
    write_safetensors(path, tensors)
    with pytest.raises(ValueError, match=r"missing \['conv_out.bias'\]"):
        load_diffusers(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"no unet/diffusion_pytorch_model.safetensors"):
        load_diffusers(folder)


def test_weights_of_another_dtype_are_refused(tmp_path):
    save_file({"a": np.ones(3, np.float16)}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="a has dtype F16, and only F32 is read"):
        read_safetensors(tmp_path / "half.safetensors")
    found = read_safetensors(tmp_path / "half.safetensors", ("F32", "F16"))
    assert found["a"].dtype == np.float16
    save_file({"a": np.ones(3, np.float64)}, tmp_path / "double.safetensors")
    with pytest.raises(ValueError, match="a has dtype F64, and only F32 or F16 is read"):
        read_safetensors(tmp_path / "double.safetensors", ("F32", "F16"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_safetensors(tmp_path / "none.safetensors")


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".ckpt", ".PT"])
def test_pickles_are_refused_unopened(tmp_path, suffix):
    path = tmp_path / f"diffusion_pytorch_model{suffix}"
    path.touch()
    with pytest.raises(ValueError, match="is a pickle, and reading a pickle may run any program"):
        read_safetensors(path)


def test_a_folder_with_pickles_alone_says_why(folder):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"unet/diffusion_pytorch_model.bin is a pickle"):
        load_diffusers(folder)


def test_archives_of_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    np.savez(tmp_path / "wide.npz", a=np.zeros(2))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "wide.npz").read_bytes()[:-30])
    for name in ("objects", "cut"):
        with pytest.raises(ValueError, match="cannot be read as an .npz archive"):
            read_npz(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match="a has dtype float64"):
        read_npz(tmp_path / "wide.npz")


def test_folders_that_do_not_fit_together_are_refused(folder, tmp_path):
    index = folder / "model_index.json"
    edit(index, vae=["diffusers", "AutoencoderKL"])
    with pytest.raises(ValueError, match=r"parts \['vae'\]"):
        load_diffusers(folder)
    index.unlink()
    edit(folder / "scheduler/scheduler_config.json", variance_type="learned_range")
    with pytest.raises(ValueError, match="out_channels=1 with in_channels=1.*needs 2"):
        load_diffusers(folder)
    (folder / "unet/config.json").write_text("[1]")
    with pytest.raises(ValueError, match="unet/config.json: the .* must be a JSON object"):
        load_diffusers(folder)
    (folder / "unet/config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_diffusers(folder)
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_diffusers(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no folder of a DDPMPipeline"):
        load_diffusers(tmp_path)


def test_weights_in_several_files_are_refused():
    names = ["unet/config.json", "scheduler/scheduler_config.json"]
    names += [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    with pytest.raises(ValueError, match="00001-of-00002.*one file"):
        choose_pipeline_files(names, "repository")


def test_a_model_with_labels_is_a_unet_and_a_scheduler_but_no_pipeline(folder):
    """Over an earlier model without labels, whose index must not name the new parts."""
    unet = TINY.clone(num_classes=3)
    params = random_params(unet, np.zeros((1, *SHAPE), np.float32), 1)
    written = save_diffusers(folder, unet, params, SHAPE, PROCESS, SCHEDULE)
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(written)
    assert {path.relative_to(folder).as_posix() for path in written} == {
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
    }
    config = json.loads((folder / "unet/config.json").read_text())
    assert (config["num_class_embeds"], config["class_embed_type"]) == (4, None)
    tensors = read_safetensors(folder / "unet/diffusion_pytorch_model.safetensors")
    table = params["label_embedding"]["table"]["embedding"]
    assert table.shape == (4, 32)
    np.testing.assert_array_equal(tensors["class_embedding.weight"], table)
    read = load_diffusers(folder)
    assert (read.unet, read.image_shape, read.process) == (unet, SHAPE, PROCESS)
    assert jax.tree.all(jax.tree.map(np.array_equal, read.params, params))


@pytest.mark.parametrize("labels", [None, 3])
@pytest.mark.parametrize(
    "change",
    [
        {"cond_features": 2},
        {"context_features": 2},
        {"resample_with_conv": False},
        {"channel_multipliers": (2, 2)},
        {"middle_attention": "plain"},
        {"num_heads": 2, "attention_resolutions": (8,)},
    ],
    ids=str,
)
def test_networks_without_counterpart_leave_no_folder(labels, change, tmp_path):
    unet = TINY.clone(num_classes=labels, **change)
    params = random_params(unet, np.zeros((1, *SHAPE), np.float32), 0)
    with pytest.raises(ValueError, match=f"UNet2DModel cannot express {next(iter(change))}="):
        save_diffusers(tmp_path / "a", unet, params, SHAPE, PROCESS, SCHEDULE)
    assert not (tmp_path / "a").exists()


def test_processes_without_counterpart_leave_no_folder(params, tmp_path):
    with pytest.raises(ValueError, match="target='score'"):
        out, process = tmp_path / "out", PROCESS._replace(target="score")
        save_diffusers(out, TINY, params, SHAPE, process, SCHEDULE)
    assert not (tmp_path / "out").exists()
