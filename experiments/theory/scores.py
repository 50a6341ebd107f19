"""Score matching and Langevin dynamics: what §2 to §5 of docs/theory.md show.

Densities are known here, so every curve is exact or a sum over a fine grid.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh_tridiagonal

from ddpm_jax.visualize import Line, Panel, Points
from toys.figure import Figure, arrows, plane, shade

Values = npt.NDArray[np.float64]


def normal_losses(slope: Values) -> tuple[Values, Values]:
    """J of s(x) = -a x for x ~ N(0, 1), and E[s' + ½ s²], its form without ∇ log p."""
    return 0.5 * (1 - slope) ** 2, -slope + 0.5 * slope**2


def uniform_losses(slope: Values) -> tuple[Values, Values]:
    """The same for s(x) = a (x - ½) and x uniform on [0, 1], whose score is 0 inside."""
    return slope**2 / 24, slope + slope**2 / 24


def integration() -> Figure:
    """§2: integrating by parts costs a constant, or the ranking where the boundary counts."""
    a, b = np.linspace(-0.5, 2.5, 121), np.linspace(-24.0, 24.0, 121)
    true, formula = normal_losses(a)
    true_uniform, formula_uniform = uniform_losses(b)
    best, wrong = a[np.argmin(formula)], b[np.argmin(formula_uniform)]

    def panel(title, slope, exact, other, model):
        lines = [
            Line(slope, exact, label="Fisher divergence J", colour=0),
            Line(slope, other, label="E[s′ + ½ s²]", colour=1, style="--"),
        ]
        for i, curve in enumerate((exact, other)):
            low = int(np.argmin(curve))
            lines.append(Line([slope[low]], [curve[low]], colour=i, marker="o"))
        return Panel(title, lines, xlabel=model, ylabel="objective, in nats", legend="upper center")

    return Figure(
        "The formula without ∇ log p needs a density that vanishes at the boundary",
        [
            panel(
                f"N(0, 1): both are least at a = {best:.0f},\nand differ by ½ everywhere",
                a,
                true,
                formula,
                "a, for the model s(x) = -a x",
            ),
            panel(
                f"Uniform on [0, 1]: the formula picks a = {wrong:.0f},\nthe truth is a = 0",
                b,
                true_uniform,
                formula_uniform,
                "a, for the model s(x) = a (x - ½)",
            ),
        ],
        {"normal": float(best), "uniform": float(wrong)},
        size=(3.9, 3.2),
    )


def circle_score(x: Values, sigma: float, count: int = 720) -> tuple[Values, Values]:
    """log q_σ [N] and ∇ log q_σ [N, 2] of the unit circle blurred by σ, at x [N, 2]."""
    angle = 2 * np.pi * np.arange(count) / count
    centres = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    away = centres - x[:, None]
    logits = -np.sum(away**2, axis=-1) / (2 * sigma**2)
    top = logits.max(axis=1, keepdims=True)
    weight = np.exp(logits - top)
    total = weight.sum(axis=1)
    score = np.einsum("nk,nkd->nd", weight / total[:, None], away) / sigma**2
    return top[:, 0] + np.log(total / count) - np.log(2 * np.pi * sigma**2), score


def denoising() -> Figure:
    """§3: a curve has no density; blurred it has a score, which points to the clean data."""
    half, panels, numbers = 1.6, [], {}
    fine, coarse = (np.asarray(plane(half, n), np.float64) for n in (120, 13))
    rng = np.random.default_rng(0)
    for sigma in (0.3, 0.1):
        log_q, _ = circle_score(fine, sigma)
        _, score = circle_score(coarse, sigma)
        largest = float(np.linalg.norm(score[0]))
        panels.append(
            Panel(
                f"σ = {sigma}: ‖score‖ = {largest:.0f} at the corner",
                [
                    shade(np.exp(log_q), half, colours="Oranges"),
                    arrows(coarse, score, 0.3 * sigma**2 / 0.09, 0.2),
                ],
                equal=True,
            )
        )
        numbers[f"score at the corner, sigma {sigma}"] = largest
    sigma = 0.3
    angle = rng.uniform(0, 2 * np.pi, 60)
    clean = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    noisy = clean + sigma * rng.standard_normal(clean.shape)
    mean = noisy + sigma**2 * circle_score(noisy, sigma)[1]
    before, after = (
        float(np.sqrt(np.mean((np.linalg.norm(x, axis=1) - 1) ** 2))) for x in (noisy, mean)
    )
    ring = np.linspace(0, 2 * np.pi, 200)
    panels.append(
        Panel(
            f"RMS distance to the curve: {before:.2f} → {after:.2f}",
            [
                Line(np.cos(ring), np.sin(ring), colour="#9aa0a8", width=1.0, label="data"),
                arrows(noisy, mean - noisy, 1.0, 9.0),
                Points(noisy, colour=1, size=9, alpha=0.9, label="x̃, σ = 0.3"),
                Points(mean, colour=0, size=9, alpha=0.9, label="E[x | x̃]"),
            ],
            xlim=(-half, half),
            ylim=(-half, half),
            equal=True,
            legend="center",
        )
    )
    numbers |= {"distance before": before, "distance after": after}
    return Figure(
        f"A curve has no density; blurred, it has a score, which points back to within "
        f"{after:.2f} of it",
        panels,
        numbers,
    )


def relaxation_time(weights, means, std: float) -> tuple[float, float]:
    """Depth D in nats of the valley of a two-mode mixture, and the slowest time of its diffusion.

    The generator of dx = ½ ∇ log p dt + dW on a grid; its spectral gap is one over the time.
    """
    means = np.asarray(means)

    def log_density(x: Values) -> Values:
        return np.log(np.exp(-0.5 * ((x[:, None] - means) / std) ** 2) @ np.asarray(weights))

    between = log_density(np.linspace(means.min(), means.max(), 401))
    depth = float(min(between[:100].max(), between[-100:].max()) - between.min())
    x = np.linspace(means.min() - 5 * std, means.max() + 5 * std, 1200)
    log_p = log_density(x)
    rate = 0.5 / (x[1] - x[0]) ** 2
    up, down = np.exp(0.5 * np.diff(log_p)), np.exp(-0.5 * np.diff(log_p))
    diagonal = np.append(up, 0.0) + np.append(0.0, down)
    eigenvalues = eigh_tridiagonal(
        rate * diagonal, np.full(len(x) - 1, -rate), select="i", select_range=(0, 1)
    )[0]
    return depth, float(1 / eigenvalues[1])


def langevin_chains(step: float, count: int = 40_000, num_steps: int = 400) -> float:
    """Variance of `count` chains x ← x - (h/2) x + √h z from N(0, 1), after `num_steps` steps."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(count)
    for _ in range(num_steps):
        x = (1 - step / 2) * x + np.sqrt(step) * rng.standard_normal(count)
    return float(x.var())


def langevin() -> Figure:
    """§4 and §5: the bias of a finite step, and the time to cross a valley."""
    steps = np.linspace(0.01, 3.3, 100)
    marks = np.array([0.1, 0.5, 1.0, 2.0, 3.0])
    measured = np.array([langevin_chains(h) for h in marks])
    gaps = np.linspace(1.5, 4.6, 16)
    pairs = [relaxation_time((0.5, 0.5), (-gap, gap), 1.0) for gap in gaps]
    depth, time = np.array(pairs).T
    rate = float(np.polyfit(depth[-6:], np.log(time[-6:]), 1)[0])
    return Figure(
        f"A step h = c² widens the law to {measured[2]:.2f} c²; a valley of {depth[-1]:.0f} nats "
        f"takes {time[-1]:,.0f} c²",
        [
            Panel(
                "Too large a step widens the law: 1/(1 - h/4c²)",
                [
                    Line(steps, 1 / (1 - steps / 4), label="formula", colour=0),
                    Line(marks, measured, colour=1, style="", marker="o", label="40,000 chains"),
                ],
                xlabel="step size h, in units of c²",
                ylabel="stationary variance, in units of c²",
            ),
            Panel(
                f"Crossing a valley takes e^D: slope {rate:.2f} in D",
                [
                    Line(depth, time, label="slowest time of the diffusion", colour=0, marker="o"),
                    Line(depth, time[-1] * np.exp(depth - depth[-1]), "∝ e^D", 1, "--"),
                ],
                xlabel="depth D of the valley between two modes, in nats",
                ylabel="relaxation time, in units of c²",
                logy=True,
            ),
        ],
        {
            "variance at h": dict(zip(marks.tolist(), measured.tolist(), strict=True)),
            "slope": rate,
            "depth": depth.tolist(),
            "relaxation_time": time.tolist(),
        },
        size=(4.2, 3.3),
    )
