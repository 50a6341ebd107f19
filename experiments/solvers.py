"""Samplers with few evaluations, on a mixture whose denoiser and ODE are exact.

    ddpm-jax solvers

Every sampler starts from the same noise and gets the same number of network evaluations, counted as
they happen, on two grids. Deterministic samplers solve the probability-flow ODE: their error is the
distance of each sample from the exact solution, by DOP853 in float64. Samplers that draw noise are
compared in distribution, by the energy distance to data. No network and no training: only the
solver errs. Writes solvers.json, solvers.md (the tables) and samples.png.

A minute on two idle cores. docs/results/solvers shows the results. predictor_corrector and
annealed_langevin are left out: the first needs 32 dimensions, the second hundreds of evaluations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import ddpm_jax as dj
from ddpm_jax.files import write_atomically, write_json
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.keys import make_key
from ddpm_jax.programs.console import bar, run_program, say
from ddpm_jax.programs.outputs import study_folder
from ddpm_jax.samplers import Sampler, grid_steps
from ddpm_jax.samplers.base import step_noise
from ddpm_jax.visualize import Panel, Points, save_panels
from rivals.measures import energy_distance
from toy_2d import versions

WEIGHTS = np.array([0.1, 0.15, 0.2, 0.25, 0.3])
ANGLES = 2.0 * np.pi * np.arange(5) / 5.0 + np.pi / 2.0
MEANS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
WIDTH = 0.12

SAMPLERS: dict[str, Callable[[NoiseSchedule, NoiseSchedule], Sampler]] = {
    "DDIM η=0": lambda grid, process: dj.ddim(grid),
    "DPM-Solver++ 2M": lambda grid, process: dj.dpm_solver_pp(grid),
    "DPM-Solver++ 2S": lambda grid, process: dj.dpm_solver_pp(grid, singlestep=True),
    "DPM-Solver++ 3": lambda grid, process: dj.dpm_solver_pp(grid, order=3),
    "UniPC-2": lambda grid, process: dj.unipc(grid, order=2),
    "UniPC-3": lambda grid, process: dj.unipc(grid),
    "DEIS, order 2": lambda grid, process: dj.deis(grid, order=2, process=process),
    "DEIS, order 3": lambda grid, process: dj.deis(grid, process=process),
    "DEIS, order 4": lambda grid, process: dj.deis(grid, order=4, process=process),
    "Heun": lambda grid, process: dj.heun(grid),
    "ancestral": lambda grid, process: dj.ancestral(grid, variance="fixed_small"),
    "DDIM η=1": lambda grid, process: dj.ddim(grid, eta=1.0),
    "SDE-DPM-Solver++ 2M": lambda grid, process: dj.dpm_solver_pp(grid, sde=True),
}
SHOWN = ("DDIM η=0", "DPM-Solver++ 2M", "UniPC-2", "DEIS, order 4", "Heun", "DDIM η=1")
"""The samplers in the picture."""
GRIDS: dict[str, Callable[[NoiseSchedule, int], Any]] = {
    "even in t": lambda process, steps: dj.spaced_timesteps(
        process.num_timesteps, steps, "trailing"
    ),
    "even in λ": lambda process, steps: dj.karras_timesteps(process, steps, math.inf),
}


@dataclass(frozen=True)
class SolversConfig:
    """Error against evaluations for every sampler."""

    out: Path = Path("runs/solvers")
    """Folder for samples.png, solvers.md and solvers.json."""
    seed: int = 0
    """Seed of the noise and of the data compared with."""
    evaluations: tuple[int, ...] = (5, 8, 10, 15, 20, 50)
    """Evaluations per sample; a sampler with two evaluations per step uses the largest odd number
    within this budget."""
    count: int = 1000
    """Samples per cell."""
    shown_grid: str = "even in λ"
    """The grid of the picture: "even in t" or "even in λ"."""


class Cell(NamedTuple):
    """Samples [count, 2] of one sampler, and the evaluations that each took."""

    samples: np.ndarray
    evaluations: int
    stochastic: bool


def posterior_mean(y: Any, sigma: Any, xp: Any) -> Any:
    """E[x_0 | y] of the mixture for y [B, 2] = x_0 + σ ε, σ [B, 1], with xp NumPy or jax.numpy."""
    weights, means = xp.asarray(WEIGHTS, y.dtype)[None], xp.asarray(MEANS, y.dtype)
    variance = WIDTH**2 + sigma**2
    squares = ((y[:, None] - means[None]) ** 2).sum(-1)
    logits = xp.log(weights) - 0.5 * squares / variance
    share = xp.exp(logits - logits.max(-1, keepdims=True))
    centre = share / share.sum(-1, keepdims=True) @ means
    return centre + WIDTH**2 / variance * (y - centre)


def exact_ends(y: np.ndarray, sigma: float) -> np.ndarray:
    """The data [N, 2] at the end of dy/d log σ = y - E[x_0 | y] from y [N, 2] at noise level σ."""

    def velocity(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        at = flat.reshape(-1, 2)
        return (at - posterior_mean(at, np.full((len(at), 1), np.exp(log_sigma)), np)).ravel()

    # Below 1e-5 y is the data up to that.
    span = (np.log(sigma), np.log(1e-5))
    return (
        solve_ivp(velocity, span, y.ravel(), "DOP853", rtol=1e-8, atol=1e-8).y[:, -1].reshape(-1, 2)
    )


def draw(sampler: Sampler, denoise: Callable[..., Any], x_T: Any, keys: Any) -> Cell:
    """Samples from x_T step by step, outside of a trace, so that each evaluation is counted."""
    count = 0

    def counted(x, timesteps):
        nonlocal count
        count += 1
        return denoise(x, timesteps)

    x, state = x_T, sampler.init(x_T)
    for t in np.asarray(grid_steps(sampler)):
        noise = step_noise(keys, t, x, sampler.num_draws) if sampler.stochastic else None
        x, _, state = sampler.step(counted, x, jnp.full(x.shape[:1], t), noise, state)
    return Cell(np.asarray(x, np.float64), count, sampler.stochastic)


def solvers(config: SolversConfig) -> dict[str, Any]:
    """Fills every cell, writes the tables and the picture, and returns what solvers.json holds.

    Raises ValueError for fewer than two samples, no evaluations and an unknown grid;
    RunDirectoryError for a folder that cannot be used.
    """
    if config.count < 2 or not config.evaluations or min(config.evaluations) < 1:
        raise ValueError(
            "--count must be at least 2 and --evaluations numbers of at least 1, got "
            f"{config.count} and {config.evaluations}."
        )
    if config.shown_grid not in GRIDS:
        raise ValueError(f"--shown-grid knows {list(GRIDS)}, got {config.shown_grid!r}.")
    key = make_key(config.seed)
    study_folder("solvers", ["solvers.md", "samples.png"], config.out)
    begun = time.perf_counter()
    process = dj.linear_schedule()
    sigma_of = jnp.exp(-0.5 * process.log_snr)

    @jax.jit
    def denoise(x, timesteps):
        sigma = sigma_of[timesteps][:, None]
        return posterior_mean(x * jnp.sqrt(1.0 + sigma**2), sigma, jnp)

    keys = dj.example_keys(key, jnp.arange(config.count))
    x_T = dj.initial_noise(keys, (2,))
    ends = exact_ends(
        np.asarray(x_T, np.float64) / float(process.signal_scale[-1]), float(sigma_of[-1])
    )
    random = np.random.default_rng(config.seed)
    data, more = (_data(random, config.count) for _ in range(2))
    cells: dict[str, dict[str, dict[int, Cell]]] = {}
    with bar(len(GRIDS) * len(SAMPLERS) * len(config.evaluations), "sampling", unit="cell") as step:
        for grid_name, spaced in GRIDS.items():
            for name, make in SAMPLERS.items():
                row = cells.setdefault(grid_name, {}).setdefault(name, {})
                for budget in config.evaluations:
                    steps = (budget + 1) // 2 if name == "Heun" else budget
                    sampler = make(dj.respace(process, spaced(process, steps)), process)
                    row[budget] = draw(sampler, denoise, x_T, keys)
                    step.update()
    results = {
        grid_name: {
            name: {str(budget): _measure(cell, ends, data) for budget, cell in row.items()}
            for name, row in rows.items()
        }
        for grid_name, rows in cells.items()
    }
    found = {
        "seed": config.seed,
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        "count": config.count,
        "energy_distance_of_data": energy_distance(data, more),
        "energy_distance_of_the_exact_ode": energy_distance(ends, data),
        "results": results,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    write_json(config.out / "solvers.json", found)
    tables = _tables(results, config.evaluations)
    write_atomically(config.out / "solvers.md", tables)
    _picture(config, cells[config.shown_grid], results[config.shown_grid], ends, np.asarray(x_T))
    say(tables)
    for name in ("solvers.json", "solvers.md", "samples.png"):
        say(f"  {config.out / name}")
    return found


def _data(random: np.random.Generator, count: int) -> np.ndarray:
    which = random.choice(len(WEIGHTS), count, p=WEIGHTS)
    return MEANS[which] + WIDTH * random.standard_normal((count, 2))


def _measure(cell: Cell, ends: np.ndarray, data: np.ndarray) -> dict[str, Any]:
    """Evaluations, the energy distance to data, and the RMS error of deterministic samplers."""
    numbers: dict[str, Any] = {
        "evaluations": cell.evaluations,
        "energy_distance": energy_distance(cell.samples, data),
    }
    if not cell.stochastic:
        numbers["rms"] = float(np.sqrt(((cell.samples - ends) ** 2).sum(1).mean()))
    return numbers


def _tables(results: dict[str, Any], budgets: tuple[int, ...]) -> str:
    """Markdown tables: for each grid the RMS errors, then the energy distances of all."""
    lines: list[str] = []
    for field, title in (
        ("rms", "RMS distance to the exact ODE"),
        ("energy_distance", "Energy distance to data"),
    ):
        for grid_name, rows in results.items():
            lines += [
                f"{title}, grid {grid_name}",
                "",
                "| evaluations | " + " | ".join(map(str, budgets)) + " |",
                "|---" * (len(budgets) + 1) + "|",
            ]
            for name, row in rows.items():
                values = [row[str(budget)].get(field) for budget in budgets]
                if None not in values:
                    lines.append(f"| {name} | " + " | ".join(f"{v:.2g}" for v in values) + " |")
            lines.append("")
    return "\n".join(lines)


def _picture(
    config: SolversConfig,
    cells: dict[str, dict[int, Cell]],
    results: dict[str, Any],
    ends: np.ndarray,
    x_T: np.ndarray,
) -> None:
    """A row per budget; the first column is the truth, then there is a column per sampler.

    Each point has the colour of its exact end.
    """
    budgets = [b for b in config.evaluations if b in (5, 10, 20)] or list(config.evaluations)[:3]
    truths = [
        ("exact ODE", "colour: the mode\nthat it reaches", ends, 1.6),
        ("x_T, the noise", "the same\nfor all", x_T, 3.5),
    ]
    panels = []
    for i, budget in enumerate(budgets):
        # Below the second row the exact ends stand again, as what the row is compared with.
        title, xlabel, points, limit = truths[i if i < len(truths) else 0]
        panels.append(_map(title, xlabel, points, ends, limit))
        for name in SHOWN:
            samples = cells[name][budget].samples
            panels.append(_map(name, _caption(results[name][str(budget)], samples), samples, ends))
    middle = budgets[len(budgets) // 2]
    error, name = min((row[str(middle)].get("rms", np.inf), name) for name, row in results.items())
    save_panels(
        config.out / "samples.png",
        panels,
        title=f"With {middle} evaluations, {name} comes closest to the exact ODE: {error:#.2g}",
        columns=1 + len(SHOWN),
        size=(1.27, 1.75),
    )


_LIMIT = 1.6
"""Half the side of the picture's maps, which hold the data."""


def _map(
    title: str, xlabel: str, points: np.ndarray, ends: np.ndarray, limit: float = _LIMIT
) -> Panel:
    mode = ((ends[:, None] - MEANS[None]) ** 2).sum(-1).argmin(1)
    layers = [Points(points[mode == k], colour=k, size=1.5) for k in range(len(MEANS))]
    box = (-limit, limit)
    return Panel(title, layers, xlabel=xlabel, xlim=box, ylim=box, equal=True)


def _caption(numbers: dict[str, Any], samples: np.ndarray) -> str:
    """Evaluations, error, and how many samples lie outside of the map if they are many."""
    lines = [f"{numbers['evaluations']} evaluations"]
    lines.append(f"error {numbers['rms']:#.2g}" if "rms" in numbers else "draws noise")
    outside = (np.abs(samples) > _LIMIT).any(axis=1).mean()
    if outside > 0.1:
        lines[-1] += f", {outside:.0%} outside"
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(solvers, SolversConfig(), __doc__)
