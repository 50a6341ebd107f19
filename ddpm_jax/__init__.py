# ruff: noqa: I001 (the order is the papers')
"""Denoising diffusion probabilistic models as pure functions in JAX.

The names of the papers are here, in the papers' order. Schedules are tables computed on the host in
float64; everything else is traceable: arrays in, arrays out, for the caller to jit, vmap,
differentiate and map over devices. Bad arguments raise ValueError or TypeError that names the call.

The packages hold the rest. Attributes of this module: `forward` (the process q), `nn` (networks),
`denoisers` (x̂_0 from a network), `losses`, `likelihood`, `samplers`, `score` (score matching and
Langevin dynamics), `keys` and `types`. Import these by name: `ddpm_jax.data`, `training`,
`evaluation`, `interop`, `devices`, `visualize` and `programs`.
"""

import sys as _sys
from typing import NoReturn as _NoReturn

# The packages of pure functions.
from ddpm_jax import denoisers as denoisers
from ddpm_jax import forward as forward
from ddpm_jax import keys as keys
from ddpm_jax import likelihood as likelihood
from ddpm_jax import losses as losses
from ddpm_jax import nn as nn
from ddpm_jax import samplers as samplers
from ddpm_jax import score as score
from ddpm_jax import types as types

# The forward process: schedules, q(x_t | x_0) and its posterior.
from ddpm_jax.forward import NoiseSchedule as NoiseSchedule
from ddpm_jax.forward import linear_schedule as linear_schedule
from ddpm_jax.forward import quadratic_schedule as quadratic_schedule
from ddpm_jax.forward import constant_schedule as constant_schedule
from ddpm_jax.forward import warmup_schedule as warmup_schedule
from ddpm_jax.forward import jsd_schedule as jsd_schedule
from ddpm_jax.forward import cosine_schedule as cosine_schedule
from ddpm_jax.forward import sigmoid_schedule as sigmoid_schedule
from ddpm_jax.forward import schedule_from_beta as schedule_from_beta
from ddpm_jax.forward import schedule_from_alpha_bar as schedule_from_alpha_bar
from ddpm_jax.forward import schedule_from_noise_levels as schedule_from_noise_levels
from ddpm_jax.forward import rescale_zero_terminal_snr as rescale_zero_terminal_snr
from ddpm_jax.forward import respace as respace
from ddpm_jax.forward import spaced_timesteps as spaced_timesteps
from ddpm_jax.forward import karras_timesteps as karras_timesteps
from ddpm_jax.forward import from_pixels as from_pixels
from ddpm_jax.forward import to_pixels as to_pixels
from ddpm_jax.forward import q_sample as q_sample
from ddpm_jax.forward import q_mean_variance as q_mean_variance
from ddpm_jax.forward import q_posterior as q_posterior
from ddpm_jax.forward import posterior_mean as posterior_mean

# Networks.
from ddpm_jax.nn import UNet as UNet
from ddpm_jax.nn import MLP as MLP

# The reverse process p_θ: what a network predicts, and the denoiser made of it.
from ddpm_jax.denoisers import make_denoiser as make_denoiser
from ddpm_jax.denoisers import p_mean_variance as p_mean_variance
from ddpm_jax.denoisers import predict_x_0 as predict_x_0
from ddpm_jax.denoisers import convert_prediction as convert_prediction
from ddpm_jax.denoisers import training_target as training_target
from ddpm_jax.denoisers import dynamic_threshold as dynamic_threshold
from ddpm_jax.denoisers import classifier_free as classifier_free
from ddpm_jax.denoisers import classifier_guided as classifier_guided
from ddpm_jax.denoisers import optimal_log_variance as optimal_log_variance
from ddpm_jax.denoisers import denoiser_from_score as denoiser_from_score
from ddpm_jax.denoisers import score_from_denoiser as score_from_denoiser
from ddpm_jax.denoisers import sigma_denoiser as sigma_denoiser
from ddpm_jax.denoisers import sigma_range as sigma_range

