"""Does a model copy? Its samples beside their nearest training images.

    ddpm-jax neighbours --run-dir runs/digits
    ddpm-jax neighbours --run-dir runs/digits --samples SAMPLES.npz

As in the appendix of Ho et al. 2020 (arXiv 2006.11239), with the distances of held-out images as a
reference. neighbours.png draws the samples nearest to the training set, the most suspicious ones.
Expect no exact copies, and a curve in distances.png that is not left of that of held-out images:
samples much nearer to the training set than new images are would be copies with noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import visualize
from ddpm_jax.evaluation import nearest_neighbours
from ddpm_jax.files import read_arrays, write_json
from ddpm_jax.programs import pictures
from ddpm_jax.programs.config import SamplerOptions
from ddpm_jax.programs.config_values import check_least, to_json
from ddpm_jax.programs.console import bar, run_program, say
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun

_SEARCH_BATCH = 256
"""Images searched between updates of the progress bar."""
_MAX_BYTES = 1 << 34
"""Largest size of a file of samples, unpacked."""


@dataclass(frozen=True)
class NeighboursConfig(SamplerOptions, RunOptions):
    """Searches the nearest training images of a trained model's samples."""

    count: int = 256
    """Samples, and held-out images to compare with (fewer if there are fewer)."""
    samples: Path | None = None
    """An .npz file with `images`, as sample.py writes it, instead of new samples."""
    neighbours: int = 6
    """Training images shown beside each sample."""
    rows: int = 10
    """Samples shown, those nearest to the training set first."""
    label: str | int | None = None
    """Number or name of the class of all samples, for a class-conditional run; None for all classes
    in turn."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 for none. Guided samples may be copies where unguided
    ones are not."""
    batch_size: int = 64
    """Images at a time; changes speed and memory, not the images."""


class NeighboursResult(NamedTuple):
    """What the study made.

    samples  uint8 [N, H, W, C]
    found    {"samples", "held-out images": (indices [N, k], distances [N, k]) of the nearest}
    numbers  {"samples", "held-out images": see `summary`}
    files    what was written
    """

    samples: np.ndarray
    found: dict[str, tuple[np.ndarray, np.ndarray]]
    numbers: dict[str, dict[str, Any]]
    files: list[Path]


def study_neighbours(config: NeighboursConfig) -> NeighboursResult:
    """Searches; writes neighbours.png, distances.png and neighbours.json.

    Raises ValueError for invalid options, RunDirectoryError or DamagedCheckpointError for a run
    that cannot be read.
    """
    check_least(config, 1, "count", "neighbours", "rows", "batch_size")
    run = TrainedRun(config)
    pictures.need_pictures(run, "neighbours")
    labels = run.labels(config.count, config.label)
    train, heldout = run.train_data.images, run.need_heldout(1).images
    if not max(config.neighbours, 2) <= len(train):
        raise ValueError(
            f"--neighbours {config.neighbours} needs at least as many training images, and at "
            f"least two; there are {len(train)}."
        )
    generator = run.generator(run.sampler(config), guidance=config.guidance)
    given = None if config.samples is None else _read_samples(config.samples, run)
    out = run.study_folder("neighbours", ["neighbours.png", "distances.png"])
    if given is not None:
        samples = given[: config.count]
    else:
        samples = pictures.draw_images(
            generator,
            run.params,
            seed=config.seed,
            count=config.count,
            batch_size=config.batch_size,
            labels=labels,
        ).images
    chosen = np.linspace(0, len(heldout) - 1, min(len(samples), len(heldout))).astype(int)
    say(
        f"{run.title}: {len(samples)} samples and {len(chosen)} held-out "
        f"images against {len(train):,} training images"
    )
    k = max(config.neighbours, 2)
    with bar(len(samples) + len(chosen), "searching", unit="image") as progress:
        found = {
            "samples": _search(samples, train, k, progress.update),
            "held-out images": _search(heldout[chosen], train, k, progress.update),
        }
    indices, distances = found["samples"]
    typical = float(np.median(found["held-out images"][1][:, 0]))
    order = np.argsort(distances[:, 0], kind="stable")
    numbers = {name: summary(values) for name, (_, values) in found.items()}

    files = [out / "neighbours.png", out / "distances.png", out / "neighbours.json"]
    shown = order[: config.rows]
    near = indices[shown, : config.neighbours]
    visualize.save_rows(
        files[0],
        np.concatenate([samples[shown][:, None], train[near]], axis=1),
        row_labels=[f"sample {i}" for i in shown],
        column_labels=["sample", *(f"nearest {i + 1}" for i in range(config.neighbours))],
        title=_closest(found, config.guidance),
        captions=[
            ["distance:", *(f"{value:,.0f}" for value in distances[i, : config.neighbours])]
            for i in shown
        ],
    )
    visualize.save_curves(
        files[1],
        {name: _staircase(values[:, 0]) for name, (_, values) in found.items()},
        "distance to the nearest training image, in grey levels",
        "cumulative share of images",
        title=f"The median sample is {np.median(distances[:, 0]):,.0f} grey levels away, the "
        f"median held-out image {typical:,.0f}",
    )
    write_json(
        files[2],
        {
            **run.provenance(),
            "options": to_json(config),
            "training_images": len(train),
            "median_distance_of_heldout": typical,
            **{name.replace("-", "").replace(" ", "_"): row for name, row in numbers.items()},
            "most_suspicious": [
                {
                    "sample": int(i),
                    "training_images": indices[i, : config.neighbours].tolist(),
                    "distances": distances[i, : config.neighbours].tolist(),
                    "ratio_to_heldout_median": float(distances[i, 0]) / max(typical, 1e-12),
                }
                for i in shown
            ],
        },
    )
    _print_table(numbers)
    for path in files:
        say(f"  {path}")
    return NeighboursResult(samples, found, numbers, files)


