"""A score learned by plain score matching is wrong where data are rare (NCSN §3.2.1, Figure 2).

The objective weights the error at x by p(x). Between two distant Gaussians there are almost no data
to learn from, but every chain of Langevin dynamics that changes modes must cross that region.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import numpy as np

from ddpm_jax.score import exact_score_matching
from ddpm_jax.types import Key
from ddpm_jax.visualize import Line, Panel, Points
from toys.densities import two_gaussians
from toys.figure import Figure, arrows, draw, plane, rms, shade, squared_norms
from toys.fit import FitConfig, OnProgress, fit, init_params, score_network

HALF_WIDTH = 8.0
SCALE = 5.0
"""The network's input is divided by this."""


@dataclass(frozen=True)
class FieldConfig:
    """A score network on two Gaussians."""

    fit: FitConfig = field(default_factory=lambda: FitConfig(num_steps=3000))
    """Its training."""
    count: int = 20_000
    """Samples of the data that the error is averaged over."""


def make_figure(config: FieldConfig, key: Key, on_progress: OnProgress) -> Figure:
    """Fits the network and compares it with the true score, on the data and over the plane."""
    key_params, key_fit, key_data = jax.random.split(key, 3)
    density = two_gaussians()

    def loss_fn(params, keys):
        return exact_score_matching(score_network(config.fit, params, SCALE), density.sample(keys))

    start = init_params(config.fit, key_params, 2)
    params = fit(loss_fn, start, key_fit, config.fit, on_progress=on_progress).params

    @jax.jit
    def evaluate(x):
        learned = score_network(config.fit, params, SCALE)
        return density.score(x, 0.0), learned(x), density.log_density(x, 0.0)

    def scores_at(x):
        """The true score, the learned one, its squared error, and log p at x."""
        true, found, log_density = jax.device_get(evaluate(x))
        return true, found, squared_norms(found - true), log_density

    data = scores_at(draw(density.sample, key_data, config.count))
    everywhere = plane(HALF_WIDTH, 100)
    fine = scores_at(everywhere)
    coarse_points = plane(HALF_WIDTH, 17)
    coarse = scores_at(coarse_points)
    numbers = {
        "rms_error_data_weighted": rms(data[2]),
        "rms_error_unweighted": rms(fine[2]),
        "rms_score_data_weighted": rms(squared_norms(data[0])),
        "rms_score_unweighted": rms(squared_norms(fine[0])),
        "data_by_density": by_decile(data[2], squared_norms(data[0]), data[3]),
        "plane_by_density": by_decile(fine[2], squared_norms(fine[0]), fine[3]),
        "plane": f"[-{HALF_WIDTH:g}, {HALF_WIDTH:g}]²",
    }
    density_map = shade(np.exp(fine[3]), HALF_WIDTH, colours="Oranges")
    limits = {"xlim": (-HALF_WIDTH, HALF_WIDTH), "ylim": (-HALF_WIDTH, HALF_WIDTH), "equal": True}
    panels = [
        Panel(
            "True score (shade: density)",
            [density_map, arrows(coarse_points, coarse[0], 0.13, 0.95)],
            **limits,
        ),
        Panel(
            "Learned by score matching",
            [density_map, arrows(coarse_points, coarse[1], 0.13, 0.95)],
            **limits,
        ),
        _error_panel(data, fine),
    ]
    title = (
        f"The score is learned where the data are: error {numbers['rms_error_data_weighted']:.2f} "
        f"over the data, {numbers['rms_error_unweighted']:.1f} over the plane"
    )
    return Figure(title, panels, numbers)


def by_decile(squared_error, squared_score, log_density) -> dict[str, list[float]]:
    """The RMS error in each tenth of the points by density, rarest first.

    All arguments are [N]: the squared errors, the squared norms of the true score, and log p. The
    error is also given relative to the RMS norm of the score.
    """
    order = np.argsort(log_density, kind="stable")
    tenths = np.array_split(order, 10)
    errors = [rms(squared_error[tenth]) for tenth in tenths]
    scores = [rms(squared_score[tenth]) for tenth in tenths]
    return {
        "rms_error": errors,
        "relative_to_score": [e / s for e, s in zip(errors, scores, strict=True)],
        "mean_log_density": [float(np.mean(log_density[tenth])) for tenth in tenths],
    }


def _error_panel(data, fine) -> Panel:
    """Error against log-density at every point of the plane, with its RMS in bins."""
    edges = np.linspace(fine[3].min(), fine[3].max() + 1e-6, 21)
    which = np.digitize(fine[3], edges) - 1
    middle = 0.5 * (edges[1:] + edges[:-1])
    filled = [b for b in range(20) if (which == b).any()]
    means = [rms(fine[2][which == b]) for b in filled]
    rare = float(np.quantile(data[3], 0.001))
    error = np.sqrt(np.maximum(fine[2], 1e-8))
    top, bottom = float(error.max()) * 1.6, max(float(np.quantile(error, 0.002)) / 2, 1e-4)
    return Panel(
        "Error against density, over the plane",
        [
            Points(np.stack([fine[3], error], axis=1), "#9aa0a8", 2.0, alpha=0.35),
            Line(middle[filled], means, "root mean square", 1, marker="o"),
            Line([rare, rare], [bottom, top], "99.9 % of the data to the right", 0, "--"),
        ],
        xlabel="log p(x)",
        ylabel="‖learned - true score‖",
        logy=True,
        ylim=(bottom, top),
        legend="lower left",
    )


def work(config: FieldConfig) -> int:
    """Units of progress."""
    return config.fit.num_steps
