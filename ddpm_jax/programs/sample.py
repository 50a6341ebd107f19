"""The sampling program: pictures from a trained run, of which it needs only the folder."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ddpm_jax.data.conditions import written
from ddpm_jax.data.labels import as_label
from ddpm_jax.denoisers.guidance import guidance_interval
from ddpm_jax.denoisers.thresholds import Clip, dynamic_threshold
from ddpm_jax.devices import processes
from ddpm_jax.files import write_json
from ddpm_jax.programs import shards
from ddpm_jax.programs.averages import average_name
from ddpm_jax.programs.buckets import taken_in
from ddpm_jax.programs.conditions import read_conditions
from ddpm_jax.programs.config import DistributedConfig, SamplerOptions, sampler_options
from ddpm_jax.programs.config_values import check_least, with_types
from ddpm_jax.programs.console import say
from ddpm_jax.programs.outputs import claim
from ddpm_jax.programs.pictures import need_pictures, save_film, save_sheet
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun

GRID = 400
"""The largest number of images in the grid."""
FILES = ("cond", "context", "concat")
"""The options that name files of conditions."""
WRITTEN = ("grid.png", "denoising.gif", "samples.npz", "images")
"""What is written, beside sampling.json."""


@dataclass(frozen=True)
class SampleConfig(SamplerOptions, RunOptions):
    """Samples from a trained run."""

    count: int = 64
    """Number of images."""
    batch_size: int = 64
    """Images at a time; changes speed and memory, not the images."""
    threshold: Literal["clip", "dynamic", "none"] | None = None
    """Treatment of x̂_0 outside [-1, 1]; None for the run's own setting. dynamic: clip to
    the 99.5th percentile of |x̂_0| and divide by it, for strong guidance."""
    label: str | int | None = None
    """Number or name of the class to sample, for a class-conditional run; None for all classes in
    turn."""
    cond: Path | None = None
    """An .npy of vectors [M, D] that condition the images, in turn; None for no vector."""
    context: Path | None = None
    """An .npy of tokens [M, L, D] that condition the images, in turn, or an .npz of `context` and
    `context_mask` [M, L]; None for no tokens."""
    concat: Path | None = None
    """An .npy of arrays [M, H, W, C], of the images' size, that condition the images, in turn; None
    for zeros."""
    guidance: float = 1.0
    """Classifier-free guidance: 1 for none, more for typical images, 0 for unlabelled ones."""
    guidance_interval: tuple[float, float] | None = None
    """Guide only where low < σ ≤ high, with σ = √((1-ᾱ)/ᾱ), such as 0.28 2.9 (Kynkäänniemi et al.
    2024); None for every step."""
    guidance_rescale: float = 0.0
    """φ: how far to rescale guided outputs to the standard deviation of conditional ones, from 0
    (not at all) to 1 (fully); Lin et al. (2023) use 0.7."""
    format: Literal["npz", "png", "both", "none"] = "npz"
    """Output besides grid and GIF: one samples.npz (uint8 [N, H, W, C]), a PNG per image, or both.
    Signals and volumes have no PNG."""
    gif: bool = True
    """Also write a GIF that shows the first 64 images during sampling."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)


def sample(config: SampleConfig) -> None:
    """Samples and writes grid.png, denoising.gif, samples.npz or images/*.png, and sampling.json.

    Images are kept in `shards/` during sampling: after a kill the same command continues.

    Raises RunDirectoryError, ValueError or DamagedCheckpointError if the run cannot be sampled with
    these options.
    """
    config = with_types("sample", config, SampleConfig)
    check_least(config, 1, "count", "batch_size")
    if config.guidance == 1.0 and (config.guidance_interval or config.guidance_rescale):
        raise ValueError(
            "--guidance-interval and --guidance-rescale change guided samples, and --guidance 1, "
            "the default, guides nothing. Give --guidance 2, say, or leave them out."
        )
    processes.connect(**dataclasses.asdict(config.distributed))
    run = processes.everywhere(lambda: TrainedRun(config))
    run.labels(config.count, config.label)  # refuses a class that the run does not have
    if config.format in ("png", "both"):
        need_pictures(run, f"--format {config.format}")
    files = {name: getattr(config, name) for name in FILES}
    shapes = run.model.condition_shapes
    for name, shape in shapes.items():
        if files[name] is None:
            given = f"--{name} FILE.npy {written(shape, 'M')}"
            say(f"without {given}, images are sampled without this condition")
    conditions = read_conditions(files, shapes)
    sampler = run.sampler(config)
    clips: dict[str, Clip] = {"clip": True, "dynamic": dynamic_threshold(), "none": False}
    clip = None if config.threshold is None else clips[config.threshold]
    frames_of = min(64, config.count, config.batch_size) if config.gif else 0
    scale, rescale = config.guidance, config.guidance_rescale
    if config.guidance_interval is not None:
        scale = guidance_interval(run.schedule, scale, *config.guidance_interval)
    generator = run.generator(sampler, guidance=scale, clip=clip, rescale=rescale)
    steps = sampler.num_steps
    out = run.folder(f"generated/{_name(config, steps, run.step)}")
    say(f"{run.title}: {config.count} images, {config.sampler}, {steps} steps")
    plan = _plan(config, run, steps)
    for name, given in conditions.items():
        plan[f"{name}_sha256"] = hashlib.sha256(given.tobytes()).hexdigest()
    processes.on_leader(lambda: _refuse_foreign(out, _written(config)))
    processes.on_leader(lambda: shards.remember_plan(out, plan))
    shards.sample_shards(
        run,
        generator,
        out,
        count=config.count,
        batch_size=config.batch_size,
        label=config.label,
        conditions=conditions,
        frames_of=frames_of,
        on_frames=lambda frames: save_film(out / "denoising.gif", frames),
    )
    processes.on_leader(lambda: _write(config, out, plan, run.model.image_shape))


