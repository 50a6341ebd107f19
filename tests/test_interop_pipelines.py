"""Models exported from here run in diffusers' own pipeline, and theirs here, to the same images."""

import functools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.interop import ImportedModel, Process, load_diffusers, save_diffusers
from ddpm_jax.nn import UNet
from ddpm_jax.programs.build import build_schedule
from ddpm_jax.programs.config import DiffusionConfig, SamplerOptions
from ddpm_jax.programs.convert import ImportOptions, ToDiffusers, convert, write_run
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from tests.reference_unet import random_params

BATCH, STEPS = 3, 12
SHAPE = (8, 8, 2)
UNET = UNet(
    channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_groups=4,
    dropout=0.0,
    out_channels=2,
)
PROCESSES = {
    "ε, fixed_large, clip": Process("linear", 40, 2e-3, 0.4, False, "epsilon", "fixed_large", True),
    "v, learned_range": Process("cosine", 40, 2e-3, 0.4, False, "v", "learned_range", False),
    "x_0, β as a table": Process("warmup50", 40, 2e-3, 0.4, False, "x_0", "fixed_small", True),
}


def images_of(pipeline, torch):
    """What the pipeline makes of seed 0, on NHWC: [B, *SHAPE] in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    made = pipeline(BATCH, generator, num_inference_steps=STEPS, output_type="np")
    return made.images


def noise_of(torch):
    """The start and the noise that seed 0 gives the pipeline, in the order it asks: NHWC.

    No noise is drawn for the last step.
    """
    generator = torch.Generator().manual_seed(0)
    height, width, channels = SHAPE
    draws = [torch.randn((BATCH, channels, height, width), generator=generator)]
    draws += [torch.randn(draws[0].shape, generator=generator) for _ in range(STEPS - 1)]
    drawn = np.stack([draw.permute(0, 2, 3, 1).numpy() for draw in draws])
    return drawn[0], np.concatenate([drawn[1:], np.zeros_like(drawn[:1])])


def ours(unet, process, steps, params, x_T, noise):
    """Our ancestral sampler's x_0 over the pipeline's grid."""
    schedule = build_schedule(DiffusionConfig(*process[:4], target=process.target))
    grid = dj.respace(schedule, steps)
    denoise = dj.make_denoiser(
        schedule,
        lambda x, t: unet.apply({"params": params}, x, t),
        target=process.target,
        variance=process.variance,
        clip=process.clip,
    )
    sampler = dj.ancestral(grid, variance=process.variance)
    run = jax.jit(functools.partial(dj.sample, sampler, denoise))
    return run(jnp.asarray(x_T), noise=jnp.asarray(noise))


def check_same_images(torch, pipeline, unet, process, params):
    truth = images_of(pipeline, torch)
    assert np.std(truth) > 0.1
    steps = np.sort(pipeline.scheduler.timesteps.numpy())
    x_0 = ours(unet, process, steps, params, *noise_of(torch))
    np.testing.assert_allclose(np.clip(x_0 / 2 + 0.5, 0, 1), truth, atol=2e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_our_models_run_in_their_pipeline(libraries, name, tmp_path):
    torch, diffusers = libraries
    process = PROCESSES[name]
    unet = UNET.clone(out_channels=4) if process.variance == "learned_range" else UNET
    params = random_params(unet, np.zeros((1, *SHAPE), np.float32), 0)
    schedule = build_schedule(DiffusionConfig(*process[:4], target=process.target))
    save_diffusers(tmp_path, unet, params, SHAPE, process, schedule)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert type(pipeline.scheduler).__name__ == "DDPMScheduler"
    check_same_images(torch, pipeline, unet, process, params)


@pytest.mark.parametrize("name", PROCESSES)
def test_our_classes_are_sampled_in_diffusers(libraries, name, tmp_path, capsys):
    """The printed lines make our guided DDIM samples from the same noise; so does "no label"."""
    torch, diffusers = libraries
    process, classes = PROCESSES[name], 3
    channels = SHAPE[-1] * (2 if process.variance == "learned_range" else 1)
    unet = UNET.clone(num_classes=classes, out_channels=channels)
    params = random_params(unet, np.zeros((1, *SHAPE), np.float32), 0)
    write_run(
        ImportOptions(tmp_path / "run"),
        ImportedModel(unet, params, SHAPE, process),
        {"library": "ours"},
    )
    convert(ToDiffusers(tmp_path / "run", out=tmp_path / "model"))
    lines = capsys.readouterr().out.splitlines()
    code = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))
    run = TrainedRun(RunOptions(tmp_path / "run"))

    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "model", subfolder="unet")
    labels, t = np.arange(classes + 1), np.array([0, 7, 20, 39])
    x = np.random.default_rng(1).normal(size=(classes + 1, *SHAPE)).astype(np.float32)
    with torch.no_grad():
        nchw = torch.as_tensor(x).permute(0, 3, 1, 2)
        more = {"class_labels": torch.as_tensor(labels)}
        truth = theirs(nchw, torch.as_tensor(t), **more).sample.permute(0, 2, 3, 1).numpy()
    output = np.asarray(run.apply_fn(jnp.asarray(x), jnp.asarray(t), label=jnp.asarray(labels)))
    assert np.std(truth) > 0.2
    np.testing.assert_allclose(output, truth, atol=1e-5)
    # Without labels, ours means the last row.
    last = run.apply_fn(jnp.asarray(x[-1:]), jnp.asarray(t[-1:]))
    np.testing.assert_allclose(last, truth[-1:], atol=1e-5)

    torch.manual_seed(0)
    x_T = torch.randn(16, *SHAPE[-1:], *SHAPE[:-1]).permute(0, 2, 3, 1).numpy()
    sampler = run.sampler(SamplerOptions("ddim", num_steps=40, spacing="leading"))
    draw = jax.jit(
        lambda label: dj.sample(sampler, run.denoiser(label, guidance=2.0), jnp.asarray(x_T))
    )
    made = []
    for label in labels:
        chosen = code.replace("guidance = 0, ", f"guidance = {label}, ")
        assert label == 0 or chosen != code
        scope: dict = {}
        torch.manual_seed(0)
        exec(compile(chosen, "printed", "exec"), scope)
        theirs_x = scope["x"].permute(0, 2, 3, 1).numpy()
        made.append(theirs_x)
        ours_x = np.asarray(draw(jnp.full(16, label)))
        scale = max(1.0, float(np.abs(theirs_x).max()))
        np.testing.assert_allclose(ours_x / scale, theirs_x / scale, atol=1e-4)
        assert scope["images"].shape == (16, *SHAPE[-1:], *SHAPE[:-1])
        assert 0 <= scope["images"].min() and scope["images"].max() <= 1
    assert all(np.abs(made[0] - other).max() > 1e-2 for other in made[1:])


def test_their_pipelines_run_here(libraries, tmp_path):
    """A pipeline that they built and saved, with padding around and weights of their drawing."""
    torch, diffusers = libraries
    torch.manual_seed(3)
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        down_block_types=("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        norm_eps=1e-6,
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_head_dim=None,
        dropout=0.1,
    )
    scheduler = diffusers.DDPMScheduler(
        40, 2e-3, 0.4, "scaled_linear", prediction_type="v_prediction", clip_sample=True
    )
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(tmp_path)
    read = load_diffusers(tmp_path)
    assert read.unet == UNET.clone(
        attention_resolutions=(8,), dropout=0.1, downsample_padding="symmetric"
    )
    assert read.process == Process("quadratic", 40, 2e-3, 0.4, False, "v", "fixed_small", True)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path, local_files_only=True)
    check_same_images(torch, pipeline, read.unet, read.process, read.params)


def test_what_they_save_by_default_is_read(libraries, tmp_path):
    """A UNet2DModel with its own defaults; a pickle of it is none to read."""
    torch, diffusers = libraries
    torch.manual_seed(3)
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    pipeline = diffusers.DDPMPipeline(model, diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "a")
    read = load_diffusers(tmp_path / "a")
    assert (read.unet.head_channels, read.unet.embedding_order) == (8, "cos_sin")
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path / "a", local_files_only=True)
    check_same_images(torch, loaded, read.unet, read.process, read.params)
    pipeline.save_pretrained(tmp_path / "b", safe_serialization=False)
    with pytest.raises(ValueError, match="diffusion_pytorch_model.bin is a pickle"):
        load_diffusers(tmp_path / "b")


def test_a_denoiser_of_theirs_gives_the_same_x_0_hat(libraries, tmp_path):
    """Along their trajectory, step by step, so that no error hides behind another."""
    torch, diffusers = libraries
    process = PROCESSES["ε, fixed_large, clip"]._replace(clip=False)
    params = random_params(UNET, np.zeros((1, *SHAPE), np.float32), 0)
    schedule = build_schedule(DiffusionConfig(*process[:4]))
    save_diffusers(tmp_path, UNET, params, SHAPE, process, schedule)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path, local_files_only=True)
    pipeline.scheduler.set_timesteps(STEPS)
    read = load_diffusers(tmp_path)
    denoise = jax.jit(
        dj.make_denoiser(
            schedule, lambda x, t: read.unet.apply({"params": read.params}, x, t), clip=False
        )
    )
    x = noise_of(torch)[0]
    for t in pipeline.scheduler.timesteps:
        x_torch = torch.tensor(x).permute(0, 3, 1, 2)
        with torch.no_grad():
            output = pipeline.unet(x_torch, t).sample
        step = pipeline.scheduler.step(output, t, x_torch)
        x_0_hat = denoise(jnp.asarray(x), jnp.full(BATCH, int(t)))
        truth = step.pred_original_sample.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(x_0_hat, truth, atol=1e-5 * np.abs(truth).max())
        x = step.prev_sample.permute(0, 2, 3, 1).numpy()
