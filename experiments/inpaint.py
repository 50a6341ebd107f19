"""Inpainting with a model that was trained on whole images only.

    ddpm-jax inpaint --run-dir runs/digits --mask bottom
    ddpm-jax inpaint --run-dir runs/digits --mask my_mask.png --images 3 14 15

Song et al. 2020 (arXiv 2011.13456, §I.2), with the resampling of RePaint (Lugmayr et al. 2022,
2201.09865). completions.png shows each image, its known part, and several completions. Expect the
known part to be kept exactly, and completions that differ where it leaves a choice: ideally as much
from one another as from the truth. With --num-resamples 1 they fit the known part less well.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ddpm_jax import visualize
from ddpm_jax.data import ImageDataset
from ddpm_jax.evaluation import rms_difference, rms_pairwise
from ddpm_jax.files import user_path, write_json
from ddpm_jax.forward.pixels import from_pixels, to_pixels
from ddpm_jax.keys import example_keys, make_key
from ddpm_jax.programs.chunks import common_chunk
from ddpm_jax.programs.config import SamplerOptions
from ddpm_jax.programs.config_values import check_least, to_json
from ddpm_jax.programs.console import bar, run_program, say
from ddpm_jax.programs.generator import ReverseProcess
from ddpm_jax.programs.pictures import need_pictures
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from ddpm_jax.samplers import Sampler, initial_noise, inpaint

MASKS = ("left", "right", "top", "bottom", "centre", "random")


@dataclass(frozen=True)
class InpaintConfig(SamplerOptions, RunOptions):
    """Completes partly hidden images with a trained model."""

    mask: str = "bottom"
    """What is hidden: left, right, top, bottom (one half), centre (half the height and width),
    random (half of all pixels), or a PNG file of the images' size, white where the image is
    known."""
    count: int = 8
    """Number of held-out images, chosen by the seed."""
    images: tuple[int, ...] | None = None
    """Held-out images by index, instead of --count."""
    completions: int = 6
    """Completions per image."""
    num_resamples: int = 5
    """RePaint's U: how often each step is taken; more make the new part fit the known one."""
    label: str | int | None = None
    """Number or name of the class of all completions, for a class-conditional run; None for each
    image's own."""
    batch_size: int = 64
    """Images at a time; changes speed and memory, not the images."""


class InpaintResult(NamedTuple):
    """What the study made.

    images       uint8 [N, H, W, C], the held-out images
    completions  uint8 [N, K, H, W, C]
    numbers      see `measure`
    files        what was written
    """

    images: np.ndarray
    completions: np.ndarray
    numbers: dict[str, float]
    files: list[Path]


def study_inpainting(config: InpaintConfig) -> InpaintResult:
    """Completes held-out images; writes completions.png, completions.npz and inpaint.json.

    Raises ValueError for invalid options, RunDirectoryError or DamagedCheckpointError for a run
    that cannot be read.
    """
    _check(config)
    run = TrainedRun(config)
    need_pictures(run, "inpaint")
    shape = run.model.image_shape
    known = read_mask(config.mask, shape, config.seed)
    data = run.need_heldout(1)
    chosen = _chosen_images(config, data)
    labels = run.labels(len(chosen), config.label)
    if labels is not None and config.label is None:
        labels = data.labels[chosen]
    sampler = run.sampler(config)
    baseline = np.mean(run.train_data.images, axis=0, dtype=np.float64)
    out = run.study_folder("inpaint", ["completions.png", "completions.npz"])
    say(
        f"{run.title}: {len(chosen)} images, {config.completions} "
        f"completions each, {config.sampler}, {sampler.num_steps} steps × {config.num_resamples}"
    )

    def inpainting(x_0: Any) -> Sampler:
        return inpaint(sampler, x_0, jnp.asarray(known), num_resamples=config.num_resamples)

    reverse = ReverseProcess(
        run.params,
        inpainting,
        run.model.guided(1.0),
        devices=run.devices,
        chunk=common_chunk([sampler.num_steps]),
        batch_size=config.batch_size,
    )
    truth = data.images[chosen]
    rows = np.repeat(np.arange(len(chosen)), config.completions)
    key = make_key(config.seed)
    streams = np.arange(len(rows))
    work = len(rows) * sampler.num_steps * config.num_resamples
    with bar(work, "inpainting", unit="img·step") as progress:
        filled = reverse(
            key,
            np.asarray(initial_noise(example_keys(key, streams), shape)),
            np.arange(sampler.num_steps)[::-1],
            streams,
            labels=None if labels is None else labels[rows],
            condition=np.asarray(from_pixels(truth))[rows],
            on_progress=lambda done: progress.update(done * config.num_resamples),
        ).x
    completed = np.asarray(to_pixels(filled)).reshape(len(chosen), config.completions, *shape)
    numbers = measure(truth, completed, known, baseline)

    files = [out / "completions.png", out / "completions.npz", out / "inpaint.json"]
    _save_rows(files[0], truth, completed, known[..., 0], chosen, numbers)
    np.savez_compressed(files[1], images=truth, completions=completed, known=known[..., 0])
    write_json(
        files[2],
        {
            **run.provenance(),
            "options": to_json(config),
            "num_steps": sampler.num_steps,
            "images": chosen.tolist(),
            "share_known": float(known.mean()),
            **numbers,
        },
    )
    _print_table(numbers)
    for path in files:
        say(f"  {path}")
    return InpaintResult(truth, completed, numbers, files)


