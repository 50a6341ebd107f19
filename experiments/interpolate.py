"""Interpolates between images, by DDPM's stochastic and DDIM's deterministic decoding.

    ddpm-jax interpolate --run-dir runs/digits
    ddpm-jax interpolate --run-dir runs/digits --first 0 40 --second 100 200

Figure 8 of Ho et al. 2020 (arXiv 2006.11239, §4.4) and Figure 6 of Song, Meng, Ermon 2020
(2010.02502, §5.3). One picture per pair; its rows are a cross-fade of the pixels, x_t mixed after
few and after many steps and decoded by ancestral sampling, and DDIM latents mixed along the sphere.
Expect few steps to superpose the two images and many steps to invent others that forget the
sources. DDIM should reproduce both ends and pass through images of the data's kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import evaluation, visualize
from ddpm_jax.data import ImageDataset
from ddpm_jax.devices.batched import RowSplit, batches
from ddpm_jax.devices.mesh import ROWS, WHOLE, fetch
from ddpm_jax.files import write_json
from ddpm_jax.forward import NoiseSchedule, Spacing
from ddpm_jax.forward.pixels import from_pixels, to_pixels
from ddpm_jax.forward.process import q_sample
from ddpm_jax.keys import example_keys, make_key, normal_per_example
from ddpm_jax.programs.build import build_grid, check_unused
from ddpm_jax.programs.chunks import common_chunk, depth_counts
from ddpm_jax.programs.conditions import in_turn, read_conditions
from ddpm_jax.programs.config import SamplerOptions
from ddpm_jax.programs.config_values import check_least, to_json
from ddpm_jax.programs.console import bar, run_program, say
from ddpm_jax.programs.generator import ReverseProcess
from ddpm_jax.programs.pictures import need_pictures
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from ddpm_jax.samplers import ancestral, ddim, ddim_encode, lerp, slerp

# A classifier is fitted where that takes seconds.
_MAX_CLASSIFIED_IMAGES, _MAX_CLASSIFIED_VALUES = 5000, 1024
CURVES = {
    "confidence": "Halfway, DDIM has a class probability of {:.2f}, the cross-fade {:.2f}",
    "distance_to_nearest_training_image": "Halfway, DDIM is {:,.0f} from the training "
    "set, the cross-fade {:,.0f}",
}
"""The numbers that are drawn along the path, and the titles of their pictures."""


@dataclass(frozen=True)
class InterpolateConfig(RunOptions):
    """Interpolates between images with a trained model."""

    pairs: int = 8
    """Pairs of held-out images, chosen by the seed, of two classes where there are classes."""
    first: tuple[int, ...] | None = None
    """Held-out images to start from, by index, instead of --pairs; goes with --second."""
    second: tuple[int, ...] | None = None
    """Held-out images to end at, one for each of --first."""
    depths: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75, 1.0)
    """How far images are diffused before they are mixed, as shares of the process."""
    points: int = 11
    """Values of λ from 0 to 1."""
    num_steps: int | None = None
    """Steps of the grid, for DDPM and DDIM alike; None for all T."""
    spacing: Spacing = "fractional"
    """How fewer steps than T are spread over them."""
    corrections: int = 1
    """Fixed-point corrections per step of DDIM's encoding; more reconstruct better."""
    label: str | int | None = None
    """Number or name of the class for all decoding, for a class-conditional run; None for no
    class."""
    cond: Path | None = None
    """An .npy of vectors [M, D] for encoding and decoding; pairs use the rows in turn."""
    context: Path | None = None
    """An .npy of tokens [M, L, D], or an .npz of `context` and `context_mask`, used likewise."""
    concat: Path | None = None
    """An .npy of arrays [M, H, W, C], used likewise."""
    batch_size: int = 64
    """Images at a time; changes speed and memory, not the images."""


class InterpolateResult(NamedTuple):
    """What the study made.

    images   {method: uint8 [pairs, points, H, W, C]}, λ rising from 0 to 1
    numbers  {method: see `_measure`}
    files    what was written
    """

    images: dict[str, np.ndarray]
    numbers: dict[str, dict[str, Any]]
    files: list[Path]


