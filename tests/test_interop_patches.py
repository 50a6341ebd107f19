"""Networks of patches as UNet2DModels on `pixel_unshuffle(x, p)`, and back."""

import itertools
import json
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.interop import (
    ImportedModel,
    Process,
    load_diffusers,
    save_diffusers,
    unet_from_diffusers_config,
    unet_params_from_diffusers,
    unet_params_to_diffusers,
)
from ddpm_jax.interop.diffusers_unet import PATCH_SIZE
from ddpm_jax.nn import UNet
from ddpm_jax.programs.build import build_schedule
from ddpm_jax.programs.config import DiffusionConfig, SamplerOptions
from ddpm_jax.programs.convert import FromDiffusers, ImportOptions, ToDiffusers, convert, write_run
from ddpm_jax.programs.diffusers_code import sampling_code
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from tests.reference_unet import random_params

PROCESS = Process("cosine", 12, 1e-4, 0.02, False, "v", "fixed_small", True)
SCHEDULE = build_schedule(DiffusionConfig(*PROCESS[:4], target=PROCESS.target))


class Case(NamedTuple):
    """A small network on images that are wider than high."""

    patch: int
    channels: int
    classes: int | None
    learned: bool

    @property
    def shape(self):
        return (4 * self.patch, 8 * self.patch, self.channels)

    @property
    def unet(self):
        return UNet(
            channels=8,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(2,),
            dropout=0.0,
            num_groups=4,
            num_classes=self.classes,
            out_channels=self.channels * (2 if self.learned else 1),
            patch_size=self.patch,
        )

    @property
    def process(self):
        return PROCESS._replace(variance="learned_range") if self.learned else PROCESS

    @property
    def params(self):
        return random_params(self.unet, np.zeros((1, *self.shape), np.float32), 0)


CASES = [
    Case(1, 1, None, False),
    Case(1, 3, 3, True),
    Case(2, 1, None, True),
    Case(2, 1, 3, False),
    Case(2, 3, None, False),
    Case(2, 3, 3, True),
    Case(4, 1, 3, True),
    Case(4, 3, None, False),
]


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
        jax.tree.map(np.array_equal, a, b)
    )


def save(case, folder):
    params = case.params
    save_diffusers(folder, case.unet, params, case.shape, case.process, SCHEDULE)
    return params


def to_pixels(torch, x, patch):
    """NumPy images [B, H, W, C] of torch's images of patches."""
    return torch.nn.functional.pixel_shuffle(x, patch).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_folders_go_there_and_back(case, tmp_path):
    params = save(case, tmp_path)
    config = json.loads((tmp_path / "unet/config.json").read_text())
    assert config["in_channels"] == case.channels * case.patch**2
    assert config["out_channels"] == case.unet.out_channels * case.patch**2
    assert config["sample_size"] == [4, 8]
    assert config.get(PATCH_SIZE) == (None if case.patch == 1 else case.patch)
    back = load_diffusers(tmp_path)
    assert back[0] == case.unet
    assert back[2:] == (case.shape, case.process)
    assert same(back.params, params)


@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[5], CASES[6]], ids=str)
def test_channels_are_in_the_order_of_pixel_unshuffle(case):
    """One by one: channel (c p + u) p + v of theirs is channel (u p + v) C + c of ours."""
    params, p = case.params, case.patch
    state = unet_params_to_diffusers(params, case.unet)
    kernels = params["conv_in"]["kernel"], params["conv_out"]["kernel"]
    bias = params["conv_out"]["bias"]
    for c, u, v in itertools.product(range(case.channels), range(p), range(p)):
        ours, theirs = (u * p + v) * case.channels + c, (c * p + u) * p + v
        np.testing.assert_array_equal(
            state["conv_in.weight"][:, theirs], np.einsum("abo->oab", kernels[0][:, :, ours])
        )
    for c, u, v in itertools.product(range(case.unet.out_channels), range(p), range(p)):
        ours, theirs = (u * p + v) * case.unet.out_channels + c, (c * p + u) * p + v
        np.testing.assert_array_equal(
            state["conv_out.weight"][theirs], np.einsum("abi->iab", kernels[1][..., ours])
        )
        assert state["conv_out.bias"][theirs] == bias[ours]


