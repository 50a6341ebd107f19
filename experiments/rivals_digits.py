"""VAE, flow, GAN, energy model and DDPM on handwritten digits, with equal parameters and steps.

    ddpm-jax rivals_digits

The five models of `rivals_2d.py` learn scikit-learn's 8×8 digits as vectors of 64 dequantised
pixels. All networks are perceptrons, which do not know which pixels are neighbours. Measures the
code length of held-out digits where a model has one, the Fréchet distance of samples to the
training digits, how many samples a classifier recognises and which labels they cover, and what a
sample costs. Real held-out digits and a fitted Gaussian serve as references.
Writes samples.png, rivals.md (the table) and rivals_digits.json.

86 s of processor time, no downloads. docs/results/rivals_digits shows the results.
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

from ddpm_jax import evaluation
from ddpm_jax.files import write_json
from ddpm_jax.keys import example_keys, make_key
from ddpm_jax.programs.config_values import check_least
from ddpm_jax.programs.console import bar, duration, run_program, say
from ddpm_jax.programs.outputs import study_folder
from ddpm_jax.types import Array, Key
from ddpm_jax.visualize import save_rows
from rivals import digits
from rivals.ddpm import ddpm
from rivals.digits import DIM, Digits, bits, evenly, to_images, to_vectors
from rivals.energy import energy
from rivals.flow import flow
from rivals.gan import gan
from rivals.measures import over_seeds
from rivals.report import evaluations, interval, log_density_cell
from rivals.rival import Rival, equal_models, make_trainer, num_parameters
from rivals.vae import vae
from toy_2d import versions

HELDOUT, TRAINING = "bits/dim, held out: ", "bits/dim, training: "
"""How measures of the code length begin."""
MOST = 360
"""Held-out digits."""


@dataclass(frozen=True)
class RivalsDigitsConfig:
    """Five generative models of 8×8 digits with equal parameters and equal training."""

    out: Path = Path("runs/rivals_digits")
    """Folder for samples.png, rivals.md and rivals_digits.json."""
    seed: int = 0
    """Seed of all random numbers; all results except times depend on it alone."""
    num_trainings: int = 1
    """Trainings of each model."""
    num_seeds: int = 3
    """Sets of samples per training; results are averaged over all sets of a model."""
    parameters: int = 60_000
    """Parameters of each model, to within 5 %."""
    num_steps: int = 2500
    """Training steps."""
    batch_size: int = 128
    """Examples per step."""
    learning_rate: float = 3e-3
    """Adam's peak learning rate, the same for all models."""
    dequantisations: int = 40
    """Dequantised copies of every training digit, on which models are trained."""
    count: int = MOST
    """Samples per set, compared with as many held-out digits; at most 360."""
    latent: int = 16
    """Length of z in VAE and GAN."""
    penalty: float = 0.1
    """γ of the GAN's penalty."""
    sigma: float = 0.3
    """σ of the energy model's score matching."""
    mala_steps: int = 500
    """Steps of MALA per sample of the energy model."""
    mala_step_size: float = 0.05
    """ε of MALA."""
    num_timesteps: int = 100
    """T of DDPM."""
    shown: int = 20
    """Samples of each model in the picture, those of the first keys."""


def makers(config: RivalsDigitsConfig) -> list[Callable[[int, int], Rival]]:
    """`(dim, width) -> Rival`, in the order in which they are shown."""
    mala = {"num_steps": config.mala_steps, "step_size": config.mala_step_size}
    return [
        functools.partial(vae, latent=config.latent),
        flow,
        functools.partial(gan, latent=config.latent, penalty=config.penalty),
        functools.partial(energy, sigma=config.sigma, spread=1.0, denoise=True, **mala),
        # Clipped as in the paper: the first reverse steps amplify errors of ε̂ (without clipping, a
        # Fréchet distance of 55). v gave 1.4 where ε gave 1.7. One residual layer instead of two is
        # wider with as many parameters, as a layer has to pass on all 64 pixels.
        functools.partial(
            ddpm,
            num_layers=1,
            num_timesteps=config.num_timesteps,
            exact=False,
            target="v",
            clip=True,
        ),
    ]