def interpolate(config: InterpolateConfig) -> InterpolateResult:
    """Interpolates; writes pair-*.png, curves along the path, and interpolate.json.

    Raises ValueError for invalid options, RunDirectoryError or DamagedCheckpointError for a run
    that cannot be read.
    """
    _check(config)
    run = TrainedRun(config)
    need_pictures(run, "interpolate")
    data = run.need_heldout(2)
    first, second = _chosen_pairs(config, data)
    label = None if config.label is None else run.labels(1, config.label)
    files = {name: getattr(config, name) for name in ("cond", "context", "concat")}
    conditions = in_turn(read_conditions(files, run.model.condition_shapes), np.arange(len(first)))
    steps = SamplerOptions(num_steps=config.num_steps, spacing=config.spacing)
    check_unused(steps)
    grid = build_grid(run.model.schedule, steps)
    classify = _classifier(run.train_data, config.seed)
    out = run.study_folder("interpolate", ["pair-0.png", *(f"{name}.png" for name in CURVES)])
    ends = np.stack([data.images[first], data.images[second]])
    say(f"{run.title}: {len(first)} pairs, {config.points} points each, {grid.num_timesteps} steps")
    rows = _interpolations(config, run, grid, ends, label, conditions)
    shares = np.linspace(0.0, 1.0, config.points)
    numbers = {
        name: _measure(images, rows["cross-fade"], ends, run.train_data, classify)
        for name, images in rows.items()
    }
    files = [*_save_pictures(out, rows, ends, numbers), out / "interpolate.json"]
    write_json(
        files[-1],
        {
            **run.provenance(),
            "options": to_json(config),
            "num_steps": grid.num_timesteps,
            "pairs": np.stack([first, second], axis=1).tolist(),
            "lambda": shares.tolist(),
            "methods": numbers,
        },
    )
    _print_table(numbers)
    for path in files:
        say(f"  {path}")
    return InterpolateResult(rows, numbers, files)


def _save_pictures(out: Path, rows, ends, numbers: dict[str, dict[str, Any]]) -> list[Path]:
    """pair-*.png, and the curves along the path that were measured."""
    fade, *_, ddpm_row, ddim_row = numbers
    shares = np.linspace(0.0, 1.0, rows[fade].shape[1])
    errors = [_end_error(numbers[name]) for name in (ddim_row, ddpm_row)]
    if (out / "interpolate.json").exists():
        for old in out.glob("pair-*.png"):  # from an earlier call with more pairs
            old.unlink()
    files = [out / f"pair-{i}.png" for i in range(ends.shape[1])]
    for i, file in enumerate(files):
        start, goal = (np.broadcast_to(end[i], (len(rows), 1, *end[i].shape)) for end in ends)
        path = np.stack([images[i] for images in rows.values()])
        visualize.save_rows(
            file,
            np.concatenate([start, path, goal], axis=1),
            row_labels=list(rows),
            column_labels=["image 1", *(f"λ = {share:.3g}" for share in shares), "image 2"],
            title="DDIM misses the two images by {:.1f} grey levels, {} by {:.0f} (RMS over all "
            "pairs)".format(errors[0], ddpm_row.replace(", ", " from "), errors[1]),
        )
    for field, title in CURVES.items():
        curves = {name: (shares, row[field]) for name, row in numbers.items() if field in row}
        if curves:
            values = [_halfway(curves[name][1]) for name in (ddim_row, fade)]
            files.append(out / f"{field}.png")
            unit = ", in grey levels" if field.startswith("distance") else ""
            labels = "λ, from image 1 (0) to image 2 (1)", field.replace("_", " ") + unit
            visualize.save_curves(files[-1], curves, *labels, title=title.format(*values))
    return files


