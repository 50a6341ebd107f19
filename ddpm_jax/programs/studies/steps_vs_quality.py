"""Quality against the number of steps, for every sampler: Table 1 of DDIM, for any trained run.

The network is compiled once and all samplers step outside of it: on small images compiling each
sampler for each number of steps would take longer than sampling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import evaluation, visualize
from ddpm_jax.files import write_json
from ddpm_jax.forward.pixels import to_pixels
from ddpm_jax.keys import example_keys
from ddpm_jax.programs.config import SamplerOptions
from ddpm_jax.programs.console import bar, say
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
"""What is also run on all T steps."""


@dataclass(frozen=True)
class StepsConfig(RunOptions):
    """Quality against the number of steps."""

    steps: tuple[int, ...] = (5, 10, 20, 50)
    """Numbers of steps; those of T or more are left out, and T itself is added."""
    count: int = 200
    """Images a cell; the Fréchet distance falls as they get more, so compare equal counts only."""
    batch_size: int = 200
    """Images at a time."""
    show: int = 10
    """Images a cell in the picture."""


def steps_vs_quality(config: StepsConfig) -> None:
    """Samples every cell, and writes steps_vs_quality.json, quality.png and samples.png.

    Raises ValueError for flags no sampler could use, RunDirectoryError and others as `TrainedRun`.
    """
    if config.count < 2 or config.batch_size < 1 or config.show < 1:
        raise ValueError(
            "--count must be at least 2, --batch-size and --show at least 1, got "
            f"{config.count}, {config.batch_size} and {config.show}."
        )
    if not config.steps or min(config.steps) < 1:
        raise ValueError(f"--steps must name numbers of steps from 1, got {config.steps}.")
    run = TrainedRun(config)
    out = run.folder("steps_vs_quality")
    T = run.model.schedule.num_timesteps
    columns = sorted({s for s in config.steps if s < T})
    cells = [(name, s) for name in SAMPLERS for s in columns] + [(name, T) for name in FULL]
    samplers = {}
    for name, s in cells:
        options = dataclasses.replace(SAMPLERS[name], num_steps=s if s < T else None)
        samplers[name, s] = run.sampler(options)
    judge = _judge(run, config)
    network = _network(run)
    work = sum(_evaluations(name, s) for name, s in cells) * config.count
    rows: dict[str, dict[str, Any]] = {name: {} for name in SAMPLERS}
    pictures = {}
    with bar(work, "sampling", unit="img·evaluation") as progress:
        for (name, s), sampler in samplers.items():
            images = _draw(run, network, sampler, config)
            pictures[name, s] = images[: config.show]
            rows[name][str(s)] = {"evaluations": _evaluations(name, s), **judge(images)}
            progress.update(_evaluations(name, s) * config.count)
    real = run.heldout_data.images[: config.count]
    floor = {"images": len(real), **judge(real)}
    write_json(
        out / "steps_vs_quality.json",
        {**run.provenance(), "images_per_cell": config.count, "held out": floor, "rows": rows},
    )
    _plot(out, rows, floor)
    widest = columns[-1] if columns else T
    shown = [(name, s) for name in SAMPLERS for s in {min(10, widest), widest} if s in columns]
    if shown:
        shown.sort(key=lambda cell: (cell[1], list(SAMPLERS).index(cell[0])))
        visualize.save_rows(
            out / "samples.png",
            np.stack([pictures[cell] for cell in shown]),
            row_labels=[f"{name}, {s} steps" for name, s in shown],
        )
    _tell(rows, floor, [*columns, T], config.count)
    for name in ("steps_vs_quality.json", "quality.png", "samples.png"):
        if (out / name).exists():
            say(f"  {out / name}")


def _evaluations(name: str, steps: int) -> int:
    """Network evaluations of a sampler for one image."""
    return 2 * steps - 1 if name == "Heun" else steps


def _network(run: TrainedRun) -> Callable[..., Any]:
    """The run's denoiser as one compiled function of (x_t, t, labels)."""
    compiled = jax.jit(lambda params, x_t, t, labels: run.model.denoiser_of(params, labels)(x_t, t))
    return lambda x_t, t, labels: compiled(run.params, x_t, t, labels)


def _draw(
    run: TrainedRun, network: Callable[..., Any], sampler: Sampler, config: StepsConfig
) -> np.ndarray:
    """uint8 images [count, H, W, C]; image i is a function of the seed and i, as everywhere."""
    size = min(config.batch_size, config.count)
    labels = run.model.cycled_labels(config.count)
    images = []
    for first in range(0, config.count, size):
        real = min(size, config.count - first)
        index = jnp.arange(first, first + size, dtype=jnp.uint32)
        keys = example_keys(jax.random.key(config.seed), index)
        given = None if labels is None else np.resize(labels[first : first + real], size)
        x = initial_noise(keys, run.model.image_shape)
        state = sampler.init(x)
        for t in np.asarray(grid_steps(sampler)):
            noise = step_noise(keys, t, x, sampler.num_draws) if sampler.stochastic else None
            steps = jnp.full((size,), t)
            result = sampler.step(lambda x, t: network(x, t, given), x, steps, noise, state)  # noqa: B023
            x, state = result.x, result.state
        images.append(np.asarray(to_pixels(x))[:real])
    return np.concatenate(images)


def _judge(run: TrainedRun, config: StepsConfig) -> Callable[[np.ndarray], dict[str, float]]:
    """What a set of images is measured by: the Fréchet distance of pixels to the training set, and
    for digits the share that a classifier is sure of."""
    train = run.train_data
    pixels = evaluation.pixel_features
    truth = evaluation.moments_of(train.images, pixels, batch_size=4096)["features"]
    classify = None
    if run.config.data.name == "digits":
        classify = evaluation.fit_classifier(train.images, train.labels)

    def judge(images: np.ndarray) -> dict[str, float]:
        found = evaluation.moments(pixels(images))
        values = {"frechet_pixels": evaluation.frechet_distance(truth, found)}
        if classify is not None:
            values["share_confident"] = evaluation.share_confident(classify(images), 0.9)
        return values

    return judge


def _plot(out, rows: dict[str, dict[str, Any]], floor: dict[str, float]) -> None:
    curves: dict[str, Any] = {}
    for name, cells in rows.items():
        ordered = sorted(cells.values(), key=lambda cell: cell["evaluations"])
        x = [cell["evaluations"] for cell in ordered]
        curves[name] = (x, [cell["frechet_pixels"] for cell in ordered])
    ends = [
        min(x for c in curves.values() for x in c[0]),
        max(x for c in curves.values() for x in c[0]),
    ]
    curves["held-out images"] = (ends, [floor["frechet_pixels"]] * 2)
    visualize.save_curves(
        out / "quality.png",
        curves,
        "network evaluations an image",
        "Fréchet distance of pixels to the training set",
        logx=True,
        logy=True,
        title="Quality against the number of steps",
    )


def _tell(rows, floor: dict[str, float], columns: list[int], count: int) -> None:
    for field, what in (
        ("frechet_pixels", "Fréchet distance of pixels to the training set"),
        ("share_confident", "share of images a classifier is > 90 % sure of"),
    ):
        if field not in floor:
            continue
        say(f"\n{what}, {count} images each")
        say(f"(that of {floor['images']} held-out images is {floor[field]:.3f})")
        say(f"{'steps':22}" + "".join(f"{s:>8}" for s in columns))
        for name, cells in rows.items():
            values = [
                f"{cells[str(s)][field]:8.3f}" if str(s) in cells else 8 * " " for s in columns
            ]
            say(f"{name:22}" + "".join(values))
    say("")
