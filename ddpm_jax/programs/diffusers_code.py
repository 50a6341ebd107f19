"""The Python code that samples an exported run in diffusers, with guidance or from patches."""

from __future__ import annotations

import json
from pathlib import Path

from ddpm_jax.programs.trained_run import TrainedRun

PATCHES = """\
import torch
from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained({folder})
x = pipeline(batch_size=16, num_inference_steps={steps}, output_type="np").images
images = torch.nn.functional.pixel_shuffle(torch.tensor(x).permute(0, 3, 1, 2), {patch})
"""
# DDIM of ours computes ε̂ from the clipped x̂_0; diffusers does so on request.
GUIDED = """\
import torch
from diffusers import DDIMScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained({folder}, subfolder="unet")
scheduler = DDIMScheduler.from_pretrained({folder}, subfolder="scheduler")
scheduler.set_timesteps({steps})
label, no_label, guidance = 0, {no_label}, {guidance}  # {about}
x = torch.randn(16, {channels}, {height}, {width}){patches}
with torch.no_grad():
    for t in scheduler.timesteps:
        labels = (torch.full((16,), number) for number in (label, no_label))
        conditional, plain = (unet(x, t, class_labels=given).sample{mean} for given in labels)
        output = plain + guidance * (conditional - plain)
        x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
images = {images}
"""
NAMES_SHOWN = 20


def sampling_code(run: TrainedRun, folder: Path) -> str:
    """Code that samples this run, of classes or of patches, exported to `folder`, in diffusers.

    Class 0 by DDIM, as ours with the spacing "leading"; without classes, by ancestral sampling.
    """
    height, width, channels = run.model.image_shape
    classes, diffusion = run.model.num_classes, run.config.diffusion
    patch, path = run.config.network.patch_size, json.dumps(str(folder), ensure_ascii=False)
    if classes is None:
        return PATCHES.format(folder=path, patch=patch, steps=diffusion.num_timesteps)
    channels, images = channels * patch**2, "(x.clamp(-1, 1) + 1) / 2"
    if patch > 1:
        images = f"torch.nn.functional.pixel_shuffle({images}, {patch})"
    names = run.facts["data"].get("class_names") or []
    about = f"labels 0 to {classes - 1}"
    if names:
        more = ", …" if len(names) > NAMES_SHOWN else ""
        about += f": {', '.join(names[:NAMES_SHOWN])}{more}"
    untrained = diffusion.label_dropout == 0
    if untrained:
        about += "; guidance 1, because no label was dropped in training"
    return GUIDED.format(
        folder=path,
        steps=min(50, diffusion.num_timesteps),
        no_label=classes,
        guidance=1.0 if untrained else 2.0,
        about=" ".join(about.split()),
        channels=channels,
        height=height // patch,
        width=width // patch,
        patches="" if patch == 1 else f"  # patches of {patch}×{patch} pixels",
        images=images,
        # The other half is the learned variance, which DDIM does not use.
        mean=f"[:, :{channels}]" if diffusion.variance == "learned_range" else "",
    )