def _interpolations(config, run, grid, ends, label, conditions) -> dict[str, np.ndarray]:
    """All pairs by every method, {method: uint8 [pairs, points, H, W, C]}; ends [2, pairs, …]."""
    count, shape, total = ends.shape[1], run.model.image_shape, grid.num_timesteps
    a, b = (from_pixels(end) for end in ends)
    streams = np.repeat(np.arange(count), config.points)
    share = np.tile(np.linspace(0.0, 1.0, config.points, dtype=np.float32), count)
    given = {
        "labels": None if label is None else np.resize(label, len(streams)),
        "conditions": in_turn(conditions, streams),
    }

    def along(mix, x, y):
        """Every pair at every λ, [pairs · points, ...]."""
        return np.asarray(mix(np.asarray(x)[streams], np.asarray(y)[streams], share))

    depths = sorted({*depth_counts(total, config.depths, "--depths")})
    key_encode, key = (jax.random.fold_in(make_key(config.seed), purpose) for purpose in range(2))
    steps = np.arange(total)[::-1]
    options = {"devices": run.devices, "batch_size": config.batch_size}
    variance = run.config.diffusion.variance
    reverse_ddpm = ReverseProcess(
        run.params,
        lambda _: ancestral(grid, variance=variance),
        run.model.guided(1.0),
        chunk=common_chunk([*depths, total]),
        **options,
    )
    # Clipping x̂_0 would make DDIM's ODE impossible to invert.
    unclipped = run.model.guided(1.0, clip=False)
    last = _latent_step(grid)
    reverse_ddim = ReverseProcess(
        run.params, lambda _: ddim(grid), unclipped, chunk=common_chunk([last + 1]), **options
    )

    # The same noise for both ends, so that mixing does not weaken it.
    noise = normal_per_example(example_keys(key_encode, np.arange(count)), shape)
    rows = {"cross-fade": along(lerp, a, b)}
    per_image = (1 + config.corrections) * (last + 1)
    work = 2 * count * per_image + len(streams) * (last + 1 + sum(depths))
    with bar(work, "interpolating", unit="img·step") as progress:
        for depth in depths:
            t = np.full(count, depth - 1, np.int32)
            x, y = (q_sample(grid, end, t, noise) for end in (a, b))
            trajectory = reverse_ddpm(
                key,
                along(lerp, x, y),
                steps[total - depth :],
                streams,
                **given,
                on_progress=progress.update,
            )
            rows[f"DDPM, t = {int(grid.timesteps[depth - 1])}"] = trajectory.x
        latents = _latents(config, run, grid, (a, b), label, conditions, progress.update)
        trajectory = reverse_ddim(
            key,
            along(slerp, *latents),
            steps[total - last - 1 :],
            streams,
            **given,
            on_progress=progress.update,
        )
        rows[f"DDIM, t = {int(grid.timesteps[last])}"] = trajectory.x
    return {
        name: np.asarray(to_pixels(x)).reshape(count, config.points, *shape)
        for name, x in rows.items()
    }


def _latents(config, run, grid, ends, label, conditions, on_progress) -> np.ndarray:
    """Encodes both ends by DDIM, batch by batch: [2, pairs, H, W, C]."""
    x_0 = np.concatenate(ends)
    last, split = _latent_step(grid), RowSplit(run.devices)

    def encode(params, x_0, labels, conditions):
        denoise = run.model.guided(1.0, clip=False)(params, labels, **conditions)
        return ddim_encode(grid, denoise, x_0, last_step=last, corrections=config.corrections)

    encode_rows = split.map(encode, (WHOLE, ROWS, ROWS, ROWS))
    params, size = split.replicate(run.params), split.round_up(min(config.batch_size, len(x_0)))
    latents = np.empty_like(x_0)
    for rows in batches(len(x_0), size):
        numbers = np.arange(rows.start, rows.stop)
        labels = None if label is None else np.full(len(numbers), label[0], np.int32)
        given = (x_0[rows], labels, in_turn(conditions, numbers % len(ends[0])))
        found = fetch(encode_rows(params, *split.put(given, size)))
        latents[rows] = found[: len(numbers)]
        on_progress(len(numbers) * (1 + config.corrections) * (last + 1))
    return latents.reshape(2, *np.shape(ends[0]))


def _latent_step(grid: NoiseSchedule) -> int:
    """The grid step of DDIM's latents: the last one before σ = √(1-ᾱ)/√ᾱ grows tenfold in a step.

    The cosine schedule's last step multiplies σ by 32, that of a zero-terminal-SNR schedule by
    infinity. Euler's method loses the image there: DDIM reconstructs the digits to 60 grey levels
    from the last step, and to 0.5 from the one before it.
    """
    log_sigma = -0.5 * np.asarray(grid.log_snr, np.float64)
    last = grid.num_timesteps - 1
    while last > 0 and log_sigma[last] - log_sigma[last - 1] > np.log(10.0):
        last -= 1
    return last


