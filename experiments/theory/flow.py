"""Flow and diffusion on a mixture in one dimension: what §12 and §13 of docs/theory.md show.

The denoiser is exact, so only the solver errs. In one dimension the flow preserves quantiles: the
exact end of a path is F_0⁻¹(F_T(x_T)).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from scipy import stats

import ddpm_jax as dj
from ddpm_jax.forward.schedule import rows_of_timesteps
from ddpm_jax.samplers import Sampler
from ddpm_jax.types import Array
from ddpm_jax.visualize import Heatmap, Line, Panel
from theory.process import host, paper
from toys.figure import Figure

Values = npt.NDArray[np.float64]
WEIGHTS, MEANS, STD = np.array([0.3, 0.7]), np.array([-1.2, 1.0]), 0.25
SPECIMEN = (-1.6, -0.9, -0.3, 0.3, 0.9, 1.6)


def denoiser(schedule: dj.NoiseSchedule):
    """E[x_0 | x_t] of the mixture, for x_t [B, 1]."""

    def denoise(x_t: Array, timesteps: Array) -> Array:
        row = rows_of_timesteps(schedule, timesteps)
        a, noise = schedule.alpha_bar[row][:, None], schedule.noise_scale[row][:, None] ** 2
        variance = a * STD**2 + noise
        away = x_t - jnp.sqrt(a) * MEANS[None]
        share = jax.nn.softmax(jnp.log(WEIGHTS)[None] - 0.5 * away**2 / variance, axis=1)
        mean = MEANS[None] + jnp.sqrt(a) * STD**2 * away / variance
        return jnp.sum(share * mean, axis=1, keepdims=True)

    return denoise


def density(x: Values, alpha_bar: float) -> Values:
    """p(x_t), for x_t = √ᾱ x_0 + √(1-ᾱ) ε."""
    std = np.sqrt(alpha_bar * STD**2 + 1 - alpha_bar)
    return stats.norm.pdf(x[..., None], np.sqrt(alpha_bar) * MEANS, std) @ WEIGHTS


def quantiles(levels: Values) -> Values:
    """F_0⁻¹ at levels in (0, 1), by interpolating the distribution function."""
    x = np.linspace(-4.0, 4.0, 200_001)
    return np.interp(levels, stats.norm.cdf(x[:, None], MEANS, STD) @ WEIGHTS, x)


def ends(x_T: Values) -> Values:
    """The exact x_0 [N] of the flow from x_T [N] at the last step: quantiles are preserved."""
    keep = float(paper().alpha_bar[-1])
    std = np.sqrt(keep * STD**2 + 1 - keep)
    return quantiles(stats.norm.cdf(x_T[:, None], np.sqrt(keep) * MEANS, std) @ WEIGHTS)


def distance(x: Values) -> float:
    """Wasserstein distance of samples x [N] from the mixture: quantiles' mean |difference|."""
    levels = (np.arange(len(x)) + 0.5) / len(x)
    return float(np.mean(np.abs(np.sort(x) - quantiles(levels))))


def samples(sampler: Sampler, x_T: Values, seed: int = 0) -> Values:
    """x_0 [N] of paths from x_T [N]."""
    keys = dj.example_keys(jax.random.key(seed), jnp.arange(len(x_T)))
    noise = {"keys": keys} if sampler.stochastic else {}
    denoise = denoiser(paper())
    run = jax.jit(lambda x: dj.sample(sampler, denoise, x, **noise))
    return host(run(jnp.asarray(x_T)[:, None]))[:, 0]


def paths(eta: float, x_T: Values, seed: int = 3) -> Values:
    """x_t [1001, N] of all steps, x_T first."""
    sampler = dj.ddim(paper(), eta=eta)
    keys = dj.example_keys(jax.random.key(seed), jnp.arange(len(x_T)))
    noise = {"keys": keys} if sampler.stochastic else {}
    denoise = denoiser(paper())
    run = jax.jit(lambda x: dj.sample_trajectory(sampler, denoise, x, **noise)[1].x)
    return host(run(jnp.asarray(x_T)[:, None]))[..., 0]


