"""Denoising diffusion probabilistic models as pure functions in JAX.

Schedules, respacing and spacings are tables made on the host, in float64. Everything else exported
here is traceable: arrays in, arrays out, to be jitted, vmapped, differentiated and mapped over
devices by whoever calls it. Training, data, evaluation and drawing live in the subpackages
`training`, `data`, `evaluation`, `generation` and `visualize`, imported where they are used.
"""

from ddpm_jax.gaussian import (
    Gaussian,
    posterior_mean,
    posterior_variance,
    q_mean_variance,
    q_posterior,
    q_sample,
)
from ddpm_jax.keys import example_keys, normal_per_example
from ddpm_jax.losses import simple_loss, stratified_timesteps, uniform_timesteps
from ddpm_jax.nn import MLP, UNet
from ddpm_jax.pixels import from_pixels, to_pixels
from ddpm_jax.prediction import (
    ReverseStep,
    convert_prediction,
    make_denoiser,
    p_mean_variance,
    predict_epsilon,
    predict_x_0,
    training_target,
)
from ddpm_jax.samplers import (
    Sampler,
    StepResult,
    Trajectory,
    advance,
    ancestral,
    ddim,
    grid_steps,
    initial_noise,
    sample,
    sample_trajectory,
)
from ddpm_jax.schedules import (
    NoiseSchedule,
    constant_schedule,
    cosine_schedule,
    jsd_schedule,
    linear_schedule,
    quadratic_schedule,
    respace,
    schedule_from_alpha_bar,
    schedule_from_beta,
    sigmoid_schedule,
    spaced_timesteps,
    warmup_schedule,
)
from ddpm_jax.types import Array, Denoiser, Key, bcast_right, mean_per_example

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "Array",
    "Denoiser",
    "Gaussian",
    "Key",
    "NoiseSchedule",
    "ReverseStep",
    "Sampler",
    "StepResult",
    "Trajectory",
    "UNet",
    "advance",
    "ancestral",
    "bcast_right",
    "constant_schedule",
    "convert_prediction",
    "cosine_schedule",
    "ddim",
    "example_keys",
    "from_pixels",
    "grid_steps",
    "initial_noise",
    "jsd_schedule",
    "linear_schedule",
    "make_denoiser",
    "mean_per_example",
    "normal_per_example",
    "p_mean_variance",
    "posterior_mean",
    "posterior_variance",
    "predict_epsilon",
    "predict_x_0",
    "q_mean_variance",
    "q_posterior",
    "q_sample",
    "quadratic_schedule",
    "respace",
    "sample",
    "sample_trajectory",
    "schedule_from_alpha_bar",
    "schedule_from_beta",
    "sigmoid_schedule",
    "simple_loss",
    "spaced_timesteps",
    "stratified_timesteps",
    "to_pixels",
    "training_target",
    "uniform_timesteps",
    "warmup_schedule",
]
