"""The sampling program: pictures from a trained run, needing nothing but its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from PIL import Image

from ddpm_jax import visualize
from ddpm_jax.generation import Generator
from ddpm_jax.runs import pictures
from ddpm_jax.runs.build import build_model, build_sampler
from ddpm_jax.runs.console import say
from ddpm_jax.runs.directory import RunDirectory, RunDirectoryError, write_json
from ddpm_jax.schedules import Spacing
from ddpm_jax.training import Checkpoints, DataParallel, choose_devices


@dataclass(frozen=True)
class SampleConfig:
    """Samples from a trained run."""

    run_dir: Path = Path("runs/digits")
    """The folder a training script was given as --run-dir."""
    out: Path | None = None
    """Where to write; None for a folder below RUN_DIR/generated named after the options."""
    count: int = 64
    """How many images."""
    batch_size: int = 64
    """Images at a time; changes speed and memory, not the images."""
    sampler: Literal["ancestral", "ddim"] = "ancestral"
    """ancestral: the paper's Algorithm 2; ddim: Song, Meng, Ermon 2020."""
    num_steps: int | None = None
    """Steps of the sampler; None for all T."""
    spacing: Spacing = "fractional"
    """How fewer steps than T are spread over them."""
    eta: float = 0.0
    """DDIM's share of noise, 0 (none) to 1 (as much as ancestral)."""
    seed: int = 0
    """Image i depends on this and on i alone."""
    checkpoint: int | None = None
    """Training step to sample at; None for the newest."""
    ema: bool = True
    """Use the averaged parameters, as the paper does, or the last ones."""
    format: Literal["npz", "png", "both", "none"] = "npz"
    """What to write beside grid and GIF: one samples.npz (uint8 [N, H, W, C]), a PNG per image, or
    both."""
    gif: bool = True
    """Also draw the way from noise to images, of the first 64."""
    num_devices: int | None = None
    """Devices to split each batch over; None for all. Changes speed, not the images."""


def sample(config: SampleConfig) -> None:
    """Samples and writes grid.png, denoising.gif, samples.npz or images/*.png, and sampling.json.

    Raises RunDirectoryError, ValueError or DamagedCheckpointError when the run cannot be sampled as
    asked.
    """
    if config.count < 1 or config.batch_size < 1:
        raise ValueError(
            f"--count and --batch-size must be at least 1, got {config.count} and "
            f"{config.batch_size}."
        )
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"--seed must be in 0..2³²-1, got {config.seed}.")
    if config.sampler == "ancestral" and config.eta:
        raise ValueError(
            f"--eta {config.eta} belongs to --sampler ddim; ancestral sampling has no such choice."
        )
    directory = RunDirectory(config.run_dir)
    train_config, facts = directory.read()
    model = build_model(train_config, tuple(facts["data"]["image_shape"]))
    sampler = build_sampler(
        model.schedule,
        config.sampler,
        num_steps=config.num_steps,
        spacing=config.spacing,
        eta=config.eta,
        variance=train_config.diffusion.variance,
    )
    devices = choose_devices(count=config.num_devices).devices
    like = DataParallel("jit", devices[:1]).placeholder(jax.eval_shape(model.init))
    with Checkpoints(directory.checkpoints, writable=False) as checkpoints:
        state = checkpoints.restore(like, config.checkpoint)
    if state is None:
        raise RunDirectoryError(
            f"{config.run_dir} has no checkpoint yet. Train for at least one checkpoint interval "
            "first."
        )
    step = int(state.step)
    steps = sampler.num_steps
    out = config.out or config.run_dir / "generated" / _name(config, steps, step)
    _prepare(out)
    say(
        f"{config.run_dir} at step {step:,}: {config.count} images, {config.sampler}, {steps} steps"
    )
    generator = Generator(sampler, model.denoiser_of, model.image_shape, devices=devices)
    made = pictures.draw_images(
        generator,
        state.ema_params if config.ema else state.params,
        "sampling",
        seed=config.seed,
        count=config.count,
        batch_size=config.batch_size,
        frames_of=min(64, config.count) if config.gif else 0,
    )
    visualize.save_grid(out / "grid.png", made.images[:400])
    written = [out / "grid.png"]
    if made.frames is not None:
        visualize.save_gif(out / "denoising.gif", made.frames)
        written.append(out / "denoising.gif")
    if config.format in ("npz", "both"):
        np.savez_compressed(out / "samples.npz", images=made.images)
        written.append(out / "samples.npz")
    if config.format in ("png", "both"):
        (out / "images").mkdir(exist_ok=True)
        # Left from an earlier call with more images, they would be counted among these.
        for old in (out / "images").glob("[0-9]" * 6 + ".png"):
            old.unlink()
        for i, image in enumerate(made.images):
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
                out / "images" / f"{i:06d}.png"
            )
        written.append(out / "images")
    write_json(
        out / "sampling.json",
        {
            "run": str(config.run_dir),
            "checkpoint_step": step,
            "ema": config.ema,
            "sampler": config.sampler,
            "num_steps": steps,
            "spacing": config.spacing,
            "eta": config.eta,
            "seed": config.seed,
            "count": config.count,
            "device": devices[0].device_kind,
            "jax": jax.__version__,
        },
    )
    for path in written:
        say(f"  {path}")


def _name(config: SampleConfig, num_steps: int, step: int) -> str:
    """A folder name that tells apart whatever changes the images."""
    parts = [config.sampler, f"{num_steps}-steps", f"seed{config.seed}"]
    if config.num_steps is not None:
        parts.append(config.spacing)
    if config.eta:
        parts.append(f"eta{config.eta:g}")
    if not config.ema:
        parts.append("no-ema")
    if config.checkpoint is not None:
        parts.append(f"at{step}")
    return "-".join(parts)


def _prepare(out: Path) -> None:
    """Makes the output folder before anything is computed; RunDirectoryError if it cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise RunDirectoryError(
            f"the output folder {out} cannot be written ({error.strerror}). Choose another with "
            "--out."
        ) from error
