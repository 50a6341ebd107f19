"""VAE, flow, GAN, energy model and DDPM on the same data, with equal parameters and steps.

    ddpm-jax rivals_2d

Trains each model on two densities in the plane with several seeds, and measures what each can say
about log p(x), which modes its samples cover, their distance to the data, and what a sample costs.
Writes rivals.png, rivals.md (the tables) and rivals_2d.json.

Three minutes on two idle cores, no downloads. docs/results/rivals_2d shows the results. Each model
is a module of `rivals/`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.files import write_json
from ddpm_jax.keys import example_keys, make_key
from ddpm_jax.programs.config_values import check_least
from ddpm_jax.programs.console import bar, duration, run_program, say
from ddpm_jax.programs.outputs import study_folder
from ddpm_jax.types import Array, Key
from ddpm_jax.visualize import save_panels
from rivals.data import Data, board, eight_gaussians
from rivals.ddpm import FLOW_KIND, ddpm
from rivals.energy import energy
from rivals.flow import flow
from rivals.gan import gan
from rivals.measures import energy_distance, modes_of, over_seeds
from rivals.report import figure_title, panels, table
from rivals.rival import Rival, equal_models, make_trainer, num_parameters
from rivals.vae import vae
from toy_2d import versions

PAIRS = 20
"""Pairs of true sets, whose distances show what chance alone gives."""


@dataclass(frozen=True)
class RivalsConfig:
    """Five generative models with equal parameters and equal training."""

    out: Path = Path("runs/rivals_2d")
    """Folder for rivals.png, rivals.md and rivals_2d.json."""
    seed: int = 0
    """Seed of all random numbers; all results except times depend on it alone."""
    num_seeds: int = 3
    """Trainings of each model, over which results are averaged."""
    parameters: int = 10_000
    """Parameters of each model, to within 5 %."""
    num_steps: int = 5000
    """Training steps."""
    batch_size: int = 256
    """Examples per step."""
    learning_rate: float = 1e-2
    """Adam's peak learning rate, the same for all models."""
    training_count: int = 100_000
    """True samples that all models are trained on."""
    count: int = 4000
    """Samples per training, compared with as many fresh true ones; also points for log p."""
    ode_count: int = 400
    """Points for the likelihood of the probability flow, which costs most."""
    mala_steps: int = 1000
    """Steps of MALA per sample of the energy model."""
    num_timesteps: int = 100
    """T of DDPM."""
    shown: int = 1500
    """Points per panel of the figure."""


def makers(config: RivalsConfig) -> list[Callable[[int, int], Rival]]:
    """`(dim, width) -> Rival`, in the order in which they are shown."""
    return [
        vae,
        flow,
        gan,
        functools.partial(energy, num_steps=config.mala_steps),
        functools.partial(ddpm, num_timesteps=config.num_timesteps),
    ]


def rivals_2d(config: RivalsConfig) -> dict[str, Any]:
    """Trains and measures all models, writes the files, and returns the numbers.

    Raises RunDirectoryError for a folder that cannot be used, before anything is computed, and
    ValueError for invalid sizes.
    """
    begun = time.perf_counter()
    _check(config)
    sets = [eight_gaussians(), board()]
    models = equal_models(makers(config), sets[0].dim, config.parameters)
    key_data, key_runs = jax.random.split(make_key(config.seed))
    study_folder("rivals_2d", ["rivals.png", "rivals.md"], config.out)
    studies = [make_study(model, config) for model in models]
    numbers: dict[str, Any] = {}
    samples: dict[str, dict[str, np.ndarray]] = {}
    with bar(len(models) * len(sets) * config.num_seeds, "rivals") as progress:
        for i, data in enumerate(sets):
            true = true_samples(data, jax.random.fold_in(key_data, i), config)
            numbers[data.name] = {"data": truth(data, true)}
            samples[data.name] = {"data": true[0]}
            for j, (model, study) in enumerate(zip(models, studies, strict=True)):
                progress.set_description(f"{data.name}, {model.name}")
                runs = []
                for seed in range(config.num_seeds):
                    key = jax.random.fold_in(jax.random.fold_in(key_runs, j), seed)
                    x, run = study(data, true[seed], jax.random.fold_in(key, i))
                    samples[data.name].setdefault(model.name, x)
                    runs.append(run)
                    progress.update(1)
                numbers[data.name][model.name] = {
                    "parameters": num_parameters(model),
                    "evaluations_per_sample": model.evaluations,
                    **{name: over_seeds([run[name] for run in runs]) for name in runs[0]},
                }
    title = figure_title(numbers)
    shown = {name: {m: x[: config.shown] for m, x in xs.items()} for name, xs in samples.items()}
    save_panels(
        config.out / "rivals.png",
        panels(numbers, shown),
        title=title,
        columns=1 + len(models),
        size=(2.1, 2.35),
    )
    (config.out / "rivals.md").write_text(table(numbers), encoding="utf-8")
    seconds = time.perf_counter() - begun
    write_json(
        config.out / "rivals_2d.json",
        {
            "versions": versions(),
            "device": jax.devices()[0].device_kind,
            "seconds": round(seconds, 1),
            "numbers": numbers,
            "config": {k: v for k, v in dataclasses.asdict(config).items() if k != "out"},
        },
    )
    say(f"{title}\n\n{table(numbers)}\nfiles: {config.out}   ({duration(seconds)})")
    return numbers


