"""Langevin dynamics with the exact score gets the weights of far modes wrong (NCSN §3.2.2, Fig. 3).

If p = w p_1 + (1-w) p_2 and the supports hardly overlap, ∇ log p is that of one part alone and does
not depend on w. A chain stays in the mode in whose basin it started. Annealed Langevin dynamics
starts at a noise level that joins the modes, and the weights settle before the modes separate.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.keys import example_keys, fold_in_each
from ddpm_jax.score import annealed_langevin_chains, geometric_noise_levels, langevin
from ddpm_jax.types import Array, Key
from ddpm_jax.visualize import Line, Panel, Points
from toys.densities import two_gaussians
from toys.figure import Figure, draw, plane, shade
from toys.fit import OnProgress

HALF_WIDTH = 8.0


@dataclass(frozen=True)
class MixingConfig:
    """Two samplers of two Gaussians, with equally many evaluations of the exact score."""

    count: int = 2000
    """Chains, started uniformly on the square."""
    minor_weight: float = 0.2
    """The share of the smaller Gaussian."""
    step_size: float = 0.1
    """Step size of plain Langevin dynamics; the Gaussians have variance 1."""
    num_levels: int = 20
    """Noise levels of annealed Langevin dynamics."""
    steps_per_level: int = 50
    """Steps per level; plain Langevin dynamics takes as many steps as all levels together."""
    sigma_max: float = 10.0
    """The first level."""
    sigma_min: float = 0.1
    """The last level."""
    rate: float = 0.2
    """Step size of a level over its σ²."""
    shown: int = 1200
    """Points shown."""


def make_figure(config: MixingConfig, key: Key, on_progress: OnProgress) -> Figure:
    """Runs both and counts the chains that end in the smaller Gaussian."""
    key_data, key_plain, key_annealed = jax.random.split(key, 3)
    density = two_gaussians(config.minor_weight)
    sigmas = geometric_noise_levels(config.sigma_max, config.sigma_min, config.num_levels)
    num_steps = config.num_levels * config.steps_per_level

    def start(keys):
        return jax.vmap(
            lambda k: jax.random.uniform(k, (2,), minval=-HALF_WIDTH, maxval=HALF_WIDTH)
        )(fold_in_each(keys, 0))

    @jax.jit
    def plain(key):
        keys = example_keys(key, jnp.arange(config.count))
        x, visited = langevin(
            lambda x: density.score(x, 0.0),
            start(keys),
            config.step_size,
            keys=keys,
            num_steps=num_steps,
            keep=True,
        )
        return start(keys), x, jnp.mean(in_minor(visited), axis=1)

    @jax.jit
    def annealed(key):
        keys = example_keys(key, jnp.arange(config.count))
        x, visited = annealed_langevin_chains(
            lambda x, level: density.score(x, sigmas[level]),
            start(keys),
            sigmas,
            step_size=config.rate * sigmas[-1] ** 2,
            steps_per_level=config.steps_per_level,
            keys=keys,
            keep=True,
        )
        return x, jnp.mean(in_minor(visited), axis=1)

    begun, x_plain, path_plain = jax.device_get(plain(key_plain))
    on_progress(num_steps)
    x_annealed, path_annealed = jax.device_get(annealed(key_annealed))
    on_progress(num_steps)
    x_data = np.asarray(draw(density.sample, key_data, config.count))
    shares = {
        "true": config.minor_weight,
        "independent draws": share(x_data),
        "langevin": share(x_plain),
        "annealed_langevin": share(x_annealed),
    }
    p = np.exp(jax.jit(density.log_density)(plane(HALF_WIDTH, 80), 0.0))
    near = np.linalg.norm(np.abs(x_plain) - 5.0, axis=1) < 4.0
    numbers = {
        "minor_weight": shares,
        "chains": config.count,
        "score_evaluations_per_chain": num_steps + 1,
        "langevin_share_of_chains_that_left_their_half": float(
            np.mean(in_minor(begun) != in_minor(x_plain))
        ),
        "langevin_share_of_chains_in_a_mode": float(np.mean(near)),
    }
    shown = {
        f"Data: {config.minor_weight:.0%} in the lower mode": x_data,
        f"Langevin: {shares['langevin']['estimate']:.0%}": x_plain,
        f"Annealed Langevin: {shares['annealed_langevin']['estimate']:.0%}": x_annealed,
    }
    panels = [
        *(_scatter(title, p, x[: config.shown]) for title, x in shown.items()),
        _paths(config, path_plain, path_annealed),
    ]
    title = (
        f"With the exact score, Langevin puts {shares['langevin']['estimate']:.0%} into a mode of "
        f"weight {config.minor_weight:.0%}, annealed Langevin "
        f"{shares['annealed_langevin']['estimate']:.0%}"
    )
    return Figure(title, panels, numbers, columns=4, size=(2.75, 3.0))


def in_minor(x) -> Array:
    """Whether x [..., 2] is nearer to the lower mode than to the upper."""
    return x[..., 0] + x[..., 1] < 0


def share(x: np.ndarray) -> dict[str, float]:
    """The share of points in the lower mode, and its binomial standard error."""
    estimate = float(np.mean(in_minor(x)))
    return {"estimate": estimate, "standard_error": binomial_error(estimate, len(x))}


def binomial_error(share: float, count: int) -> float:
    """√(w(1-w)/n)."""
    return float(np.sqrt(share * (1.0 - share) / count))


def _scatter(title: str, p: np.ndarray, x: np.ndarray) -> Panel:
    limits = (-HALF_WIDTH, HALF_WIDTH)
    return Panel(
        title,
        [shade(p, HALF_WIDTH, colours="Oranges"), Points(x, 0, 3.0)],
        xlim=limits,
        ylim=limits,
        equal=True,
    )


def _paths(config: MixingConfig, plain: np.ndarray, annealed: np.ndarray) -> Panel:
    """The share in the lower mode along the chains, with 95 % binomial bands."""

    def line(steps, shares, label, colour, marker="") -> Line:
        margin = 1.96 * np.array([binomial_error(s, config.count) for s in shares])
        band = (shares - margin, shares + margin)
        return Line(steps, shares, label, colour, marker=marker, band=band)

    steps = np.arange(1, len(plain) + 1)
    levels = config.steps_per_level * np.arange(1, len(annealed) + 1)
    return Panel(
        "Share in the lower mode",
        [
            line(steps, plain, "Langevin", 1),
            line(levels, annealed, "annealed, after each level", 0),
            Line([0, steps[-1]], [config.minor_weight] * 2, "truth", "#000000", "--"),
        ],
        xlabel="steps",
        ylim=(0.0, 0.8),
        legend="upper right",
    )


def work(config: MixingConfig) -> int:
    """Units of progress."""
    return 2 * config.num_levels * config.steps_per_level
