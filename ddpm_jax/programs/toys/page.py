"""The page: every figure in turn, with one progress bar and one file of numbers."""

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
from ddpm_jax.programs.console import bar, duration, say
from ddpm_jax.programs.toys import field as field_figure
from ddpm_jax.programs.toys import manifold, mixing, models, objectives
from ddpm_jax.programs.toys.field import FieldConfig
from ddpm_jax.programs.toys.manifold import ManifoldConfig
from ddpm_jax.programs.toys.mixing import MixingConfig
from ddpm_jax.programs.toys.models import ModelsConfig
from ddpm_jax.programs.toys.objectives import ObjectivesConfig
from ddpm_jax.visualize import save_panels

FIGURES = {
    "field": field_figure,
    "mixing": mixing,
    "manifold": manifold,
    "objectives": objectives,
    "models": models,
}


@dataclass(frozen=True)
class ToyConfig:
    """The history of score matching on densities whose score is known."""

    out: Path = Path("runs/toy_2d")
    """The folder of the pictures and of toy_2d.json."""
    seed: int = 0
    """Of everything drawn; all numbers but the times depend on it alone."""
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    mixing: MixingConfig = dataclasses.field(default_factory=MixingConfig)
    manifold: ManifoldConfig = dataclasses.field(default_factory=ManifoldConfig)
    objectives: ObjectivesConfig = dataclasses.field(default_factory=ObjectivesConfig)
    models: ModelsConfig = dataclasses.field(default_factory=ModelsConfig)


def toy_2d(config: ToyConfig) -> dict[str, Any]:
    """Makes all figures, writes field.png, …, models.png and toy_2d.json, and returns the numbers.

    Raises OSError for a folder that cannot be written, before anything is computed; ValueError for
    sizes that no figure could have.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    parts = {name: getattr(config, name) for name in FIGURES}
    numbers: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    with bar(sum(FIGURES[name].work(part) for name, part in parts.items()), "toys") as progress:
        for i, (name, part) in enumerate(parts.items()):
            begun = time.perf_counter()
            progress.set_description(name)
            key = jax.random.fold_in(jax.random.key(config.seed), i)
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
    """What the numbers were computed with."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
    }
