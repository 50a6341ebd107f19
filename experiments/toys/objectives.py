"""Exact, sliced and denoising score matching learn the same field, at different costs per step.

All are trained on the same blurred density, whose score minimises each of them. The trace in the
exact objective takes d products with the Jacobian of the score, the other objectives one or none:
only they are affordable for images.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.keys import normal_per_example, split_each
from ddpm_jax.score import (
    denoising_score_matching,
    exact_score_matching,
    projections,
    sliced_score_matching,
)
from ddpm_jax.types import Array, Key
from ddpm_jax.visualize import Line, Panel
from toys.densities import gaussian_mixture
from toys.figure import Figure, arrows, draw, plane, rms, shade, squared_norms
from toys.fit import FitConfig, OnProgress, fit, init_params, score_network

HALF_WIDTH = 2.8
CENTRES = 1.5 * np.array([[0.0, 1.0], [0.75**0.5, -0.5], [-(0.75**0.5), -0.5]])
DENSITY = gaussian_mixture([0.5, 0.3, 0.2], CENTRES, 0.4)
SCALE = 0.5
"""The network's input is divided by this: wider inputs let it learn finer detail."""
OBJECTIVES = ("exact", "sliced", "sliced, reduced variance", "denoising")
TIMED = ("exact", "sliced, reduced variance", "denoising")


@dataclass(frozen=True)
class ObjectivesConfig:
    """One network, four objectives, and their cost against the dimension."""

    fit: FitConfig = field(default_factory=lambda: FitConfig(num_steps=2000))
    """Training, the same for all."""
    sigma: float = 0.3
    """Noise of the density that all are trained on."""
    count: int = 4000
    """Samples that errors are averaged over."""
    dims: tuple[int, ...] = (2, 6, 20, 60, 200)
    """Dimensions in which a step is timed."""
    timed_batch: int = 128
    """Batch size of a timed step."""
    timed_features: int = 128
    """Width of the timed network."""
    repeats: int = 25
    """Timed steps, of which the median counts."""


def objective(name: str, score_fn: Callable[[Array], Array], x: Array, keys: Key, sigma: float):
    """The loss [B] at clean data x [B, d]; the first three see x + σz as their data."""
    noise_keys, v_keys = split_each(keys, 2)
    noise = normal_per_example(noise_keys, x.shape[1:])
    if name == "denoising":
        return denoising_score_matching(score_fn, x, noise, sigma)
    noisy = x + sigma * noise
    if name == "exact":
        return exact_score_matching(score_fn, noisy)
    v = projections(v_keys, 1, x.shape[1:])
    return sliced_score_matching(score_fn, noisy, v, variance_reduced=name != "sliced")


