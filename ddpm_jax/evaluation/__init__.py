"""Measures of samples: how near to the data, how recognisable, how varied, how much copied."""

from ddpm_jax.evaluation.classifier import (
    Classify,
    fit_classifier,
    label_entropy,
    label_histogram,
    share_confident,
)
from ddpm_jax.evaluation.metrics import (
    Interval,
    Moments,
    bootstrap_interval,
    fitted_gaussian_images,
    frechet_distance,
    moments,
    pixel_features,
    update_moments,
)
from ddpm_jax.evaluation.neighbours import Neighbours, nearest_neighbours

__all__ = [
    "Classify",
    "Interval",
    "Moments",
    "Neighbours",
    "bootstrap_interval",
    "fit_classifier",
    "fitted_gaussian_images",
    "frechet_distance",
    "label_entropy",
    "label_histogram",
    "moments",
    "nearest_neighbours",
    "pixel_features",
    "share_confident",
    "update_moments",
]
