"""The figures of docs/theory.md, in closed form on densities that are known: nothing is trained.

    ddpm-jax theory_figures

Writes a picture for each claim of the page, and theory.json with the numbers in their titles:

    integration  §2   exact score matching, with and without the boundary condition
    denoising    §3   the score of a blurred curve
    langevin     §4   the bias of a finite step; the time to cross a valley
    chain        §6   a photograph and a digit on their way to noise
    schedules    §6   β_t, ᾱ_t and log-SNR of every schedule
    posterior    §7   q(x_{t-1} | x_t, x_0) and its coefficients
    bound        §8   the terms of the bound and its gap
    weights      §9   the bound's weight beside L_simple's
    paths        §12  paths of DDIM and DDPM, and their error against the number of steps
    variance     §13  the variance that minimises the bound
    solvers      §13  solvers of the flow
    kinds        §14  the kinds of generative model as a drawing

Under a minute on two cores, no downloads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.files import write_json
from ddpm_jax.programs.console import bar, run_program, say
from ddpm_jax.visualize import save_panels
from theory import flow, kinds, process, scores

FIGURES = {
    "integration": scores.integration,
    "denoising": scores.denoising,
    "langevin": scores.langevin,
    "schedules": process.schedules,
    "posterior": process.posterior,
    "bound": process.bound,
    "weights": process.weights,
    "paths": flow.trajectories,
    "variance": process.variance,
    "solvers": flow.solvers,
}


@dataclass(frozen=True)
class TheoryConfig:
    """The figures of docs/theory.md."""

    out: Path = Path("runs/theory")
    """Folder for the pictures and theory.json."""
    only: tuple[str, ...] = ()
    """Names of the figures to make; all of them by default."""


def theory_figures(config: TheoryConfig) -> dict[str, Any]:
    """Writes the figures and, where all are made, theory.json; returns the numbers.

    Raises ValueError for an unknown figure, OSError for a folder that cannot be written.
    """
    names = ("kinds", "chain", *FIGURES)
    unknown = [name for name in config.only if name not in names]
    if unknown:
        raise ValueError(f"--only knows the figures {names}, got {unknown}.")
    config.out.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in names if name in config.only or not config.only]
    numbers: dict[str, Any] = {}
    with bar(len(chosen), "figures") as progress, jax.enable_x64(True):
        for name in chosen:
            path = config.out / f"{name}.png"
            if name == "kinds":
                kinds.draw_kinds(path)
            elif name == "chain":
                numbers[name] = kinds.draw_chain(path)
            else:
                figure = FIGURES[name]()
                save_panels(
                    path,
                    figure.panels,
                    title=figure.title,
                    columns=figure.columns,
                    size=figure.size,
                )
                numbers[name] = figure.numbers
                say(figure.title)
            say(f"  {path}")
            progress.update()
    if not config.only:
        plain = json.loads(json.dumps(numbers, default=np.ndarray.tolist))
        write_json(config.out / "theory.json", plain)
    return numbers


if __name__ == "__main__":
    run_program(theory_figures, TheoryConfig(), __doc__)
