"""Sample quality against the number of steps, for every sampler: DDIM's Table 1.

    python experiments/steps_vs_quality.py --run-dir runs/digits

Song, Meng, Ermon 2020 (arXiv 2010.02502, Table 1), with the samplers that came after it: analytic
variances (2201.06503), DPM-Solver++ (2211.01095), Heun on EDM's grid (2206.00364). Quality is the
Fréchet distance of pixels, which needs no network and suits small images.

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
from ddpm_jax.programs.config import SamplerOptions
from ddpm_jax.programs.console import bar, run_program, say
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


@dataclass(frozen=True)
class StepsConfig(RunOptions):
    """Sample quality against the number of steps."""

    steps: tuple[int, ...] = (5, 10, 20, 50)
    """Numbers of steps below T (others are left out); T itself is added."""
    count: int = 200
    """Images per cell; more images lower the Fréchet distance, so compare equal counts only."""
    batch_size: int = 200
    """Images at a time."""
    show: int = 10
    """Images per cell in the picture."""


class StepsResult(NamedTuple):
    """What the study made.

    pictures  {(sampler, steps): uint8 [show, H, W, C]}
    rows      {sampler: {steps: its numbers}}, steps as text
    heldout   the same numbers of held-out images
    files     what was written
    """

    pictures: dict[tuple[str, int], np.ndarray]
    rows: dict[str, dict[str, Any]]
    heldout: dict[str, float]
    files: list[Path]


def steps_vs_quality(config: StepsConfig) -> StepsResult:
    """Samples every cell; writes steps_vs_quality.json, quality.png and samples.png.

    Raises ValueError for invalid options, and whatever `TrainedRun` raises.
    """
    if config.count < 2 or config.batch_size < 1 or config.show < 1:
        raise ValueError(
            "--count must be at least 2, --batch-size and --show at least 1, got "
            f"{config.count}, {config.batch_size} and {config.show}."
        )
    if not config.steps or min(config.steps) < 1:
        raise ValueError(f"--steps needs numbers of at least 1, got {config.steps}.")
    run = TrainedRun(config)
    need_pictures(run, "steps_vs_quality")
    real = run.need_heldout(2).images[: config.count]
    out = run.folder("steps_vs_quality")
    T = run.model.schedule.num_timesteps
    columns = sorted({s for s in config.steps if s < T})
    cells = [(name, s) for name in SAMPLERS for s in columns] + [(name, T) for name in FULL]
    samplers = {}
    for name, s in cells:
        options = dataclasses.replace(SAMPLERS[name], num_steps=s if s < T else None)
        samplers[name, s] = run.sampler(options)
    measure = _measure_of(run)
    network = _network(run)
    work = sum(_evaluations(name, s) for name, s in cells) * config.count
    rows: dict[str, dict[str, Any]] = {name: {} for name in SAMPLERS}
    pictures = {}
    with bar(work, "sampling", unit="img·evaluation") as progress:
        for (name, s), sampler in samplers.items():
            images = _draw(run, network, sampler, config)
            pictures[name, s] = images[: config.show]
            rows[name][str(s)] = {"evaluations": _evaluations(name, s), **measure(images)}
            progress.update(_evaluations(name, s) * config.count)
    heldout = {"images": len(real), **measure(real)}
    files = [out / "steps_vs_quality.json", out / "quality.png"]
    write_json(
        files[0],
        {**run.provenance(), "images_per_cell": config.count, "held out": heldout, "rows": rows},
    )
    _plot(files[1], rows, heldout)
    widest = columns[-1] if columns else T
    shown = [(name, s) for name in SAMPLERS for s in {min(10, widest), widest} if s in columns]
    if shown:
        shown.sort(key=lambda cell: (cell[1], list(SAMPLERS).index(cell[0])))
        files.append(out / "samples.png")
        visualize.save_rows(
            files[-1],
            np.stack([pictures[cell] for cell in shown]),
            row_labels=[f"{name}, {s} steps" for name, s in shown],
        )
    _print_tables(rows, heldout, [*columns, T], config.count)
    for path in files:
        say(f"  {path}")
    return StepsResult(pictures, rows, heldout, files)


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


def _measure_of(run: TrainedRun) -> Callable[[np.ndarray], dict[str, float]]:
    """Returns the measure of a set of images: its Fréchet distance to the training set, in pixels.

    For digits also the share of images that a classifier is more than 90 % sure of.
    """
    train = run.train_data
    pixels = evaluation.pixel_features
    truth = evaluation.moments_of(train.images, pixels, batch_size=4096)["features"]
    classify = None
    if run.config.data.name == "digits":
        classify = evaluation.fit_classifier(train.images, train.labels)

    def measure(images: np.ndarray) -> dict[str, float]:
        found = evaluation.moments(pixels(images))
        values = {"frechet_pixels": evaluation.frechet_distance(truth, found)}
        if classify is not None:
            values["share_confident"] = evaluation.share_confident(classify(images), 0.9)
        return values

    return measure


def _plot(path: Path, rows: dict[str, dict[str, Any]], heldout: dict[str, float]) -> None:
    curves: dict[str, Any] = {}
    best = ("", {"evaluations": 0, "frechet_pixels": np.inf})
    for name, cells in rows.items():
        ordered = sorted(cells.values(), key=lambda cell: cell["evaluations"])
        x = [cell["evaluations"] for cell in ordered]
        curves[name] = (x, [cell["frechet_pixels"] for cell in ordered])
        best = min([best, *((name, cell) for cell in ordered)], key=_distance)
    visualize.save_curves(
        path,
        curves,
        "network evaluations per image",
        "Fréchet distance of pixels to the training set",
        logx=True,
        logy=True,
        levels={"held-out images": heldout["frechet_pixels"]},
        title=f"{best[0]} comes closest: {_distance(best):.2f} in {best[1]['evaluations']} "
        "evaluations",
    )


def _distance(cell: tuple[str, dict[str, Any]]) -> float:
    return cell[1]["frechet_pixels"]


def _print_tables(rows, heldout: dict[str, float], columns: list[int], count: int) -> None:
    for field, what in (
        ("frechet_pixels", "Fréchet distance of pixels to the training set"),
        ("share_confident", "share of images a classifier is > 90 % sure of"),
    ):
        if field not in heldout:
            continue
        say(f"\n{what}, {count} images each")
        say(f"({heldout['images']} held-out images: {heldout[field]:.3f})")
        say(f"{'steps':22}" + "".join(f"{s:>8}" for s in columns))
        for name, cells in rows.items():
            values = [
                f"{cells[str(s)][field]:8.3f}" if str(s) in cells else 8 * " " for s in columns
            ]
            say(f"{name:22}" + "".join(values))
    say("")


if __name__ == "__main__":
    run_program(steps_vs_quality, StepsConfig(), __doc__)
