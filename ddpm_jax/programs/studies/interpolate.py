"""Between two images: mixed as x_t and decoded by chance (Ho et al. 2020, §4.4, Figure 8), and as
DDIM's latents (Song, Meng, Ermon 2020, §5.3, Figure 6)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from ddpm_jax import evaluation, visualize
from ddpm_jax.data import ImageDataset
from ddpm_jax.files import write_json
from ddpm_jax.forward import NoiseSchedule, Spacing
from ddpm_jax.forward.pixels import from_pixels, to_pixels
from ddpm_jax.forward.process import q_sample
from ddpm_jax.keys import example_keys, normal_per_example
from ddpm_jax.programs.build import build_grid
from ddpm_jax.programs.config import SamplerOptions, to_json
from ddpm_jax.programs.console import bar, say
from ddpm_jax.programs.studies.measure import rms_difference
from ddpm_jax.programs.studies.walk import Walk, common_chunk, depth_counts
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from ddpm_jax.samplers import ancestral, ddim, ddim_encode, lerp, slerp

# A judge of the images is fitted where that takes seconds.
_JUDGED_IMAGES, _JUDGED_VALUES = 5000, 1024


@dataclass(frozen=True)
class InterpolateConfig(RunOptions):
    """Interpolations between images by a trained run."""

    pairs: int = 8
    """Pairs of held-out images, chosen by the seed, of two classes where there are classes."""
    first: tuple[int, ...] | None = None
    """Held-out images to start from, by index, instead of --pairs; goes with --second."""
    second: tuple[int, ...] | None = None
    """Held-out images to arrive at, one for each of --first."""
    depths: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75, 1.0)
    """How far images are diffused before they are mixed, as shares of the process."""
    points: int = 11
    """Values of λ from 0 to 1."""
    num_steps: int | None = None
    """Steps of the grid for both ways; None for all T."""
    spacing: Spacing = "fractional"
    """How fewer steps than T are spread over them."""
    corrections: int = 1
    """Fixed-point corrections of every step of DDIM's encoding; more reconstruct better."""
    label: int | None = None
    """The class of all decoding, of a class-conditional run; None for no class."""
    batch_size: int = 64
    """Images at a time; changes speed and memory, not the images."""


def interpolate(config: InterpolateConfig) -> None:
    """Writes pair-*.png, curves along the path, and interpolate.json.

    Raises ValueError, RunDirectoryError or DamagedCheckpointError for options no run could use.
    """
    _check(config)
    run = TrainedRun(config)
    data = run.heldout_data
    first, second = _choose(config, data)
    labels_of = None if config.label is None else run.labels(1, config.label)
    grid = build_grid(
        run.model.schedule, SamplerOptions(num_steps=config.num_steps, spacing=config.spacing)
    )
    judge = _judge(run.train_data, config.seed)
    out = run.folder("interpolate")
    ends = np.stack([data.images[first], data.images[second]])
    say(
        f"{config.run_dir} at step {run.step:,}: {len(first)} pairs, {config.points} points each, "
        f"{grid.num_timesteps} steps"
    )
    rows = _rows(config, run, grid, ends, labels_of)
    shares = np.linspace(0.0, 1.0, config.points)
    results = {
        name: _measured(images, rows["cross-fade"], ends, run.train_data, judge)
        for name, images in rows.items()
    }

    for old in out.glob("pair-*.png"):  # from an earlier call with more pairs
        old.unlink()
    written = []
    for i in range(len(first)):
        start, goal = (np.broadcast_to(end[i], (len(rows), 1, *end[i].shape)) for end in ends)
        path = np.stack([images[i] for images in rows.values()])
        written.append(out / f"pair-{i}.png")
        visualize.save_rows(
            written[-1],
            np.concatenate([start, path, goal], axis=1),
            row_labels=list(rows),
            column_labels=["source", *(f"λ = {share:.2g}" for share in shares), "source"],
        )
    titles = {
        "confidence": ("How sure a classifier is of one class", "largest probability, mean"),
        "distance_to_nearest_training_image": (
            "How far from the training images",
            "distance to the nearest, in grey levels, mean",
        ),
    }
    for field, (title, ylabel) in titles.items():
        curves = {name: (shares, r[field]) for name, r in results.items() if field in r}
        if curves:
            written.append(out / f"{field}.png")
            visualize.save_curves(written[-1], curves, "λ", ylabel, title=title)
    written.append(out / "interpolate.json")
    write_json(
        written[-1],
        {
            **run.provenance(),
            "options": to_json(config),
            "num_steps": grid.num_timesteps,
            "pairs": np.stack([first, second], axis=1).tolist(),
            "lambda": shares.tolist(),
            "methods": results,
        },
    )
    _print_table(results)
    for path in written:
        say(f"  {path}")


