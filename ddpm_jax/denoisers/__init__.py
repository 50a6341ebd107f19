"""The denoiser (x_t, timesteps) → x̂_0: network outputs, guidance, noise levels σ, and scores."""

from ddpm_jax.denoisers.continuous import continuous_target as continuous_target
from ddpm_jax.denoisers.continuous import continuous_x_0 as continuous_x_0
from ddpm_jax.denoisers.continuous import denoiser_from_process as denoiser_from_process
from ddpm_jax.denoisers.continuous import edm_denoiser as edm_denoiser
from ddpm_jax.denoisers.continuous import sigma_denoiser_from_process as sigma_denoiser_from_process
from ddpm_jax.denoisers.continuous import velocity_from_denoiser as velocity_from_denoiser
from ddpm_jax.denoisers.denoiser import make_denoiser as make_denoiser
from ddpm_jax.denoisers.guidance import classifier_free as classifier_free
from ddpm_jax.denoisers.guidance import classifier_guided as classifier_guided
from ddpm_jax.denoisers.guidance import guidance_interval as guidance_interval
from ddpm_jax.denoisers.inverse_problems import dps as dps
from ddpm_jax.denoisers.inverse_problems import pi_gdm as pi_gdm
from ddpm_jax.denoisers.optimal_variance import optimal_log_variance as optimal_log_variance
from ddpm_jax.denoisers.optimal_variance import x_0_mse_from_epsilon as x_0_mse_from_epsilon
from ddpm_jax.denoisers.prediction import ReverseStep as ReverseStep
from ddpm_jax.denoisers.prediction import convert_prediction as convert_prediction
from ddpm_jax.denoisers.prediction import p_mean_variance as p_mean_variance
from ddpm_jax.denoisers.prediction import predict_epsilon as predict_epsilon
from ddpm_jax.denoisers.prediction import predict_x_0 as predict_x_0
from ddpm_jax.denoisers.prediction import training_target as training_target
from ddpm_jax.denoisers.scheduled import ScheduledDenoiser as ScheduledDenoiser
from ddpm_jax.denoisers.scores import denoiser_from_score as denoiser_from_score
from ddpm_jax.denoisers.scores import noise_levels as noise_levels
from ddpm_jax.denoisers.scores import score_from_denoiser as score_from_denoiser
from ddpm_jax.denoisers.self_conditioning import (
    self_conditioned_denoiser as self_conditioned_denoiser,
)
from ddpm_jax.denoisers.self_conditioning import with_previous_estimate as with_previous_estimate
from ddpm_jax.denoisers.sigma import SigmaDenoiser as SigmaDenoiser
from ddpm_jax.denoisers.sigma import denoiser_from_sigma as denoiser_from_sigma
from ddpm_jax.denoisers.sigma import sigma_denoiser as sigma_denoiser
from ddpm_jax.denoisers.sigma import sigma_range as sigma_range
from ddpm_jax.denoisers.thresholds import dynamic_threshold as dynamic_threshold