def _save_rows(path: Path, truth, completed, known, chosen, numbers: dict[str, float]) -> None:
    """A row per image: the image, its known part with the rest hatched, and its completions."""
    tiles = np.concatenate([truth[:, None], truth[:, None], completed], axis=1)
    hidden = np.zeros(tiles.shape[:-1], bool)
    hidden[:, 1] = ~known
    visualize.save_rows(
        path,
        tiles,
        row_labels=[f"held-out {i}" for i in chosen],
        column_labels=[
            "image",
            "known",
            *(f"completion {k + 1}" for k in range(len(tiles[0]) - 2)),
        ],
        title=f"Completions are {numbers['rms_to_truth']:.0f} grey levels from the truth and "
        f"{numbers['rms_between_completions']:.0f} from one another (RMS, hidden part)",
        hidden=hidden,
    )


def measure(truth, completed, known, baseline) -> dict[str, float]:
    """Errors of completions [N, K, H, W, C] of truth [N, H, W, C], in grey levels of 255.

    `known` [H, W, 1] is bool, `baseline` [H, W, C] the mean of the training images. Completions
    drawn from the data's conditional distribution would differ from the truth as much as from one
    another.
    """
    hidden, first = ~known, truth[:, None]
    shown = np.broadcast_to(known, completed.shape)
    gaps = np.abs(completed.astype(int) - first)[shown]
    return {
        "largest_error_where_known": float(gaps.max()),
        "rms_to_truth": rms_difference(completed, first, hidden),
        "rms_between_completions": rms_pairwise(completed, hidden),
        "rms_of_mean_completion_to_truth": rms_difference(completed.mean(axis=1), truth, hidden),
        "rms_of_training_mean_to_truth": rms_difference(truth, baseline, hidden),
    }


def read_mask(mask: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Makes or reads a mask, bool [H, W, 1], True where the image is known.

    Raises ValueError for an unknown name, a file of another size, and a mask that hides nothing or
    everything; RunDirectoryError for a file that cannot be read.
    """
    height, width = shape[:2]
    y, x = np.mgrid[:height, :width]
    hidden = {
        "left": x < width // 2,
        "right": x >= width - width // 2,
        "top": y < height // 2,
        "bottom": y >= height - height // 2,
        "centre": (abs(2 * y + 1 - height) <= height // 2) & (abs(2 * x + 1 - width) <= width // 2),
        "random": np.random.default_rng(seed).permutation(height * width).reshape(height, width)
        < height * width // 2,
    }
    known = ~hidden[mask] if mask in MASKS else _read_png_mask(user_path(mask), (height, width))
    if known.all() or not known.any():
        what = "nothing" if known.all() else "everything"
        raise ValueError(f"--mask {mask} hides {what} of images {height}×{width}.")
    return known[..., None]


def _read_png_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    if path.suffix.lower() != ".png":
        raise ValueError(f"--mask must be one of {', '.join(MASKS)}, or a PNG file; got {path}.")
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.size[::-1] != size:
                raise ValueError(
                    f"--mask {path} is {picture.size[1]}×{picture.size[0]} (height × width), and "
                    f"the images of this run are {size[0]}×{size[1]}."
                )
            return np.asarray(picture.convert("L")) > 127
    except (OSError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise RunDirectoryError(f"--mask {path} could not be read as PNG: {error}.") from error


def _chosen_images(config: InpaintConfig, data: ImageDataset) -> np.ndarray:
    size = len(data.images)
    if config.images is None:
        if config.count > size:
            raise ValueError(f"--count {config.count} exceeds the {size} held-out images.")
        return np.random.default_rng(config.seed).permutation(size)[: config.count]
    for index in config.images:
        if not 0 <= index < size:
            raise ValueError(
                f"--images must be indices from 0 of the {size} images of {data.name}; got {index}."
            )
    return np.array(config.images)


def _check(config: InpaintConfig) -> None:
    check_least(config, 1, "count", "num_resamples", "batch_size")
    check_least(config, 2, "completions")
    if config.images == ():
        raise ValueError("--images needs at least one index.")


def _print_table(numbers: dict[str, float]) -> None:
    names = {
        "largest_error_where_known": "known part, largest difference",
        "rms_to_truth": "hidden part, completion to truth (rms)",
        "rms_between_completions": "hidden part, completion to completion (rms)",
        "rms_of_mean_completion_to_truth": "hidden part, mean completion to truth (rms)",
        "rms_of_training_mean_to_truth": "hidden part, mean training image to truth (rms)",
    }
    say("")
    say("grey levels of 255")
    for field, name in names.items():
        say(f"{name:48} {numbers[field]:7.1f}")
    say("")


if __name__ == "__main__":
    run_program(study_inpainting, InpaintConfig(), __doc__)