def rivals_digits(config: RivalsDigitsConfig) -> dict[str, Any]:
    """Trains and measures all models, writes the files, and returns the numbers.

    Raises RunDirectoryError for a folder that cannot be used, before anything is computed, and
    ValueError for invalid sizes.
    """
    begun = time.perf_counter(), time.process_time()
    _check(config)
    models = equal_models(makers(config), DIM, config.parameters)
    key_data, key_runs = jax.random.split(make_key(config.seed))
    study_folder("rivals_digits", ["samples.png", "rivals.md"], config.out)
    data = digits.load(config.count)
    copies = to_vectors(np.tile(data.train, (config.dequantisations, 1, 1, 1)), key_data)
    compared = np.concatenate([data.heldout, data.train[evenly(len(data.train), config.count)]])
    numbers, images = baselines(data, copies, compared, config)
    with bar(len(models) * config.num_trainings, "rivals", unit="training") as progress:
        for i, model in enumerate(models):
            progress.set_description(model.name)
            study = make_study(model, data, copies, compared, config)
            runs = []
            for training in range(config.num_trainings):
                key = jax.random.fold_in(jax.random.fold_in(key_runs, i), training)
                for drawn, run in study(key):
                    images.setdefault(model.name, drawn)
                    runs.append(run)
                progress.update(1)
            numbers[model.name] = {
                "parameters": num_parameters(model),
                "evaluations_per_sample": model.evaluations,
                **{name: over_seeds([run[name] for run in runs]) for name in runs[0]},
            }
    save_rows(
        config.out / "samples.png",
        np.stack([drawn[: config.shown] for drawn in images.values()]),
        row_labels=[row_label(name, numbers[name]) for name in images],
    )
    (config.out / "rivals.md").write_text(table(numbers), encoding="utf-8")
    wall, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
    write_json(
        config.out / "rivals_digits.json",
        {
            "versions": versions(),
            "device": jax.devices()[0].device_kind,
            "seconds": round(wall, 1),
            "processor_seconds": round(cpu, 1),
            "numbers": numbers,
            "config": {k: v for k, v in dataclasses.asdict(config).items() if k != "out"},
        },
    )
    say(f"{table(numbers)}\nfiles: {config.out}   ({duration(wall)}, {duration(cpu)} of CPU)")
    return numbers


def _check(config: RivalsDigitsConfig) -> None:
    counts = ("num_trainings", "num_seeds", "num_steps", "mala_steps", "shown")
    sizes = ("batch_size", "dequantisations", "latent")
    check_least(config, 1, *counts, *sizes)
    check_least(config, 2, "count", "num_timesteps")
    for name, most in (("count", MOST), ("shown", config.count)):
        if getattr(config, name) > most:
            raise ValueError(f"--{name} must be at most {most}, got {getattr(config, name)}.")
    for name in ("learning_rate", "sigma", "mala_step_size"):
        if not getattr(config, name) > 0:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be above 0, got {getattr(config, name)}.")


def judged(data: Digits, images: np.ndarray) -> dict[str, float]:
    """The measures of samples [N, 8, 8, 1] of any origin."""
    return {"frechet": data.distance(images), **data.labels(images)}


def code_lengths(kind: str, log_p: Any) -> dict[str, float]:
    """Bits per dimension of held-out and of training digits, the two halves of log p [2N]."""
    heldout, train = np.split(np.asarray(log_p), 2)
    return {HELDOUT + kind: bits(heldout), TRAINING + kind: bits(train)}