def _rows(config, run, grid, ends, label) -> dict[str, np.ndarray]:
    """Each way of mixing: uint8 images [pairs, points, H, W, C]."""
    count, shape, total = ends.shape[1], run.model.image_shape, grid.num_timesteps
    a, b = (from_pixels(end) for end in ends)
    streams = np.repeat(np.arange(count), config.points)
    share = np.tile(np.linspace(0.0, 1.0, config.points, dtype=np.float32), count)
    labels = None if label is None else np.resize(label, len(streams))

    def along(mix, x, y):
        """[pairs · points, ...]: every pair at every λ."""
        return np.asarray(mix(np.asarray(x)[streams], np.asarray(y)[streams], share))

    depths = sorted({*depth_counts(total, config.depths, "--depths")})
    key_encode, key = (
        jax.random.fold_in(jax.random.key(config.seed), purpose) for purpose in range(2)
    )
    steps = np.arange(total)[::-1]
    options = {"chunk": common_chunk([*depths, total]), "batch_size": config.batch_size}
    variance = run.config.diffusion.variance
    by_chance = Walk(
        run, lambda given: ancestral(grid, variance=variance), run.model.guided(1.0), **options
    )
    exact = run.model.guided(1.0, clip=False)
    last = _latent_step(grid)
    options["chunk"] = common_chunk([last + 1])
    by_ddim = Walk(run, lambda given: ddim(grid), exact, **options)

    @jax.jit
    def encode(params, x_0):
        shown = None if label is None else np.resize(label, len(x_0)).astype(np.int32)
        denoise = exact(params, shown)
        return ddim_encode(grid, denoise, x_0, last_step=last, corrections=config.corrections)

    # The same noise for both ends: mixing then leaves the noise as strong as it was.
    noise = normal_per_example(example_keys(key_encode, np.arange(count)), shape)
    rows = {"cross-fade": along(lerp, a, b)}
    per_image = (1 + config.corrections) * (last + 1)
    work = 2 * count * per_image + len(streams) * (last + 1 + sum(depths))
    with bar(work, "interpolating", unit="img·step") as progress:
        for depth in depths:
            t = np.full(count, depth - 1, np.int32)
            x, y = (q_sample(grid, end, t, noise) for end in (a, b))
            walked = by_chance(
                key,
                along(lerp, x, y),
                steps[total - depth :],
                streams,
                labels=labels,
                on_progress=progress.update,
            )
            rows[f"DDPM, t = {int(grid.timesteps[depth - 1])}"] = walked.x
        latents = []
        for end in (a, b):
            latents.append(encode(run.params, end))
            jax.block_until_ready(latents[-1])
            progress.update(count * per_image)
        walked = by_ddim(
            key,
            along(slerp, *latents),
            steps[total - last - 1 :],
            streams,
            labels=labels,
            on_progress=progress.update,
        )
        rows[f"DDIM, t = {int(grid.timesteps[last])}"] = walked.x
    return {
        name: np.asarray(to_pixels(x)).reshape(count, config.points, *shape)
        for name, x in rows.items()
    }


def _latent_step(grid: NoiseSchedule) -> int:
    """The grid step of DDIM's latents: the last one that its ODE reaches by a step of some size.

    The cosine schedule's last step multiplies σ = √(1-ᾱ)/√ᾱ by 32, that of a zero terminal SNR by
    infinity. Euler's scheme loses the image there: on the digits it comes back off by 60 grey
    levels, and by 0.5 when its latent is taken a step earlier.
    """
    log_sigma = -0.5 * np.asarray(grid.log_snr, np.float64)
    last = grid.num_timesteps - 1
    while last > 0 and log_sigma[last] - log_sigma[last - 1] > np.log(10.0):
        last -= 1
    return last


def _measured(images, cross_fade, ends, train: ImageDataset, judge) -> dict:
    """What tells the ways apart; lists go along λ, and every number is a mean over the pairs."""
    count, points = images.shape[:2]
    flat = images.reshape(-1, *images.shape[2:])
    nearest = evaluation.nearest_neighbours(flat, train.images).distances
    result = {
        "rms_to_source_at_0": rms_difference(images[:, 0], ends[0]),
        "rms_to_source_at_1": rms_difference(images[:, -1], ends[1]),
        "rms_to_cross_fade": [
            rms_difference(images[:, i], cross_fade[:, i]) for i in range(points)
        ],
        "distance_to_nearest_training_image": nearest.reshape(count, points).mean(0).tolist(),
    }
    if judge is not None:
        sure = judge(flat).max(axis=1)
        result["confidence"] = sure.reshape(count, points).mean(0).tolist()
    return result


def _judge(train: ImageDataset, seed: int) -> evaluation.Classify | None:
    """A classifier fitted to the training data, where they have labels and are small."""
    values = int(np.prod(train.images.shape[1:]))
    small = len(train.images) <= _JUDGED_IMAGES and values <= _JUDGED_VALUES
    if train.num_classes is None or not small:
        return None
    return evaluation.fit_classifier(train.images, train.labels, seed)


def _choose(config: InterpolateConfig, data: ImageDataset) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to start from and to arrive at."""
    size = len(data.images)
    if config.first is not None and config.second is not None:
        for index in (*config.first, *config.second):
            if not 0 <= index < size:
                raise ValueError(
                    f"--first and --second index the {size} images of {data.name}, from 0; got "
                    f"{index}."
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
    for name, least in (("pairs", 1), ("points", 2), ("corrections", 0), ("batch_size", 1)):
        if getattr(config, name) < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least {least}, got {getattr(config, name)}.")
    if len(config.first or ()) != len(config.second or ()) or config.first == ():
        raise ValueError(
            f"--first and --second need as many indices each, got {config.first} and "
            f"{config.second}."
        )
    depth_counts(1, config.depths, "--depths")


def _print_table(results: dict[str, dict]) -> None:
    some = next(iter(results.values()))
    half = len(some["rms_to_cross_fade"]) // 2
    judged = "confidence" in some
    say("")
    say(f"{'rms in grey levels of 255':27}   at the ends     halfway, λ = ½")
    say(
        f"{'':27}   from sources    from cross-fade   nearest training image"
        + ("   classifier sure of one" if judged else "")
    )
    for name, r in results.items():
        ends = (r["rms_to_source_at_0"] ** 2 + r["rms_to_source_at_1"] ** 2) / 2
        line = (
            f"{name:27}   {np.sqrt(ends):12.1f}    {r['rms_to_cross_fade'][half]:15.1f}   "
            f"{r['distance_to_nearest_training_image'][half]:22.0f}"
        )
        say(line + (f"   {r['confidence'][half]:22.2f}" if judged else ""))
    say("")
