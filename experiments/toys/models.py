"""DDPM and NCSN on one density, with one network and as many evaluations of it per sample.

DDPM learns the noise of every step and samples by its ancestral chain (Ho et al. 2020). NCSN learns
the score of every noise level and samples by annealed Langevin dynamics (Song, Ermon 2019). Both
losses are denoising score matching; the processes, weightings and samplers differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist

from ddpm_jax.denoisers.denoiser import make_denoiser
from ddpm_jax.forward import cosine_schedule
from ddpm_jax.keys import fold_in_each, normal_per_example, split_each
from ddpm_jax.losses import simple_loss
from ddpm_jax.samplers import ancestral, initial_noise, sample
from ddpm_jax.score import (
    annealed_langevin_chains,
    geometric_noise_levels,
    langevin_step_size,
    ncsn_loss,
)
from ddpm_jax.types import Key
from ddpm_jax.visualize import Panel, Points
from toys.densities import checkerboard
from toys.figure import Figure, draw
from toys.fit import FitConfig, OnProgress, fit, init_params

CELLS = 4
HALF_WIDTH = 2.0
DENSITY = checkerboard(CELLS, HALF_WIDTH)
VARIANCE = HALF_WIDTH**2 / 3.0
"""Approximate variance of each coordinate, by which NCSN's input is scaled."""


@dataclass(frozen=True)
class ModelsConfig:
    """DDPM and NCSN on a checkerboard."""

    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            num_steps=5000, batch_size=512, features=128, num_layers=3
        )
    )
    """Training, the same for both."""
    num_timesteps: int = 200
    """DDPM's T, on the cosine schedule: with so few steps the linear one blurs the edges."""
    num_levels: int = 20
    """NCSN's noise levels, with T/levels steps each."""
    sigma_max: float = 4.0
    """NCSN's first level; the board is 4 across."""
    sigma_min: float = 0.02
    """NCSN's last level."""
    count: int = 4000
    """Samples of each model."""
    floors: int = 10
    """Pairs of data sets, whose mean distance is the reference."""


def make_figure(config: ModelsConfig, key: Key, on_progress: OnProgress) -> Figure:
    """Trains and samples both, and measures their distances to the data."""
    key_params, key_fit, key_sample, key_data = jax.random.split(key, 4)
    start = init_params(config.fit, key_params, 2)
    x = {"data": np.asarray(draw(DENSITY.sample, key_data, config.count))}
    for name, make in (("ddpm", _ddpm), ("ncsn", _ncsn)):
        loss_fn, sample_fn = make(config)
        params = fit(loss_fn, start, key_fit, config.fit, on_progress=on_progress).params
        x[name] = np.asarray(draw(lambda keys: sample_fn(params, keys), key_sample, config.count))  # noqa: B023
        on_progress(_sampling_work(config))
    fresh = np.asarray(
        draw(DENSITY.sample, jax.random.fold_in(key_data, 1), 2 * config.floors * config.count)
    ).reshape(config.floors, 2, config.count, 2)
    floor = [energy_distance(a, b) for a, b in fresh]
    distance = {name: energy_distance(x["data"], x[name]) for name in ("ddpm", "ncsn")}
    inside = {name: share_inside(value) for name, value in x.items()}
    numbers = {
        "energy_distance": {
            "data_to_data_mean": float(np.mean(floor)),
            "data_to_data_largest": float(np.max(floor)),
            "pairs": config.floors,
            **distance,
        },
        "share_on_the_squares": inside,
        "samples": config.count,
        "network_evaluations_per_sample": {
            "ddpm": config.num_timesteps,
            "ncsn": config.num_levels * _steps_per_level(config) + 1,
        },
    }
    titles = {
        "data": f"Data: distance {np.mean(floor):.4f} to other data",
        "ddpm": f"DDPM, ancestral: {distance['ddpm']:.4f}",
        "ncsn": f"NCSN, annealed Langevin: {distance['ncsn']:.4f}",
    }
    limits = (-1.25 * HALF_WIDTH, 1.25 * HALF_WIDTH)
    panels = [
        Panel(
            f"{title}\n{inside[name]:.1%} on the squares",
            [Points(x[name], 0 if name == "data" else 1 if name == "ddpm" else 2, 2.0)],
            xlim=limits,
            ylim=limits,
            equal=True,
        )
        for name, title in titles.items()
    ]
    title = (
        f"With {config.num_timesteps} evaluations per sample, DDPM and NCSN come within "
        f"{distance['ddpm']:.4f} and {distance['ncsn']:.4f} of the data"
    )
    return Figure(title, panels, numbers, size=(3.1, 3.3))