def _closest(found: dict[str, tuple[np.ndarray, np.ndarray]], guidance: float) -> str:
    """Says how near the samples come to the training set, and how near held-out images do."""
    nearest = {name: float(distances[:, 0].min()) for name, (_, distances) in found.items()}
    guided = f" (guidance {guidance:g})" if guidance != 1.0 else ""
    return (
        f"The nearest of {len(found['samples'][1]):,} samples{guided} is {nearest['samples']:,.0f} "
        f"grey levels from its nearest training image, the nearest of "
        f"{len(found['held-out images'][1]):,} held-out images {nearest['held-out images']:,.0f}"
    )


def summary(distances: np.ndarray) -> dict[str, float | int]:
    """Summarises distances [N, k ≥ 2] to the nearest training images, nearest first.

    `share_much_nearer_to_one` is the share with d_1 < d_2/3, a common criterion for memorised
    images (Yoon et al. 2023; Gu et al. 2023, 2310.02664).
    """
    first, second = distances[:, 0], distances[:, 1]
    levels = {"smallest": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95}
    return {
        "images": len(first),
        "exact_copies": int((first == 0).sum()),
        "share_much_nearer_to_one": float((first < second / 3).mean()),
        **{name: float(np.quantile(first, level)) for name, level in levels.items()},
    }


def _read_samples(file: Path, run: TrainedRun) -> np.ndarray:
    """The samples of a file, uint8 [N, H, W, C]; an error if they are not images of this run."""
    try:
        images = read_arrays(file, _MAX_BYTES, ["images"])["images"]
    except (OSError, ValueError, KeyError) as error:
        raise RunDirectoryError(
            f"--samples {file} has no readable array `images` ({error})."
        ) from error
    if images.dtype != np.uint8 or images.shape[1:] != run.model.image_shape or not len(images):
        raise ValueError(
            f"--samples {file} has images {images.dtype} {images.shape}, and this run "
            f"makes uint8 {run.model.image_shape}."
        )
    return images


def _search(images, train, k, on_progress) -> tuple[np.ndarray, np.ndarray]:
    parts = []
    for start in range(0, len(images), _SEARCH_BATCH):
        parts.append(nearest_neighbours(images[start : start + _SEARCH_BATCH], train, k))
        on_progress(len(parts[-1].indices))
    indices, distances = zip(*parts, strict=True)
    return np.concatenate(indices), np.concatenate(distances)


def _staircase(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The empirical distribution function of values [N], as a staircase (x, y)."""
    ordered = np.sort(values.astype(np.float64))
    share = np.arange(len(ordered) + 1) / len(ordered)
    return np.repeat(ordered, 2), np.repeat(share, 2)[1:-1]


def _print_table(numbers: dict[str, dict[str, Any]]) -> None:
    say("")
    say("distance to the nearest training image, in grey levels (Euclidean over all values)")
    say(
        f"{'':17}{'images':>7}  {'exact copies':>12}  {'d₁ < d₂/3':>9}  {'smallest':>8}  "
        f"{'5 %':>6}  {'median':>6}  {'95 %':>6}"
    )
    for name, row in numbers.items():
        say(
            f"{name:17}{row['images']:7}  {row['exact_copies']:12}  "
            f"{row['share_much_nearer_to_one']:9.3f}  {row['smallest']:8.0f}  {row['5 %']:6.0f}  "
            f"{row['median']:6.0f}  {row['95 %']:6.0f}"
        )
    say("")


if __name__ == "__main__":
    run_program(study_neighbours, NeighboursConfig(), __doc__)