def test_weights_of_another_patch_size_are_refused():
    """24 channels of conv_in are six for 2×2 pixels, and no number of channels for 4×4."""
    case = Case(2, 6, None, False)
    state = unet_params_to_diffusers(case.params, case.unet)
    with pytest.raises(
        ValueError, match=r"conv_in.weight has shape \(8, 24, .*\(8, 16, .*patch_size"
    ):
        unet_params_from_diffusers(state, case.unet.clone(patch_size=4))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_equal_diffusers(libraries, case, tmp_path, caplog):
    torch, diffusers = libraries
    params = save(case, tmp_path / "ours")
    diffusers.utils.logging.enable_propagation()
    try:
        model = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours/unet")
    finally:
        diffusers.utils.logging.disable_propagation()
    assert not [
        record.message for record in caplog.records if "config attributes" in record.message
    ]
    x = np.random.default_rng(1).normal(size=(3, *case.shape)).astype(np.float32)
    t, labels = np.array([0, 5, 11]), None if case.classes is None else np.array([0, 2, 3])
    more = {} if labels is None else {"class_labels": torch.tensor(labels)}
    patches = torch.nn.functional.pixel_unshuffle(torch.tensor(x).permute(0, 3, 1, 2), case.patch)
    with torch.no_grad():
        truth = to_pixels(torch, model(patches, torch.tensor(t), **more).sample, case.patch)
    output = jax.jit(case.unet.apply)({"params": params}, x, t, labels)
    assert np.std(truth) > 0.2
    np.testing.assert_allclose(output, truth, atol=1e-5)
    # What diffusers saves again still has the patch size.
    model.save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    assert unet_from_diffusers_config(config) == (case.unet, case.shape)


def printed_code(capsys):
    """The indented lines that the program printed."""
    lines = capsys.readouterr().out.splitlines()
    return textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))


def execute(torch, code, changes):
    """The names that the code leaves, run with seed 0 and other numbers in it."""
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    scope: dict = {}
    torch.manual_seed(0)
    exec(compile(code, "printed", "exec"), scope)
    return scope


