"""Samplers: step kernels, one file each, run by the one loop in `base`."""

from ddpm_jax.samplers.ancestral import ancestral as ancestral
from ddpm_jax.samplers.annealed_langevin import annealed_langevin as annealed_langevin
from ddpm_jax.samplers.base import Sampler as Sampler
from ddpm_jax.samplers.base import StepResult as StepResult
from ddpm_jax.samplers.base import Trajectory as Trajectory
from ddpm_jax.samplers.base import advance as advance
from ddpm_jax.samplers.base import grid_steps as grid_steps
from ddpm_jax.samplers.base import initial_noise as initial_noise
from ddpm_jax.samplers.base import sample as sample
from ddpm_jax.samplers.base import sample_trajectory as sample_trajectory
from ddpm_jax.samplers.continuous import euler_maruyama as euler_maruyama
from ddpm_jax.samplers.continuous import probability_flow_euler as probability_flow_euler
from ddpm_jax.samplers.continuous import probability_flow_heun as probability_flow_heun
from ddpm_jax.samplers.ddim import ddim as ddim
from ddpm_jax.samplers.ddim import ddim_encode as ddim_encode
from ddpm_jax.samplers.ddim import ddim_encode_trajectory as ddim_encode_trajectory
from ddpm_jax.samplers.deis import deis as deis
from ddpm_jax.samplers.dpm_solver import dpm_solver_pp as dpm_solver_pp
from ddpm_jax.samplers.heun import heun as heun
from ddpm_jax.samplers.inpaint import inpaint as inpaint
from ddpm_jax.samplers.interpolation import lerp as lerp
from ddpm_jax.samplers.interpolation import slerp as slerp
from ddpm_jax.samplers.predictor_corrector import predictor_corrector as predictor_corrector
from ddpm_jax.samplers.self_conditioning import self_conditioned as self_conditioned
from ddpm_jax.samplers.unipc import unipc as unipc
