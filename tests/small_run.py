"""A tiny run to be sampled and studied, made without training; and programs run in this process."""

import dataclasses
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ddpm_jax.programs.config import DevicesConfig, DiffusionConfig, NetworkConfig, TrainConfig
from ddpm_jax.programs.training_run import TrainingRun
from ddpm_jax.training import Checkpoints

ROOT = Path(__file__).resolve().parents[1]
CONFIG = TrainConfig(
    run_dir=Path(),
    num_steps=24,
    batch_size=8,
    network=NetworkConfig(
        channels=8,
        channel_multipliers=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        num_groups=4,
        class_conditional=True,
    ),
    diffusion=DiffusionConfig(
        num_timesteps=20, beta_start=1e-4, beta_end=0.4, variance="learned_range", loss="hybrid"
    ),
    devices=DevicesConfig(count=1),
)


def program(script, *arguments):
    """Runs a script of experiments/ in this process, as the command line would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(ROOT / "experiments" / script), run_name="__main__")


def make_run(folder):
    """The folder of a run whose network knows nothing: what holds for it holds for any.

    With classes and a learned variance, the case with most to go wrong. Its parameters are moved
    off the zeros they start with, but not far, lest the ODE bends too fast for so few steps.
    """
    run = TrainingRun(dataclasses.replace(CONFIG, run_dir=folder))
    state, random = run.model.init(), np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + 0.002 * random.standard_normal(x.shape), state.params)
    moved = jax.tree.map(lambda x: jax.numpy.asarray(x, jax.numpy.float32), moved)
    run.directory.write(run.config, run.facts)
    with Checkpoints(run.directory.checkpoints) as checkpoints:
        checkpoints.save(0, state.replace(params=moved, ema_params=moved))
    return run.directory.root
