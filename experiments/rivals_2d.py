"""VAE, flow, GAN, energy model and DDPM on the same data, with as many parameters and steps.

    python experiments/rivals_2d.py

Trains each model on densities in the plane (or, with --data digits, on 8×8 digits) with several
seeds, and measures what each can say about log p(x), which modes its samples cover, their distance
to the data, and what a sample costs. Writes rivals.png, rivals.md (the tables) and rivals_2d.json.

Three minutes on two idle cores, no downloads. docs/results/rivals_2d shows the results. Each model
is a module of `rivals/`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.files import write_json
from ddpm_jax.keys import example_keys, make_key
from ddpm_jax.programs.console import bar, duration, run_program, say
from ddpm_jax.types import Array, Key
from ddpm_jax.visualize import Panel, Points, save_panels
from rivals.data import Data, board, eight_gaussians, training_set
from rivals.ddpm import ddpm
from rivals.energy import energy
from rivals.flow import flow
from rivals.gan import gan
from rivals.measures import energy_distance, modes_of, over_seeds
from rivals.rival import Rival, make_trainer, num_parameters, with_parameters
from rivals.vae import vae
from toy_2d import versions


@dataclass(frozen=True)
class RivalsConfig:
    """Five generative models with equal parameters and equal training."""

    out: Path = Path("runs/rivals_2d")
    """Folder for rivals.png, rivals.md and rivals_2d.json."""
    seed: int = 0
    """Seed of all random numbers; all results except times depend on it alone."""
    num_seeds: int = 3
    """Trainings of each model, over which results are averaged."""
    parameters: int = 10_000
    """Parameters of each model, to within 5 %."""
    num_steps: int = 5000
    """Training steps."""
    batch_size: int = 256
    """Examples per step."""
    learning_rate: float | None = None
    """Adam's peak learning rate for all models; by default each model's own."""
    training_count: int = 100_000
    """True samples that all models are trained on."""
    count: int = 2000
    """Samples per training, compared with as many fresh true ones; also points for log p."""
    ode_count: int = 400
    """Points for the likelihood of the probability flow, which costs most."""
    mala_steps: int = 1000
    """Steps of MALA per sample of the energy model."""
    num_timesteps: int = 100
    """T of DDPM."""
    shown: int = 1500
    """Points per panel of the figure."""


def makers(config: RivalsConfig) -> list[Callable[[int, int], Rival]]:
    """`(dim, width) -> Rival`, in the order in which they are shown."""
    return [
        vae,
        flow,
        gan,
        functools.partial(energy, num_steps=config.mala_steps),
        functools.partial(ddpm, num_timesteps=config.num_timesteps),
    ]