def _check(config: RivalsConfig) -> None:
    sizes = ("num_seeds", "num_steps", "batch_size", "training_count", "ode_count", "mala_steps")
    check_least(config, 1, *sizes, "shown")
    check_least(config, 2, "count", "num_timesteps")
    if not config.learning_rate > 0:
        raise ValueError(f"--learning-rate must be above 0, got {config.learning_rate}.")


def draw_true(data: Data, key: Key, count: int) -> Array:
    """`count` true samples [count, d]."""
    return jax.jit(data.sample)(jax.random.split(key, count))


def true_samples(data: Data, key: Key, config: RivalsConfig) -> np.ndarray:
    """Independent sets of true samples [S, count, d], S even and enough for the seeds."""
    sets = max(2 * PAIRS, config.num_seeds)
    x = draw_true(data, key, sets * config.count)
    return np.asarray(x).reshape(sets, config.count, data.dim)


def truth(data: Data, true: np.ndarray) -> dict[str, Any]:
    """What a perfect model would get: the same measures on pairs of true sets."""
    pairs = [(true[2 * i], true[2 * i + 1]) for i in range(PAIRS)]
    measured = [{"energy_distance": energy_distance(a, b), **modes_of(data, b)} for a, b in pairs]
    log_density = [float(jnp.mean(data.log_density(jnp.asarray(b)))) for _, b in pairs]
    return {
        **{name: over_seeds([run[name] for run in measured]) for name in measured[0]},
        "log p: true": over_seeds(log_density),
    }


def make_study(model: Rival, config: RivalsConfig) -> Callable[[Data, np.ndarray, Key], Any]:
    """`(data, true samples, key) -> (samples, numbers)`: one training, compiled once per model."""
    train = make_trainer(model, config.num_steps, config.batch_size, config.learning_rate)
    sample = jax.jit(model.sample)
    log_densities = {kind: jax.jit(fn) for kind, fn in model.log_density.items()}

    def study(data: Data, true: np.ndarray, key: Key) -> tuple[np.ndarray, dict[str, float]]:
        key_data, key_train, key_sample, key_density = jax.random.split(key, 4)
        params, _ = train(draw_true(data, key_data, config.training_count), key_train)
        x = np.asarray(sample(params, example_keys(key_sample, jnp.arange(config.count))))
        numbers = {"energy_distance": energy_distance(true, x), **modes_of(data, x)}
        for kind, log_density in log_densities.items():
            count = config.ode_count if kind == FLOW_KIND else config.count
            keys = example_keys(key_density, jnp.arange(count))
            log_p = log_density(params, jnp.asarray(true[:count]), keys)
            numbers[f"log p: {kind}"] = float(jnp.mean(log_p))
        return x, numbers

    return study


if __name__ == "__main__":
    run_program(rivals_2d, RivalsConfig(), __doc__)
