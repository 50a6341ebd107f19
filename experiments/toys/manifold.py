"""Data on a manifold have no score; a little noise gives them one (NCSN §3.2.1, Figure 1).

A Swiss roll in a plane of R³. A model score -k h n, where h is the height above the plane along the
normal n, vanishes on the data, but its divergence lowers the loss by k: the sliced loss has no
minimum and falls without end. With noise N(0, σ² I) added, the minimum is -½ E‖∇ log p_σ‖², and
training settles there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.keys import normal_per_example, split_each
from ddpm_jax.score import projections, sliced_score_matching
from ddpm_jax.types import Key
from ddpm_jax.visualize import Line, Panel, Points
from toys.densities import Density, on_plane, swiss_roll
from toys.figure import Figure, draw, rms, squared_norms
from toys.fit import FitConfig, OnProgress, fit, init_params, score_network

BASIS = np.linalg.qr(np.array([[1.0, 0.0], [0.5, 1.0], [-0.7, 0.6]]))[0]
"""A basis of the plane, oblique to all axes so that no coordinate of the data is constant."""
DENSITY = on_plane(swiss_roll(), BASIS)
SCALE = 0.5
"""The network's input is divided by this: wider inputs let it learn finer detail."""


@dataclass(frozen=True)
class ManifoldConfig:
    """Sliced score matching with and without noise."""

    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            num_steps=3000, learning_rate=2e-3, features=64, decay="constant"
        )
    )
    """Training, the same in both cases."""
    sigma: float = 0.1
    """The noise; the roll is 4 across and 0.1 thick within its plane."""
    count: int = 4000
    """Samples that errors are averaged over."""


def make_figure(config: ManifoldConfig, key: Key, on_progress: OnProgress) -> Figure:
    """Trains both, and draws their losses."""
    key_params, key_fit, key_data = jax.random.split(key, 3)
    start = init_params(config.fit, key_params, 3)
    clean = np.asarray(draw(DENSITY.sample, key_data, config.count))
    noisy = draw(lambda keys: noisy_sample(DENSITY, keys, config.sigma), key_data, config.count)
    true = np.asarray(jax.jit(DENSITY.score)(noisy, config.sigma))
    # The score within the plane exists even though the one in R³ does not.
    flat = jnp.asarray(clean @ BASIS, jnp.float32)
    in_plane = np.asarray(jax.jit(swiss_roll().score)(flat, 0.0))
    cases = {}
    for name, sigma in (("without_noise", 0.0), ("with_noise", config.sigma)):

        def loss_fn(params, keys, sigma=sigma):
            x_keys, v_keys = split_each(keys, 2)
            v = projections(v_keys, 1, (3,))
            x = noisy_sample(DENSITY, x_keys, sigma)
            return sliced_score_matching(
                score_network(config.fit, params, SCALE), x, v, variance_reduced=True
            )

        cases[name] = fit(loss_fn, start, key_fit, config.fit, on_progress=on_progress)
    learned = {
        name: jax.jit(score_network(config.fit, fitted.params, SCALE))
        for name, fitted in cases.items()
    }
    off = np.asarray(learned["without_noise"](jnp.asarray(clean, jnp.float32)))
    on = np.asarray(learned["with_noise"](noisy))
    minimum = -0.5 * float(np.mean(squared_norms(true)))
    numbers = {
        "without_noise": {
            **describe(cases["without_noise"].losses),
            "relative_score_error_within_the_plane": rms(squared_norms(off @ BASIS - in_plane))
            / rms(squared_norms(in_plane)),
        },
        "with_noise": {
            **describe(cases["with_noise"].losses),
            "sigma": config.sigma,
            "exact_minimum": minimum,
            "relative_score_error": rms(squared_norms(on - true)) / rms(squared_norms(true)),
        },
    }
    panels = [
        _data_panel(clean),
        _both_panel(cases["without_noise"].losses, cases["with_noise"].losses),
        _settling_panel(config.sigma, cases["with_noise"].losses, minimum),
    ]
    title = (
        "On a manifold the score does not exist; with a little noise it is learned, with error "
        f"{numbers['with_noise']['relative_score_error']:.2f}"
    )
    return Figure(title, panels, numbers, size=(3.4, 3.1))


def noisy_sample(density: Density, keys: Key, sigma: float):
    """x + σz."""
    x_keys, noise_keys = split_each(keys, 2)
    return density.sample(x_keys) + sigma * normal_per_example(noise_keys, (density.dim,))


def describe(losses: np.ndarray) -> dict[str, float]:
    """Level and scatter of the loss in the first and last fifth of training."""
    last = losses[-max(2, len(losses) // 5) :]
    earlier = losses[: max(1, len(losses) // 5)]
    return {
        "mean_of_first_fifth": float(np.mean(earlier)),
        "mean_of_last_fifth": float(np.mean(last)),
        "lowest": float(losses.min()),
        "highest_of_last_fifth": float(last.max()),
        "standard_deviation_of_last_fifth": float(last.std()),
    }


def _data_panel(clean: np.ndarray) -> Panel:
    """The roll and its plane, seen obliquely."""
    eye = np.array([[0.94, 0.34, 0.0], [-0.16, 0.45, 0.88]])
    square = 2.3 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) @ BASIS.T @ eye.T
    return Panel(
        "Data: a Swiss roll on a plane in 3-D",
        [Line(*square.T, colour="#9aa0a8", width=1.0), Points(clean[:2000] @ eye.T, 0, 3.0)],
        equal=True,
    )


def _both_panel(without: np.ndarray, noisy: np.ndarray) -> Panel:
    steps = np.arange(1, len(without) + 1)
    return Panel(
        "Without noise the loss has no minimum",
        [
            Line(steps, without, "without noise", 1, width=0.5),
            Line(steps, noisy, "with noise", 0, width=0.8),
        ],
        xlabel="training step",
        ylabel="sliced loss of a batch",
        linear_within=100.0,
        ylim=(3.0 * min(without.min(), -100.0), 3e3 * max(without.max(), 100.0)),
        legend="upper right",
    )


def _settling_panel(sigma: float, losses: np.ndarray, minimum: float) -> Panel:
    width = max(1, len(losses) // 100)
    count = len(losses) // width
    middles = width * (np.arange(count) + 0.5)
    means = losses[: count * width].reshape(count, width).mean(axis=1)
    steps = np.arange(1, len(losses) + 1)
    return Panel(
        f"With noise (σ = {sigma:g}) the loss settles",
        [
            Line(steps, losses, None, "#9cc8e5", width=0.5),
            Line(middles, means, f"mean of {width} batches", 0),
            Line([0, steps[-1]], [minimum] * 2, "exact minimum", "#000000", "--", width=1.2),
        ],
        xlabel="training step",
        ylabel="sliced loss of a batch",
        legend="upper right",
    )


def work(config: ManifoldConfig) -> int:
    """Units of progress."""
    return 2 * config.fit.num_steps
