"""The pictures of a run: samples behind a progress bar, and the loss curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_jax import visualize
from ddpm_jax.programs.console import bar
from ddpm_jax.programs.generator import Generated, Generator
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.training.logs import read_jsonl
from ddpm_jax.types import PyTree

if TYPE_CHECKING:
    from ddpm_jax.programs.trained_run import TrainedRun


def draw_images(
    generator: Generator,
    params: PyTree,
    title: str = "sampling",
    *,
    count: int,
    leave: bool = True,
    **options: Any,
) -> Generated:
    """Generates images behind a progress bar; `options` are those of calling a `Generator`."""
    with bar(count * generator.num_steps, title, unit="img·step", leave=leave) as progress:
        return generator(params, count=count, on_progress=progress.update, **options)


def are_pictures(image_shape: tuple[int, ...]) -> bool:
    """Whether arrays of this shape are grey or RGB images, rather than signals or volumes."""
    return len(image_shape) == 3 and image_shape[-1] in (1, 3)


def need_pictures(run: TrainedRun, call: str) -> None:
    """Raises RunDirectoryError, which names the call, unless the run makes grey or RGB images."""
    if not are_pictures(run.model.image_shape):
        raise RunDirectoryError(
            f"{call} draws images [H, W, C] with C 1 or 3, and {run.name} makes arrays of shape "
            f"{list(run.model.image_shape)}. `ddpm-jax sample --format npz` and `ddpm-jax "
            "likelihood` accept such a run."
        )


def save_sheet(path: Path, samples: np.ndarray) -> None:
    """Writes a sheet of samples [N, ..., C]; signals and volumes are drawn as images."""
    visualize.save_grid(path, visualize.as_images(samples, samples.ndim - 2))


def save_film(path: Path, frames: np.ndarray) -> None:
    """Writes a GIF of the frames [F, N, ..., C]; signals and volumes are drawn as images."""
    flat = frames.reshape(-1, *frames.shape[2:])
    images = visualize.as_images(flat, flat.ndim - 2)
    visualize.save_gif(path, images.reshape(*frames.shape[:2], *images.shape[1:]))


def save_loss_curve(log: Path, path: Path, title: str) -> None:
    """Draws the loss curve of a run's log; nothing if the log has no steps yet."""
    records = read_jsonl(log)
    train, heldout = (
        [(r["step"], r["loss"]) for r in records if r.get("kind") == kind]
        for kind in ("train", "heldout")
    )
    if not train:
        return
    steps, losses = np.asarray(train).T
    visualize.save_loss_curve(
        path, steps, losses, heldout=tuple(np.asarray(heldout).T) if heldout else None, title=title
    )
