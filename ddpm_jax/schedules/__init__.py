"""Noise schedules: the tables, the families of the literature, and processes made from others."""

from ddpm_jax.schedules.families import (
    constant_schedule,
    cosine_schedule,
    jsd_schedule,
    linear_schedule,
    quadratic_schedule,
    sigmoid_schedule,
    warmup_schedule,
)
from ddpm_jax.schedules.respacing import SPACINGS, Spacing, respace, spaced_timesteps
from ddpm_jax.schedules.table import (
    NoiseSchedule,
    lookup,
    schedule_from_alpha_bar,
    schedule_from_beta,
    schedule_from_noise_levels,
)
from ddpm_jax.schedules.zero_terminal_snr import rescale_zero_terminal_snr

__all__ = [
    "SPACINGS",
    "NoiseSchedule",
    "Spacing",
    "constant_schedule",
    "cosine_schedule",
    "jsd_schedule",
    "linear_schedule",
    "lookup",
    "quadratic_schedule",
    "rescale_zero_terminal_snr",
    "respace",
    "schedule_from_alpha_bar",
    "schedule_from_beta",
    "schedule_from_noise_levels",
    "sigmoid_schedule",
    "spaced_timesteps",
    "warmup_schedule",
]
