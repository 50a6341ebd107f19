"""What training minimises: objectives, weights over noise levels, and how t is drawn."""

from ddpm_jax.losses.learned_schedule import ContinuousBound as ContinuousBound
from ddpm_jax.losses.learned_schedule import continuous_bound as continuous_bound
from ddpm_jax.losses.objectives import bound_loss as bound_loss
from ddpm_jax.losses.objectives import hybrid_loss as hybrid_loss
from ddpm_jax.losses.objectives import simple_loss as simple_loss
from ddpm_jax.losses.timesteps import LossHistory as LossHistory
from ddpm_jax.losses.timesteps import importance_probabilities as importance_probabilities
from ddpm_jax.losses.timesteps import importance_timesteps as importance_timesteps
from ddpm_jax.losses.timesteps import init_loss_history as init_loss_history
from ddpm_jax.losses.timesteps import stratified_timesteps as stratified_timesteps
from ddpm_jax.losses.timesteps import uniform_timesteps as uniform_timesteps
from ddpm_jax.losses.timesteps import update_loss_history as update_loss_history
from ddpm_jax.losses.weightings import Weighting as Weighting
from ddpm_jax.losses.weightings import bound_weight as bound_weight
from ddpm_jax.losses.weightings import loss_weight as loss_weight
from ddpm_jax.losses.weightings import min_snr_weighting as min_snr_weighting
from ddpm_jax.losses.weightings import p2_weighting as p2_weighting
from ddpm_jax.losses.weightings import snr_plus_one_weighting as snr_plus_one_weighting
from ddpm_jax.losses.weightings import snr_weighting as snr_weighting
from ddpm_jax.losses.weightings import truncated_snr_weighting as truncated_snr_weighting