def _measure(images, cross_fade, ends, train: ImageDataset, classify) -> dict[str, Any]:
    """Compares one method with the sources; lists go along λ, numbers are means over the pairs."""
    count, points = images.shape[:2]
    flat = images.reshape(-1, *images.shape[2:])
    nearest = evaluation.nearest_neighbours(flat, train.images).distances
    result = {
        "rms_to_source_at_0": evaluation.rms_difference(images[:, 0], ends[0]),
        "rms_to_source_at_1": evaluation.rms_difference(images[:, -1], ends[1]),
        "rms_to_cross_fade": [
            evaluation.rms_difference(images[:, i], cross_fade[:, i]) for i in range(points)
        ],
        "distance_to_nearest_training_image": nearest.reshape(count, points).mean(0).tolist(),
    }
    if classify is not None:
        confidence = classify(flat).max(axis=1)
        result["confidence"] = confidence.reshape(count, points).mean(0).tolist()
    return result


def _classifier(train: ImageDataset, seed: int) -> evaluation.Classify | None:
    """A classifier fitted to the training data; None if they have no labels or are large.

    Also None, with a message, if they are too few.
    """
    values = int(np.prod(train.images.shape[1:]))
    small = len(train.images) <= _MAX_CLASSIFIED_IMAGES and values <= _MAX_CLASSIFIED_VALUES
    if train.num_classes is None or not small:
        return None
    try:
        return evaluation.fit_classifier(train.images, train.labels, seed)
    except ValueError as error:
        say(f"the confidence of a classifier is left out: {error}")
        return None


def _chosen_pairs(config: InterpolateConfig, data: ImageDataset) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to start from and to end at."""
    size = len(data.images)
    if config.first is not None and config.second is not None:
        for index in (*config.first, *config.second):
            if not 0 <= index < size:
                raise ValueError(
                    f"--first and --second must be indices from 0 of the {size} images of "
                    f"{data.name}; got {index}."
                )
        return np.array(config.first), np.array(config.second)
    random = np.random.default_rng(config.seed)
    first = random.integers(size, size=config.pairs)
    second = []
    for index in first:
        others = np.flatnonzero(data.labels != data.labels[index])
        if not len(others):  # no labels, or one class
            others = np.flatnonzero(np.arange(size) != index)
        second.append(random.choice(others))
    return first, np.array(second)


def _check(config: InterpolateConfig) -> None:
    check_least(config, 1, "pairs", "batch_size")
    check_least(config, 2, "points")
    check_least(config, 0, "corrections")
    if len(config.first or ()) != len(config.second or ()) or config.first == ():
        raise ValueError(
            f"--first and --second need equally many indices, got {config.first} and "
            f"{config.second}."
        )
    depth_counts(1, config.depths, "--depths")


def _end_error(row: dict[str, Any]) -> float:
    """RMS error of a method at both ends."""
    return float(np.hypot(row["rms_to_source_at_0"], row["rms_to_source_at_1"]) / np.sqrt(2))


def _halfway(values: list[float]) -> float:
    """The value at λ = ½, of two points the mean if none lies there."""
    return float(np.interp(0.5, np.linspace(0.0, 1.0, len(values)), values))


def _print_table(numbers: dict[str, dict[str, Any]]) -> None:
    classified = any("confidence" in row for row in numbers.values())
    say(f"\n{'rms in grey levels of 255':27}   at the ends     halfway, λ = ½")
    say(
        f"{'':27}   from sources    from cross-fade   nearest training image"
        + ("   classifier confidence" if classified else "")
    )
    for name, r in numbers.items():
        fade, distance = r["rms_to_cross_fade"], r["distance_to_nearest_training_image"]
        line = f"{name:27}   {_end_error(r):12.1f}    {_halfway(fade):15.1f}   "
        line += f"{_halfway(distance):22.0f}"
        say(line + (f"   {_halfway(r['confidence']):21.2f}" if classified else ""))
    say("")


if __name__ == "__main__":
    run_program(interpolate, InterpolateConfig(), __doc__)
