"""Sample quality against the number of steps, for every sampler, as in DDIM's Table 1.

    ddpm-jax steps_vs_quality --run-dir runs/digits
    ddpm-jax steps_vs_quality --run-dir RUN --classifier runs/classifier

Song, Meng, Ermon 2020 (arXiv 2010.02502, Table 1), with the samplers that came after it: analytic
variances (2201.06503), DPM-Solver++ (2211.01095), Heun on EDM's grid (2206.00364). Quality is the
Fréchet distance of pixels, which needs no network and suits small images, or of the features of a
classifier trained on the same data, which is not the FID. As many held-out images, and images of
the Gaussian fitted to the training set, are measured beside the samples.

The network alone is compiled, once, and all samplers step outside of it: on small images, compiling
each sampler for each number of steps would take longer than sampling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import evaluation, visualize
from ddpm_jax.files import write_json
from ddpm_jax.forward.pixels import to_pixels
from ddpm_jax.keys import example_keys, make_key
from ddpm_jax.programs.buckets import shown
from ddpm_jax.programs.classifier import accuracy
from ddpm_jax.programs.config import SamplerOptions
from ddpm_jax.programs.config_values import check_least
from ddpm_jax.programs.console import bar, run_program, say
from ddpm_jax.programs.intervals import frechet_interval, interval_band
from ddpm_jax.programs.metrics import classifier_features, pixel_features, summarize_reference
from ddpm_jax.programs.pictures import need_pictures
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from ddpm_jax.samplers import Sampler, grid_steps, initial_noise
from ddpm_jax.samplers.base import step_noise

SAMPLERS: dict[str, SamplerOptions] = {
    "ancestral, the run's σ": SamplerOptions("ancestral"),
    "ancestral, analytic σ": SamplerOptions("ancestral", variance="analytic"),
    "DDIM η=1": SamplerOptions("ddim", eta=1.0),
    "DDIM η=0": SamplerOptions("ddim"),
    "DPM-Solver++ 2M": SamplerOptions("dpm_solver_pp"),
    "SDE-DPM-Solver++ 2M": SamplerOptions("dpm_solver_pp_sde"),
    "Heun": SamplerOptions("heun", spacing="karras"),
}
FULL = ("ancestral, the run's σ", "DDIM η=0")
"""Samplers that are also run on all T steps."""
TITLES = {
    "frechet_pixels": "Fréchet distance of pixels to the training set",
    "frechet_classifier": "Fréchet distance in features of the classifier",
    "accuracy": "share of images that the classifier gives their class",
    "share_confident": "share of images a classifier is > 90 % sure of",
}


@dataclass(frozen=True)
class StepsConfig(RunOptions):
    """Sample quality against the number of steps."""

    steps: tuple[int, ...] = (5, 10, 20, 50)
    """Numbers of steps below T (others are left out)."""
    all_steps: bool = True
    """Also sample with all T steps, ancestral and DDIM."""
    analytic: bool = True
    """Also use the analytic variance, measured once per checkpoint on 256 training images at all
    steps."""
    count: int = 200
    """Images per cell; more images lower the Fréchet distance, so compare equal counts only."""
    batch_size: int = 200
    """Images at a time."""
    classifier: Path | None = None
    """Folder of a classifier of the run's own data, whose features are compared instead of pixels;
    of a class-conditional run it also gives the accuracy on the samples."""
    bootstrap: int = 100
    """Bootstrap resamplings for the interval of the Fréchet distance, computed only for features of
    few dimensions; 0 for none."""
    show: int = 10
    """Images per cell in the picture."""


class StepsResult(NamedTuple):
    """What the study made.

    pictures  {(sampler, steps): uint8 [show, H, W, C]}
    rows      {sampler: {steps: its numbers}}, steps as text
    heldout   the same numbers of held-out images
    gaussian  the same numbers of images of the Gaussian fitted to the training set
    files     what was written
    """

    pictures: dict[tuple[str, int], np.ndarray]
    rows: dict[str, dict[str, Any]]
    heldout: dict[str, float]
    gaussian: dict[str, float]
    files: list[Path]


def steps_vs_quality(config: StepsConfig) -> StepsResult:
    """Samples every cell; writes steps_vs_quality.json, quality.png and samples.png.

    Raises ValueError for invalid options, and whatever `TrainedRun` raises.
    """
    check_least(config, 2, "count")
    check_least(config, 1, "batch_size", "show")
    check_least(config, 0, "bootstrap")
    if not config.steps or min(config.steps) < 1:
        raise ValueError(f"--steps needs numbers of at least 1, got {config.steps}.")
    run = TrainedRun(config)
    need_pictures(run, "steps_vs_quality")
    real = run.need_heldout(2).images[: config.count]
    field, fingerprint, measure = _measure_of(run, config)
    T = run.model.schedule.num_timesteps
    columns = sorted({s for s in config.steps if s < T})
    names = [n for n, o in SAMPLERS.items() if config.analytic or o.variance != "analytic"]
    cells = [(name, s) for name in names for s in columns]
    if config.all_steps:
        cells += [(name, T) for name in FULL]
    if not cells:
        raise ValueError(
            f"--steps needs a number below T = {T} with --no-all-steps, got {config.steps}."
        )
    samplers = {}
    for name, s in cells:
        options = dataclasses.replace(SAMPLERS[name], num_steps=s if s < T else None)
        samplers[name, s] = run.sampler(options)
    out = run.study_folder("steps_vs_quality", ["quality.png", "samples.png"])
    network = _network(run)
    work = sum(_evaluations(name, s) for name, s in cells) * config.count
    rows: dict[str, dict[str, Any]] = {name: {} for name in names}
    pictures = {}
    with bar(work, "sampling", unit="img·evaluation") as progress:
        for (name, s), sampler in samplers.items():
            images = _draw(run, network, sampler, config)
            pictures[name, s] = images[: config.show]
            labels = run.labels(config.count)
            rows[name][str(s)] = {"evaluations": _evaluations(name, s), **measure(images, labels)}
            progress.update(_evaluations(name, s) * config.count)
    own_labels = None if run.labels(1) is None else run.heldout_data.labels[: len(real)]
    heldout = {"images": len(real), **measure(real, own_labels)}
    drawn = evaluation.fitted_gaussian_images(run.train_data.images, config.count, config.seed)
    gaussian = {"images": config.count, **measure(drawn, None)}
    references = {f"{len(real):,} held-out images": heldout, "Gaussian of the data": gaussian}
    files = [out / "steps_vs_quality.json", out / "quality.png"]
    write_json(
        files[0],
        {
            **run.provenance(),
            "images_per_cell": config.count,
            "classifier": None if config.classifier is None else shown(config.classifier),
            "features_fingerprint": fingerprint,
            "held out": heldout,
            "fitted Gaussian": gaussian,
            "rows": rows,
        },
    )
    variance = run.config.diffusion.variance
    _plot(files[1], field, {_label(name, variance): row for name, row in rows.items()}, references)
    widest = columns[-1] if columns else T
    seen = [(name, s) for name in names for s in {min(10, widest), widest} if s in columns]
    if seen:
        seen.sort(key=lambda cell: (cell[1], names.index(cell[0])))
        files.append(out / "samples.png")
        visualize.save_rows(
            files[-1],
            np.stack([pictures[cell] for cell in seen]),
            row_labels=[f"{_label(name, variance)}, {s} steps" for name, s in seen],
        )
    _print_tables(rows, heldout, gaussian, sorted({s for _, s in cells}), config.count)
    for path in files:
        say(f"  {path}")
    return StepsResult(pictures, rows, heldout, gaussian, files)


def _evaluations(name: str, steps: int) -> int:
    """Network evaluations per image."""
    return 2 * steps - 1 if name == "Heun" else steps


def _network(run: TrainedRun) -> Callable[..., Any]:
    """The model's denoiser, compiled, as a function of (x_t, t, labels)."""
    compiled = jax.jit(lambda params, x_t, t, labels: run.model.denoiser_of(params, labels)(x_t, t))
    return lambda x_t, t, labels: compiled(run.params, x_t, t, labels)