def make_figure(config: ObjectivesConfig, key: Key, on_progress: OnProgress) -> Figure:
    """Trains with each objective, and times each."""
    key_params, key_fit, key_data = jax.random.split(key, 3)
    sigma = config.sigma
    start = init_params(config.fit, key_params, 2)
    x = draw(lambda keys: _noisy(keys, sigma), key_data, config.count)
    true_score = jax.jit(DENSITY.score)
    true = true_score(x, sigma)
    size = rms(squared_norms(true))

    def relative_error(params):
        missed = score_network(config.fit, params, SCALE)(x) - true
        return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(missed), axis=1))) / size

    fitted = {}
    for name in OBJECTIVES:

        def loss_fn(params, keys, name=name):
            x_keys, loss_keys = split_each(keys, 2)
            score_fn = score_network(config.fit, params, SCALE)
            return objective(name, score_fn, DENSITY.sample(x_keys), loss_keys, sigma)

        fitted[name] = fit(
            loss_fn, start, key_fit, config.fit, watch=relative_error, on_progress=on_progress
        )
    seconds = {name: [] for name in TIMED}
    for dim in config.dims:
        for name in TIMED:
            seconds[name].append(seconds_per_step(config, name, dim, key_fit))
        on_progress(_timing_work(config))
    errors = {name: float(f.watched[-1]) for name, f in fitted.items()}
    numbers = {
        "relative_score_error": errors,
        "sigma": sigma,
        "dims": list(config.dims),
        "seconds_per_step": seconds,
        "repeats": config.repeats,
        "batch_size": config.timed_batch,
    }
    coarse = plane(HALF_WIDTH, 12)
    shown = ("exact", "sliced, reduced variance", "denoising")
    fields = {f"True score, blurred by σ = {sigma:g}": np.asarray(true_score(coarse, sigma))}
    for name, label in zip(shown, ("Exact", "Sliced", "Denoising"), strict=True):
        learned = jax.jit(score_network(config.fit, fitted[name].params, SCALE))
        fields[f"{label}: error {errors[name]:.2f}"] = np.asarray(learned(coarse))
    p = np.exp(jax.jit(DENSITY.log_density)(plane(HALF_WIDTH, 170), sigma))
    p = np.ceil(8.0 * p / p.max())  # few shades: contours, and a small file
    panels = [_field_panel(title, p, coarse, vectors) for title, vectors in fields.items()]
    panels += [
        Panel(
            "Error while training",
            [
                Line(f.steps, f.watched, name, i, marker="o" if i == 0 else "", width=1.4)
                for i, (name, f) in enumerate(fitted.items())
            ],
            xlabel="training step",
            ylabel="relative error of the score",
            logy=True,
            legend="upper right",
        ),
        Panel(
            "Time per step against dimension",
            [
                Line(
                    config.dims,
                    [1e3 * s for s in seconds[name]],
                    name.split(",")[0],
                    OBJECTIVES.index(name),
                    marker="o",
                )
                for name in TIMED
            ],
            xlabel="dimension d",
            ylabel="ms per training step",
            logx=True,
            logy=True,
            legend="upper left",
        ),
    ]
    slower = seconds["exact"][-1] / seconds["denoising"][-1]
    title = (
        f"Three objectives learn one score; at d = {config.dims[-1]} exact takes {slower:.0f} "
        "times as long"
    )
    return Figure(title, panels, numbers, columns=3, size=(2.6, 2.65))


def _noisy(keys: Key, sigma: float) -> Array:
    x_keys, noise_keys = split_each(keys, 2)
    return DENSITY.sample(x_keys) + sigma * normal_per_example(noise_keys, (2,))


def seconds_per_step(config: ObjectivesConfig, name: str, dim: int, key: Key) -> float:
    """The median time of a loss and its gradient in `dim` dimensions, without compilation."""
    size = FitConfig(features=config.timed_features)
    key_params, key_data = jax.random.split(jax.random.fold_in(key, dim))
    params = init_params(size, key_params, dim)
    x, noise, v = jax.random.normal(key_data, (3, config.timed_batch, dim))

    # Noise and directions are drawn outside: that cost grows with d for all objectives alike.
    @jax.jit
    def step(params):
        def mean_loss(params):
            score_fn = score_network(size, params)
            if name == "exact":
                loss = exact_score_matching(score_fn, x)
            elif name == "denoising":
                loss = denoising_score_matching(score_fn, x, noise, config.sigma)
            else:
                loss = sliced_score_matching(score_fn, x, v[None], variance_reduced=True)
            return jnp.mean(loss)

        return jax.grad(mean_loss)(params)

    jax.block_until_ready(step(params))
    times = []
    for _ in range(config.repeats):
        begun = time.perf_counter()
        jax.block_until_ready(step(params))
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


def _field_panel(title: str, p: np.ndarray, points: Array, vectors: np.ndarray) -> Panel:
    limits = (-HALF_WIDTH, HALF_WIDTH)
    layers = [shade(p, HALF_WIDTH, colours="Oranges"), arrows(points, vectors, 0.08, 0.45)]
    return Panel(title, layers, xlim=limits, ylim=limits, equal=True)


def _timing_work(config: ObjectivesConfig) -> int:
    return max(1, config.fit.num_steps // 10)


def work(config: ObjectivesConfig) -> int:
    """Units of progress."""
    return len(OBJECTIVES) * config.fit.num_steps + len(config.dims) * _timing_work(config)
