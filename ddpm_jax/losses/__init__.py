"""What training minimises: objectives, weights over noise levels, and how t is drawn."""

from ddpm_jax.losses.objectives import bound_loss, hybrid_loss, simple_loss
from ddpm_jax.losses.timesteps import (
    LossHistory,
    importance_probabilities,
    importance_timesteps,
    init_loss_history,
    stratified_timesteps,
    uniform_timesteps,
    update_loss_history,
)
from ddpm_jax.losses.weightings import (
    Weighting,
    bound_weight,
    loss_weight,
    min_snr_weighting,
    p2_weighting,
    snr_plus_one_weighting,
    snr_weighting,
    truncated_snr_weighting,
)

__all__ = [
    "LossHistory",
    "Weighting",
    "bound_loss",
    "bound_weight",
    "hybrid_loss",
    "importance_probabilities",
    "importance_timesteps",
    "init_loss_history",
    "loss_weight",
    "min_snr_weighting",
    "p2_weighting",
    "simple_loss",
    "snr_plus_one_weighting",
    "snr_weighting",
    "stratified_timesteps",
    "truncated_snr_weighting",
    "uniform_timesteps",
    "update_loss_history",
]
