"""The history of score matching in five figures, on 2-D densities whose score is known.

    ddpm-jax toy_2d

Writes five pictures and toy_2d.json, from Hyvärinen 2005 to Ho et al. 2020 (arXiv 2006.11239).
Section and figure numbers are those of Song, Ermon 2019 (NCSN, 1907.05600):

    field       a learned score is wrong where data are rare (§3.2.1, Figure 2)
    mixing      Langevin dynamics gets the weights of the modes wrong even with the exact score;
                annealed Langevin dynamics gets them right (§3.2.2, Figure 3)
    manifold    data on a plane have no score; a little noise gives them one (Figure 1)
    objectives  exact, sliced (1905.07088) and denoising (Vincent 2011) score matching learn the
                same field; only the cost of the exact one grows with the dimension
    models      DDPM and NCSN learn the same density

Three minutes on two idle cores, no downloads. docs/results/toy_2d shows the figures. Each of them
is a module of `toys/`: its configuration, its training, and its panels.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax

from ddpm_jax.files import write_json
from ddpm_jax.keys import make_key
from ddpm_jax.programs.console import bar, duration, run_program, say
from ddpm_jax.programs.outputs import study_folder
from ddpm_jax.visualize import save_panels
from toys import field, manifold, mixing, models, objectives
from toys.field import FieldConfig
from toys.manifold import ManifoldConfig
from toys.mixing import MixingConfig
from toys.models import ModelsConfig
from toys.objectives import ObjectivesConfig

FIGURES = {
    "field": field,
    "mixing": mixing,
    "manifold": manifold,
    "objectives": objectives,
    "models": models,
}


@dataclass(frozen=True)
class ToyConfig:
    """Score matching on densities whose score is known."""

    out: Path = Path("runs/toy_2d")
    """Folder for the pictures and toy_2d.json."""
    seed: int = 0
    """Seed of all random numbers; all results except times depend on it alone."""
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    mixing: MixingConfig = dataclasses.field(default_factory=MixingConfig)
    manifold: ManifoldConfig = dataclasses.field(default_factory=ManifoldConfig)
    objectives: ObjectivesConfig = dataclasses.field(default_factory=ObjectivesConfig)
    models: ModelsConfig = dataclasses.field(default_factory=ModelsConfig)


def toy_2d(config: ToyConfig) -> dict[str, Any]:
    """Makes all figures, writes field.png, …, models.png and toy_2d.json, and returns the numbers.

    Raises RunDirectoryError for a folder that cannot be used, before anything is computed, and
    ValueError for invalid sizes.
    """
    root = make_key(config.seed)
    study_folder("toy_2d", [f"{name}.png" for name in FIGURES], config.out)
    parts = {name: getattr(config, name) for name in FIGURES}
    numbers: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    with bar(sum(FIGURES[name].work(part) for name, part in parts.items()), "toys") as progress:
        for i, (name, part) in enumerate(parts.items()):
            begun = time.perf_counter()
            progress.set_description(name)
            key = jax.random.fold_in(root, i)
            figure = FIGURES[name].make_figure(part, key, progress.update)
            save_panels(
                config.out / f"{name}.png",
                figure.panels,
                title=figure.title,
                columns=figure.columns,
                size=figure.size,
            )
            numbers[name] = figure.numbers
            seconds[name] = round(time.perf_counter() - begun, 1)
            say(f"{figure.title}\n  {config.out / name}.png")
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "out"}
    write_json(
        config.out / "toy_2d.json",
        {
            "seed": config.seed,
            "versions": versions(),
            "device": jax.devices()[0].device_kind,
            "seconds": seconds,
            "numbers": numbers,
            "config": settings,
        },
    )
    say(f"numbers: {config.out / 'toy_2d.json'}   ({duration(sum(seconds.values()))})")
    return numbers


def versions() -> dict[str, str]:
    """Versions of the libraries that compute the numbers."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
    }


if __name__ == "__main__":
    run_program(toy_2d, ToyConfig(), __doc__)