def _ddpm(config: ModelsConfig):
    net: Any = config.fit.network()
    T = config.num_timesteps
    schedule = cosine_schedule(T)

    def loss_fn(params, keys):
        x_keys, t_keys, noise_keys = split_each(keys, 3)
        t = jax.vmap(lambda key: jax.random.randint(key, (), 0, T))(t_keys)
        noise = normal_per_example(noise_keys, (2,))
        apply_fn = lambda x_t, t: net.apply(params, x_t, t)  # noqa: E731
        return simple_loss(schedule, apply_fn, DENSITY.sample(x_keys), t, noise)

    def sample_fn(params, keys):
        denoise = make_denoiser(schedule, lambda x, t: net.apply(params, x, t), clip=False)
        x_T = initial_noise(keys, (2,))
        return sample(ancestral(schedule, variance="fixed_small"), denoise, x_T, keys=keys)

    return loss_fn, sample_fn


def _ncsn(config: ModelsConfig):
    net: Any = config.fit.network()
    sigmas = geometric_noise_levels(config.sigma_max, config.sigma_min, config.num_levels)
    steps_per_level = _steps_per_level(config)

    def score(params, x, level):
        """-ε̂/σ, ε̂ of order one at every level (NCSNv2, Technique 3)."""
        sigma = sigmas[level][:, None]
        # Levels are as far apart in the embedding as all of DDPM's steps.
        t = level * (config.num_timesteps // config.num_levels)
        return -net.apply(params, x / jnp.sqrt(VARIANCE + jnp.square(sigma)), t) / sigma

    def loss_fn(params, keys):
        x_keys, level_keys, noise_keys = split_each(keys, 3)
        level = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(sigmas)))(level_keys)
        noise = normal_per_example(noise_keys, (2,))
        score_fn = lambda x, level: score(params, x, level)  # noqa: E731
        return ncsn_loss(score_fn, DENSITY.sample(x_keys), level, noise, sigmas)

    def sample_fn(params, keys):
        return annealed_langevin_chains(
            lambda x, level: score(params, x, level),
            sigmas[0] * normal_per_example(fold_in_each(keys, 0), (2,)),
            sigmas,
            step_size=langevin_step_size(sigmas, steps_per_level),
            steps_per_level=steps_per_level,
            keys=keys,
        ).x

    return loss_fn, sample_fn


def _steps_per_level(config: ModelsConfig) -> int:
    return max(1, config.num_timesteps // config.num_levels)


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """2 E‖A - B‖ - E‖A - A'‖ - E‖B - B'‖ over all pairs of rows of a [N, d] and b [M, d].

    It is at least 0, and 0 for equal sets. For two sets drawn from one density it is about
    E‖A - A'‖ (1/N + 1/M) (Székely, Rizzo 2013).
    """
    return float(2.0 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean())


def share_inside(x: np.ndarray) -> float:
    """The share of points [N, 2] that lie on the squares of the data."""
    cell = np.floor((x + HALF_WIDTH) / (2.0 * HALF_WIDTH / CELLS)).astype(int)
    on_board = ((cell >= 0) & (cell < CELLS)).all(axis=1)
    return float(np.mean(on_board & (cell.sum(axis=1) % 2 == 0)))


def _sampling_work(config: ModelsConfig) -> int:
    return max(1, config.fit.num_steps // 10)


def work(config: ModelsConfig) -> int:
    """Units of progress."""
    return 2 * (config.fit.num_steps + _sampling_work(config))