def trajectories(count: int = 16_000) -> Figure:
    """§12: one start, one end (η = 0) or many (η = 1); and what few steps cost."""
    schedule = paper()
    t = np.arange(1000, -1, -1)
    x = np.linspace(-3, 3, 160)
    alpha_bar = np.append(1.0, host(schedule.alpha_bar))
    shade = np.stack([density(x, a) for a in alpha_bar[::5][::-1]], axis=1)
    back = Heatmap(np.minimum(shade, 0.7), (1000, 0, -3, 3), colours="Greys", limits=(0, 1.6))

    def panel(title, ways):
        lines = [Line(t, way, colour=i % 6, width=0.9) for i, way in enumerate(ways.T)]
        return Panel(
            title,
            [back, *lines],
            xlabel="step t, from noise to data",
            ylabel="x_t",
            xlim=(1000, 0),
            ylim=(-3, 3),
        )

    starts = np.asarray(SPECIMEN)
    flow = paths(0.0, starts)
    walks = paths(1.0, np.full(6, 0.9))
    spread = float(samples(dj.ddim(schedule, eta=1.0), np.full(count, 0.9)).std())

    counts = np.array([5, 10, 20, 50, 100, 200])
    levels = (np.arange(count) + 0.5) / count
    x_T = stats.norm.ppf(levels)
    makers = {
        "DDPM, σ_t² = β_t": lambda grid: dj.ancestral(grid, variance="fixed_large"),
        "DDPM, σ_t² = β̃_t (η = 1)": lambda grid: dj.ddim(grid, eta=1.0),
        "DDIM (η = 0)": lambda grid: dj.ddim(grid),
    }
    curves = {
        name: np.array([distance(samples(make(paper(int(n))), x_T)) for n in counts])
        for name, make in makers.items()
    }
    rng = np.random.default_rng(0)
    floor = float(np.mean([distance(quantiles(rng.uniform(size=count))) for _ in range(20)]))
    ten = {name: float(values[1]) for name, values in curves.items()}
    return Figure(
        f"From one x_T, DDIM reaches one x_0, DDPM a law of width {spread:.2f}; with 10 steps they "
        f"miss the data by {ten['DDIM (η = 0)']:.2f} and {ten['DDPM, σ_t² = β̃_t (η = 1)']:.2f}",
        [
            panel("DDIM, η = 0: paths that never cross", flow),
            panel("DDPM, η = 1: six paths from one x_T", walks),
            Panel(
                "Distance from the data's law",
                [
                    *(
                        Line(counts, values, name, i, marker="o")
                        for i, (name, values) in enumerate(curves.items())
                    ),
                    Line(counts, np.full(len(counts), floor), f"{count:,} exact samples", 6, "--"),
                ],
                xlabel="steps",
                ylabel="Wasserstein distance, in units of x",
                logx=True,
                logy=True,
                xticks=counts.tolist(),
            ),
        ],
        {
            "spread from one x_T": spread,
            "exact samples": floor,
            "distance": {
                name: dict(zip(counts.tolist(), values.tolist(), strict=True))
                for name, values in curves.items()
            },
        },
        size=(3.9, 3.5),
    )


def solvers() -> Figure:
    """§13: the error of the flow's end against the number of evaluations."""
    whole = paper()
    x_T = np.linspace(-2.0, 2.0, 101)
    exact = ends(x_T)
    makers = {
        "DDIM (Euler)": (dj.ddim, 1),
        "Heun": (dj.heun, 2),
        "DPM-Solver++ 2M": (dj.dpm_solver_pp, 1),
    }
    lines, numbers = [], {}
    for i, (name, (make, cost)) in enumerate(makers.items()):
        counts = np.array([10, 20, 40, 80, 160]) // cost
        errors = []
        for n in counts:
            grid = dj.respace(whole, dj.karras_timesteps(whole, int(n)))
            errors.append(float(np.sqrt(np.mean((samples(make(grid), x_T) - exact) ** 2))))
        lines.append(Line(counts * cost, errors, name, i, marker="o"))
        numbers[name] = dict(zip((counts * cost).tolist(), errors, strict=True))
    first, best = numbers["DDIM (Euler)"][40], numbers["DPM-Solver++ 2M"][40]
    return Figure(
        f"40 evaluations: Euler is {first:.3f} off, DPM-Solver++ {best:.3f}",
        [
            Panel(
                "RMS distance from the flow's exact end",
                lines,
                xlabel="evaluations of the network",
                ylabel="error of x_0, in units of x",
                logx=True,
                logy=True,
                xticks=[10, 20, 40, 80, 160],
            )
        ],
        numbers,
        size=(6.2, 3.8),
    )