def _draw(
    run: TrainedRun, network: Callable[..., Any], sampler: Sampler, config: StepsConfig
) -> np.ndarray:
    """Draws uint8 images [count, H, W, C]; image i depends on the seed and i alone."""
    size = min(config.batch_size, config.count)
    labels = run.model.cycled_labels(config.count)
    images = []
    for first in range(0, config.count, size):
        real = min(size, config.count - first)
        index = jnp.arange(first, first + size, dtype=jnp.uint32)
        keys = example_keys(make_key(config.seed), index)
        batch_labels = None if labels is None else np.resize(labels[first : first + real], size)
        x = initial_noise(keys, run.model.image_shape)
        state = sampler.init(x)
        for t in np.asarray(grid_steps(sampler)):
            noise = step_noise(keys, t, x, sampler.num_draws) if sampler.stochastic else None
            steps = jnp.full((size,), t)
            result = sampler.step(lambda x, t: network(x, t, batch_labels), x, steps, noise, state)  # noqa: B023
            x, state = result.x, result.state
        images.append(np.asarray(to_pixels(x))[:real])
    return np.concatenate(images)


def _measure_of(
    run: TrainedRun, config: StepsConfig
) -> tuple[str, str, Callable[[np.ndarray, np.ndarray | None], dict[str, Any]]]:
    """The name of the distance, the fingerprint of its features, and measure(images, labels).

    The Fréchet distance to the training set, in pixels or in a classifier's features, with its
    bootstrap interval; then, with labels, also the classifier's accuracy. For digits in pixels also
    the share of images that another classifier is more than 90 % sure of.
    """
    train, shape, classifier = run.train_data, run.model.image_shape, config.classifier
    if classifier is None:
        features, field = pixel_features(shape), "frechet_pixels"
    else:
        features = classifier_features(classifier, shape, run.model.num_classes, run.devices)
        field = "frechet_classifier"
    truth = summarize_reference(train, features, None).moments[features.compared[0]]
    recognise = None
    if run.config.data.name == "digits" and classifier is None:
        recognise = evaluation.fit_classifier(train.images, train.labels)

    def measure(images: np.ndarray, labels: np.ndarray | None) -> dict[str, float]:
        found = features.of(images)
        mine = found[features.compared[0]]
        values: dict[str, Any] = {
            field: evaluation.frechet_distance(truth, evaluation.moments(mine))
        }
        interval = frechet_interval(truth, mine, seed=config.seed, repeats=config.bootstrap)
        if interval is not None:
            values[f"{field}_interval_95"] = interval
        if features.logits is not None and labels is not None:
            values["accuracy"] = accuracy(found[features.logits], labels)
        if recognise is not None:
            values["share_confident"] = evaluation.share_confident(recognise(images), 0.9)
        return values

    return field, features.fingerprint, measure


