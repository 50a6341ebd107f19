"""The forward process q: schedules, grids made from them, sampling x_t, and its posterior."""

from ddpm_jax.forward.families import constant_schedule as constant_schedule
from ddpm_jax.forward.families import cosine_schedule as cosine_schedule
from ddpm_jax.forward.families import jsd_schedule as jsd_schedule
from ddpm_jax.forward.families import linear_schedule as linear_schedule
from ddpm_jax.forward.families import quadratic_schedule as quadratic_schedule
from ddpm_jax.forward.families import sigmoid_schedule as sigmoid_schedule
from ddpm_jax.forward.families import warmup_schedule as warmup_schedule
from ddpm_jax.forward.pixels import from_pixels as from_pixels
from ddpm_jax.forward.pixels import to_pixels as to_pixels
from ddpm_jax.forward.process import Gaussian as Gaussian
from ddpm_jax.forward.process import posterior_mean as posterior_mean
from ddpm_jax.forward.process import posterior_variance as posterior_variance
from ddpm_jax.forward.process import q_mean_variance as q_mean_variance
from ddpm_jax.forward.process import q_posterior as q_posterior
from ddpm_jax.forward.process import q_sample as q_sample
from ddpm_jax.forward.respacing import SPACINGS as SPACINGS
from ddpm_jax.forward.respacing import Spacing as Spacing
from ddpm_jax.forward.respacing import karras_timesteps as karras_timesteps
from ddpm_jax.forward.respacing import rescale_zero_terminal_snr as rescale_zero_terminal_snr
from ddpm_jax.forward.respacing import respace as respace
from ddpm_jax.forward.respacing import spaced_timesteps as spaced_timesteps
from ddpm_jax.forward.schedule import NoiseSchedule as NoiseSchedule
from ddpm_jax.forward.schedule import lookup as lookup
from ddpm_jax.forward.schedule import schedule_from_alpha_bar as schedule_from_alpha_bar
from ddpm_jax.forward.schedule import schedule_from_beta as schedule_from_beta
from ddpm_jax.forward.schedule import schedule_from_noise_levels as schedule_from_noise_levels
