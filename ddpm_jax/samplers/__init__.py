"""Samplers: step kernels, one file each, run by the one loop in `base`."""

from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.annealed_langevin import annealed_langevin
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
from ddpm_jax.samplers.continuous import (
    euler_maruyama,
    probability_flow_euler,
    probability_flow_heun,
)
from ddpm_jax.samplers.ddim import ddim, ddim_encode, ddim_encode_trajectory
from ddpm_jax.samplers.deis import deis
from ddpm_jax.samplers.dpm_solver import dpm_solver_pp
from ddpm_jax.samplers.heun import heun
from ddpm_jax.samplers.inpaint import inpaint
from ddpm_jax.samplers.interpolation import lerp, slerp
from ddpm_jax.samplers.predictor_corrector import predictor_corrector
from ddpm_jax.samplers.self_conditioning import self_conditioned
from ddpm_jax.samplers.unipc import unipc

__all__ = [
    "Sampler",
    "StepResult",
    "Trajectory",
    "advance",
    "ancestral",
    "annealed_langevin",
    "ddim",
    "ddim_encode",
    "ddim_encode_trajectory",
    "deis",
    "dpm_solver_pp",
    "euler_maruyama",
    "grid_steps",
    "heun",
    "initial_noise",
    "inpaint",
    "lerp",
    "predictor_corrector",
    "probability_flow_euler",
    "probability_flow_heun",
    "sample",
    "sample_trajectory",
    "self_conditioned",
    "slerp",
    "unipc",
]