# Training: objectives, weights over noise levels, and how t is drawn.
from ddpm_jax.losses import simple_loss as simple_loss
from ddpm_jax.losses import bound_loss as bound_loss
from ddpm_jax.losses import hybrid_loss as hybrid_loss
from ddpm_jax.losses import loss_weight as loss_weight
from ddpm_jax.losses import min_snr_weighting as min_snr_weighting
from ddpm_jax.losses import uniform_timesteps as uniform_timesteps
from ddpm_jax.losses import stratified_timesteps as stratified_timesteps

# Likelihood: the variational bound and the probability-flow ODE.
from ddpm_jax.likelihood import discretized_log_likelihood as discretized_log_likelihood
from ddpm_jax.likelihood import variational_bound as variational_bound
from ddpm_jax.likelihood import estimate_bound as estimate_bound
from ddpm_jax.likelihood import rate_distortion as rate_distortion
from ddpm_jax.likelihood import probability_flow_sample as probability_flow_sample
from ddpm_jax.likelihood import probability_flow_encode as probability_flow_encode
from ddpm_jax.likelihood import probability_flow_log_likelihood as probability_flow_log_likelihood
from ddpm_jax.likelihood import dequantize as dequantize
from ddpm_jax.likelihood import bits_per_dim as bits_per_dim

# Sampling: a step kernel each, run by one loop.
from ddpm_jax.keys import example_keys as example_keys
from ddpm_jax.keys import normal_per_example as normal_per_example
from ddpm_jax.types import Denoised as Denoised
from ddpm_jax.samplers import Sampler as Sampler
from ddpm_jax.samplers import StepResult as StepResult
from ddpm_jax.samplers import initial_noise as initial_noise
from ddpm_jax.samplers import sample as sample
from ddpm_jax.samplers import sample_trajectory as sample_trajectory
from ddpm_jax.samplers import ancestral as ancestral
from ddpm_jax.samplers import ddim as ddim
from ddpm_jax.samplers import ddim_encode as ddim_encode
from ddpm_jax.samplers import dpm_solver_pp as dpm_solver_pp
from ddpm_jax.samplers import unipc as unipc
from ddpm_jax.samplers import deis as deis
from ddpm_jax.samplers import heun as heun
from ddpm_jax.samplers import predictor_corrector as predictor_corrector
from ddpm_jax.samplers import annealed_langevin as annealed_langevin
from ddpm_jax.samplers import inpaint as inpaint
from ddpm_jax.samplers import slerp as slerp

__version__ = "0.1.0"

_ROOMS = (forward, nn, denoisers, losses, likelihood, samplers, score, keys, types)
# Whatever was imported above is public, in that order.
__all__ = [
    name
    for name, value in list(globals().items())
    if not name.startswith("_") and value not in _ROOMS
]
__doc__ = (
    (__doc__ or "")
    + "\nIn the papers' order:\n\n"
    + "\n".join(
        f"    {name:32}{(globals()[name].__doc__ or ' ').splitlines()[0]}" for name in __all__
    )
)


if getattr(_sys, "argv", [])[:1] == ["-m"]:  # `python -m` imports the package of a module first
    from ddpm_jax.programs.cli import refuse_module as _refuse_module

    _refuse_module(_sys.argv, _sys.orig_argv)


def load_run(source, **options):
    """Opens a trained model: a run directory, a folder of weights, or the name of a shipped one.

    Returns a `ddpm_jax.programs.trained_run.TrainedRun`, with `params`, `schedule`, `apply_fn`,
    `denoiser(...)` and `sample(count) -> uint8 [count, H, W, C]`. Options: checkpoint, ema,
    data_path, num_devices, seed.

    >>> dj.load_run("digits").sample(2, sampler="ddim", num_steps=2).shape
    (2, 8, 8, 1)
    """
    from ddpm_jax.programs.trained_run import load_run as load

    return load(source, **options)


def __getattr__(name: str) -> _NoReturn:
    """Says which room has a name that is not here."""
    for room in _ROOMS:
        if not name.startswith("_") and hasattr(room, name):
            place = f"{room.__name__}.{name}"
            raise AttributeError(f"module 'ddpm_jax' has no attribute {name!r}. Use {place}.")
    raise AttributeError(f"module 'ddpm_jax' has no attribute {name!r}")
