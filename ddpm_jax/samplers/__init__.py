"""Samplers: step kernels, one file each, run by the one loop in `base`."""

from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.base import (
    Sampler,
    StepResult,
    Trajectory,
    advance,
    grid_steps,
    initial_noise,
    sample,
    sample_trajectory,
)
from ddpm_jax.samplers.ddim import ddim

__all__ = [
    "Sampler",
    "StepResult",
    "Trajectory",
    "advance",
    "ancestral",
    "ddim",
    "grid_steps",
    "initial_noise",
    "sample",
    "sample_trajectory",
]