def _written(config: SampleConfig) -> list[str]:
    """Those of WRITTEN that these options ask for."""
    asked = (True, config.gif, config.format in ("npz", "both"), config.format in ("png", "both"))
    return [name for name, its in zip(WRITTEN, asked, strict=True) if its]


def _refuse_foreign(out: Path, written: Sequence[str] = WRITTEN) -> None:
    """Raises RunDirectoryError for a folder with files of these names that no sampling wrote.

    Says which of its own earlier results are replaced; others stay.
    """
    if not taken_in(out, ("plan.json",)):  # else an interrupted call goes on
        ours = bool(taken_in(out, ("sampling.json",)))
        claim(out, taken_in(out, written if ours else WRITTEN), ours=ours)


def _write(
    config: SampleConfig, out: Path, plan: dict[str, Any], image_shape: tuple[int, ...]
) -> None:
    """Turns the shards into the requested files, with one shard in memory at a time."""

    def stored() -> Iterator[np.ndarray]:
        return shards.read_shards(out, config.count, image_shape)

    shown: list[np.ndarray] = []
    for images in stored():
        shown.append(images[: GRID - sum(map(len, shown))])
        if sum(map(len, shown)) >= min(GRID, config.count):
            break
    save_sheet(out / "grid.png", np.concatenate(shown))
    written = [out / "grid.png"]
    # There is none if an interrupted call without it drew the first images.
    if config.gif and (out / "denoising.gif").exists():
        written.append(out / "denoising.gif")
    if config.format in ("npz", "both"):
        shards.join_shards(stored(), (config.count, *image_shape), out / "samples.npz")
        written.append(out / "samples.npz")
    if config.format in ("png", "both"):
        (out / "images").mkdir(exist_ok=True)
        number = 0
        for images in stored():
            for image in images:
                Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
                    out / "images" / f"{number:06d}.png"
                )
                number += 1
        # Left by an earlier call with more images, these would be counted among them.
        for old in (out / "images").glob("[0-9]" * 6 + ".png"):
            if int(old.stem) >= config.count:
                old.unlink()
        written.append(out / "images")
    write_json(out / "sampling.json", {**plan, "count": config.count})
    shards.remove_shards(out)
    for path in written:
        say(f"  {path}")


def _plan(config: SampleConfig, run: TrainedRun, steps: int) -> dict[str, Any]:
    """Everything that image i depends on, which excludes the number of images."""
    guided = {name: getattr(config, name) for name in ("guidance_interval", "guidance_rescale")}
    return {
        **run.provenance(),
        **sampler_options(config),
        **{name: getattr(config, name) for name in ("threshold", "guidance")},
        "label": as_label(config.label),
        **{name: value for name, value in guided.items() if value},
        "num_steps": steps,
    }


def _name(config: SampleConfig, num_steps: int, step: int) -> str:
    """A folder name that differs between settings that change the images."""
    parts = [config.sampler, f"{num_steps}-steps", f"seed{config.seed}"]
    if config.num_steps is not None:
        parts.append(config.spacing)
    for name in ("eta", "churn"):
        if getattr(config, name):
            parts.append(f"{name}{getattr(config, name):g}")
    if config.sampler == "annealed_langevin":
        parts.append(f"{config.langevin_steps}x{config.langevin_rate:g}")
    parts += [str(part) for part in (config.variance, config.threshold) if part is not None]
    if config.label is not None:
        parts.append(re.sub(r"[^\w.-]+", "_", f"label{config.label}"))
    for name in FILES:
        path = getattr(config, name)
        if path is not None:
            parts.append(re.sub(r"[^\w.-]+", "_", f"{name}-{path.stem}"))
    if config.guidance != 1.0:
        parts.append(f"guidance{config.guidance:g}")
    if config.guidance_interval is not None:
        parts.append("from{:g}to{:g}".format(*config.guidance_interval))
    if config.guidance_rescale:
        parts.append(f"rescale{config.guidance_rescale:g}")
    average = average_name(config)
    if average != "ema":
        parts.append("no-ema" if average == "last" else average)
    if config.checkpoint is not None:
        parts.append(f"at{step}")
    return "-".join(parts)