@pytest.mark.parametrize("case", [CASES[2], CASES[4]], ids=str)
def test_their_pipeline_samples_our_patches(libraries, case, tmp_path, capsys):
    """Ancestral sampling by the printed lines, from the same noise as ours."""
    torch, _ = libraries
    model = ImportedModel(case.unet, case.params, case.shape, case.process)
    write_run(ImportOptions(tmp_path / "run", data_name="digits"), model, {"library": "ours"})
    capsys.readouterr()
    convert(ToDiffusers(tmp_path / "run", out=tmp_path / "model"))
    images = execute(torch, printed_code(capsys), {"batch_size=16": "batch_size=2"})["images"]
    run = TrainedRun(RunOptions(tmp_path / "run"))
    torch.manual_seed(0)
    height, width, channels = case.shape
    p, steps = case.patch, PROCESS.num_timesteps
    draws = [torch.randn(2, channels * p * p, height // p, width // p) for _ in range(steps)]
    x_T, *noise = (to_pixels(torch, draw, p) for draw in draws)
    noise.append(np.zeros_like(x_T))  # none is drawn for the last step
    sampler = run.sampler(SamplerOptions("ancestral", num_steps=steps))
    x = jax.jit(lambda x_T, noise: dj.sample(sampler, run.denoiser(None), x_T, noise=noise))(
        jnp.asarray(x_T), jnp.asarray(np.stack(noise))
    )
    truth = images.permute(0, 2, 3, 1).numpy()
    assert np.std(truth) > 0.1
    np.testing.assert_allclose(np.clip(x / 2 + 0.5, 0, 1), truth, atol=2e-5)


def test_their_scheduler_takes_our_learned_variance_with_guidance(libraries, tmp_path):
    """The guided half and the variance of the conditional output, as the page says."""
    torch, diffusers = libraries
    case, steps, label, guidance = CASES[5], PROCESS.num_timesteps, 1, 2.0
    params = save(case, tmp_path)
    model = diffusers.UNet2DModel.from_pretrained(tmp_path, subfolder="unet")
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    scheduler.set_timesteps(steps)
    torch.manual_seed(0)
    half = case.channels * case.patch**2
    x = torch.randn(2, half, 4, 8)
    draws = [x]
    with torch.no_grad():
        for t in scheduler.timesteps:
            labels = (torch.full((2,), number) for number in (label, case.classes))
            conditional, plain = (model(x, t, class_labels=given).sample for given in labels)
            output = (plain + guidance * (conditional - plain))[:, :half]
            output, state = torch.cat([output, conditional[:, half:]], 1), torch.get_rng_state()
            x = scheduler.step(output, t, x).prev_sample
            torch.set_rng_state(state)
            draws.append(torch.randn(x.shape) if t > 0 else torch.zeros(x.shape))
    x_T, *noise = (to_pixels(torch, draw, case.patch) for draw in draws)

    def network(number):
        return lambda x, t: case.unet.apply({"params": params}, x, t, jnp.full(2, number))

    guided = dj.denoisers.classifier_free(
        network(label), network(case.classes), guidance, variance="learned_range"
    )
    denoise = dj.make_denoiser(SCHEDULE, guided, target="v", variance="learned_range", clip=True)
    sampler = dj.ancestral(SCHEDULE, variance="learned_range")
    ours = jax.jit(lambda x_T, noise: dj.sample(sampler, denoise, x_T, noise=noise))(
        jnp.asarray(x_T), jnp.asarray(np.stack(noise))
    )
    truth = to_pixels(torch, x, case.patch)
    assert np.std(truth) > 0.1
    np.testing.assert_allclose(ours, truth, atol=4e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of cifar10-small in diffusers."""
    folder = tmp_path_factory.mktemp("cifar10-small")
    convert(ToDiffusers(pretrained="cifar10-small", out=folder))
    return folder


@pytest.fixture(scope="module")
def cifar10_small():
    return TrainedRun(RunOptions(pretrained="cifar10-small"))


@pytest.mark.slow
def test_cifar10_small_goes_there_and_back(exported, cifar10_small, tmp_path):
    convert(FromDiffusers(tmp_path / "run", folder=exported))
    back = TrainedRun(RunOptions(tmp_path / "run"))
    assert same(back.params, cifar10_small.params)
    assert back.model.network == cifar10_small.model.network
    assert back.model.image_shape == (32, 32, 3)
    assert back.config.diffusion == cifar10_small.config.diffusion


@pytest.mark.slow
def test_cifar10_small_draws_the_same_images_in_diffusers(libraries, exported, cifar10_small):
    """A ship with guidance, by DDIM, in the lines that the program prints."""
    torch, _ = libraries
    changes = {"guidance = 0,": "guidance = 8,", "set_timesteps(50)": "set_timesteps(5)"}
    code = sampling_code(cifar10_small, exported)
    scope = execute(torch, code, changes | {"(16,": "(2,"})
    torch.manual_seed(0)
    x_T = to_pixels(torch, torch.randn(2, 12, 16, 16), 2)
    sampler = cifar10_small.sampler(SamplerOptions("ddim", num_steps=5, spacing="leading"))
    denoise = cifar10_small.denoiser(jnp.full(2, 8), guidance=2.0)
    x = jax.jit(lambda x_T: dj.sample(sampler, denoise, x_T))(jnp.asarray(x_T))
    truth = scope["images"].permute(0, 2, 3, 1).numpy()
    assert truth.shape == (2, 32, 32, 3) and np.std(truth) > 0.1
    np.testing.assert_allclose(np.clip(x / 2 + 0.5, 0, 1), truth, atol=1e-4)


def test_the_page_shows_the_printed_code(cifar10_small):
    page = (Path(__file__).parents[1] / "docs/howto/diffusers.md").read_text()
    assert f"```py\n{sampling_code(cifar10_small, Path('model'))}```\n" in page