def _label(name: str, variance: str) -> str:
    """The name of a sampler in pictures: the run's own variance by its name."""
    own = "learned variance" if variance.startswith("learned") else variance.replace("_", " ")
    return name.replace("the run's σ", own).replace("analytic σ", "analytic variance")


def _plot(path: Path, field: str, rows, references) -> None:
    """The distances of every sampler, with their intervals where they were measured.

    rows        {sampler: {steps: its numbers}}
    references  {name: the numbers of images that no sampler drew}
    """
    cells = {
        name: sorted(row.values(), key=lambda cell: cell["evaluations"])
        for name, row in rows.items()
        if row
    }
    measured = [cell["evaluations"] for row in cells.values() for cell in row]
    ends = [min(measured), max(measured)]
    layers = [
        visualize.Line(
            ends, [row[field]] * 2, name, "#6b7078", style, band=interval_band(field, [row] * 2)
        )
        for style, (name, row) in zip(("--", ":"), references.items(), strict=True)
    ]
    for i, (name, row) in enumerate(cells.items()):
        x, y = ([cell[key] for cell in row] for key in ("evaluations", field))
        layers.append(visualize.Line(x, y, name, i, marker="o", band=interval_band(field, row)))
    banded = any(layer.band is not None for layer in layers)
    panel = visualize.Panel(
        _finding(field, cells),
        layers,
        "network evaluations per image" + (", bands: 95% intervals" if banded else ""),
        TITLES[field],
        logx=True,
        logy=True,
        legend="outside",
    )
    visualize.save_panels(path, [panel], size=(8.4, 4.2))


def _finding(field: str, cells: dict[str, list[dict[str, Any]]]) -> str:
    """Says which sampler needs the fewest evaluations to be as good as the best.

    As good is what lies within the best one's interval, or within 5 % where there is none.
    """
    every = [(cell, name) for name, row in cells.items() for cell in row]
    best = min((cell for cell, _ in every), key=lambda cell: cell[field])
    band = interval_band(field, [best])
    most = 1.05 * best[field] if band is None else band[1][0]
    fewest = min(cell["evaluations"] for cell, _ in every if cell[field] <= most)
    names = [n for cell, n in every if cell[field] <= most and cell["evaluations"] == fewest]
    near = "5% of the best" if band is None else "the error of the best"
    verb = "needs" if len(names) == 1 else "need"
    return (
        f"{' and '.join(names)} {verb} the fewest evaluations, {fewest}, to be within {near} "
        f"distance, {best[field]:.2f}"
    )


def _print_tables(rows, heldout, gaussian, columns: list[int], count: int) -> None:
    for field, what in TITLES.items():
        if field not in heldout:
            continue
        say(f"\n{what}, {count} images each")
        beside = f"; fitted Gaussian: {gaussian[field]:.3f}" if field in gaussian else ""
        say(f"({heldout['images']} held-out images: {heldout[field]:.3f}{beside})")
        say(f"{'steps':22}" + "".join(f"{s:>8}" for s in columns))
        for name, cells in rows.items():
            values = [
                f"{cells[str(s)][field]:8.3f}" if str(s) in cells else 8 * " " for s in columns
            ]
            say(f"{name:22}" + "".join(values))
    say("")


if __name__ == "__main__":
    run_program(steps_vs_quality, StepsConfig(), __doc__)
