"""The Python code that samples an exported class-conditional run in diffusers, with guidance."""

from __future__ import annotations

import json
from pathlib import Path

from ddpm_jax.programs.trained_run import TrainedRun

# DDIM of ours computes ε̂ from the clipped x̂_0; diffusers does so on request.
CODE = """\
import torch
from diffusers import DDIMScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained({folder}, subfolder="unet")
scheduler = DDIMScheduler.from_pretrained({folder}, subfolder="scheduler")
scheduler.set_timesteps({steps})
label, no_label, guidance = 0, {no_label}, {guidance}  # {about}
x = torch.randn(16, {channels}, {height}, {width})
with torch.no_grad():
    for t in scheduler.timesteps:
        labels = (torch.full((16,), number) for number in (label, no_label))
        conditional, plain = (unet(x, t, class_labels=given).sample{mean} for given in labels)
        output = plain + guidance * (conditional - plain)
        x = scheduler.step(output, t, x, use_clipped_model_output=True).prev_sample
images = (x.clamp(-1, 1) + 1) / 2
"""
NAMES_SHOWN = 20


def guided_sampling_code(run: TrainedRun, folder: Path) -> str:
    """Code that samples class 0 of this run, exported to `folder`, by DDIM in diffusers.

    The samples are those of our DDIM with the spacing "leading", up to rounding.
    """
    height, width, channels = run.model.image_shape
    classes, diffusion = run.model.num_classes, run.config.diffusion
    assert classes is not None
    names = run.facts["data"].get("class_names") or []
    about = f"labels 0 to {classes - 1}"
    if names:
        more = ", …" if len(names) > NAMES_SHOWN else ""
        about += f": {', '.join(names[:NAMES_SHOWN])}{more}"
    untrained = diffusion.label_dropout == 0
    if untrained:
        about += "; guidance 1, because no label was dropped in training"
    return CODE.format(
        folder=json.dumps(str(folder), ensure_ascii=False),
        steps=min(50, diffusion.num_timesteps),
        no_label=classes,
        guidance=1.0 if untrained else 2.0,
        about=" ".join(about.split()),
        channels=channels,
        height=height,
        width=width,
        # The other half is the learned variance, which DDIM does not use.
        mean=f"[:, :{channels}]" if diffusion.variance == "learned_range" else "",
    )