def baselines(
    data: Digits, copies: Array, compared: np.ndarray, config: RivalsDigitsConfig
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Numbers and images of held-out digits and of a fitted Gaussian.

    The held-out digits are one set: the interval of their distance is a bootstrap's.
    """
    found = evaluation.bootstrap_interval(data.distance, [data.heldout], seed=config.seed)
    numbers: dict[str, Any] = {
        "held-out digits": {
            **{name: over_seeds([value]) for name, value in judged(data, data.heldout).items()},
            "frechet": {"mean": found.estimate, "lowest": found.low, "highest": found.high},
        }
    }
    gaussian, runs = digits.fitted_gaussian(np.asarray(copies, np.float64)), []
    images = {"held-out digits": data.heldout[np.random.default_rng(0).permutation(config.count)]}
    for seed in range(config.num_seeds):
        begun = time.process_time()
        x = gaussian.rvs(config.count, random_state=seed)
        ms = 1e3 * (time.process_time() - begun) / config.count
        images.setdefault("Gaussian", to_images(x))
        vectors = to_vectors(compared, jax.random.fold_in(make_key(config.seed), seed))
        log_p = gaussian.logpdf(np.asarray(vectors, np.float64))
        runs.append(
            {**judged(data, to_images(x)), **code_lengths("exact", log_p), "ms_per_sample": ms}
        )
    numbers["Gaussian"] = {
        "parameters": DIM + DIM * (DIM + 1) // 2,
        **{name: over_seeds([run[name] for run in runs]) for name in runs[0]},
    }
    return numbers, images


def make_study(
    model: Rival, data: Digits, copies: Array, compared: np.ndarray, config: RivalsDigitsConfig
) -> Callable[[Key], list[tuple[np.ndarray, dict[str, float]]]]:
    """`key -> [(images, numbers), …]`: a training and its sets of samples, compiled once."""
    train = make_trainer(model, config.num_steps, config.batch_size, config.learning_rate)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    some_keys = example_keys(jax.random.key(0), jnp.arange(config.count))
    # Compiled ahead, so that the time of a sample is that of sampling.
    sample = jax.jit(model.sample).lower(shapes, some_keys).compile()
    log_densities = {kind: jax.jit(fn) for kind, fn in model.log_density.items()}

    def study(key: Key) -> list[tuple[np.ndarray, dict[str, float]]]:
        key_train, *keys = jax.random.split(key, 1 + config.num_seeds)
        params, _ = jax.block_until_ready(train(copies, key_train))
        return [measure(params, key) for key in keys]

    def measure(params, key: Key) -> tuple[np.ndarray, dict[str, float]]:
        key_sample, key_vectors, key_density = jax.random.split(key, 3)
        keys = jax.block_until_ready(example_keys(key_sample, jnp.arange(config.count)))
        begun = time.process_time()
        x = jax.block_until_ready(sample(params, keys))
        ms = 1e3 * (time.process_time() - begun) / config.count
        images = to_images(np.asarray(x))
        numbers = {**judged(data, images), "ms_per_sample": ms}
        vectors = to_vectors(compared, key_vectors)
        density_keys = example_keys(key_density, jnp.arange(len(vectors)))
        for kind, log_density in log_densities.items():
            numbers |= code_lengths(kind, log_density(params, vectors, density_keys))
        return images, numbers

    return study


def row_label(name: str, row: dict[str, Any]) -> str:
    """The name, the cost of a sample, and its Fréchet distance."""
    cost = f", {evaluations(row['evaluations_per_sample'])}" if name not in PLAIN else ""
    return f"{name}{cost}\nFréchet distance {row['frechet']['mean']:.2f}"


PLAIN = ("held-out digits", "Gaussian")
"""Rows without a network."""


def table(numbers: dict[str, Any]) -> str:
    """The numbers as a Markdown table."""
    lines = [
        "| model | parameters | bits/dim of held-out digits | of training digits "
        "| Fréchet distance | recognised | labels covered | error of the labels' shares "
        "| evaluations per sample | CPU ms per sample |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in numbers.items():
        off = row["share_off_modes"]
        ends = {"mean": "mean", "lowest": "highest", "highest": "lowest"}
        recognised = {end: 1.0 - off[other] for end, other in ends.items()}
        real = name == "held-out digits"
        cells = [
            name,
            str(row.get("parameters", "")),
            "" if real else log_density_cell(row, HELDOUT, "≤"),
            "" if real else log_density_cell(row, TRAINING, "≤"),
            interval(row["frechet"], 2),
            interval(recognised, 2),
            interval(row["share_of_modes_covered"], 2),
            interval(row["weight_error"], 3),
            str(row.get("evaluations_per_sample", "")),
            interval(row["ms_per_sample"], 3) if "ms_per_sample" in row else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_program(rivals_digits, RivalsDigitsConfig(), __doc__)
