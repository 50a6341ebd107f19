"""Measures of samples: distance to the data, recognisability, variety, memorisation."""

from ddpm_jax.evaluation.classifier import (
    Classify,
    fit_classifier,
    label_entropy,
    label_histogram,
    share_confident,
)
from ddpm_jax.evaluation.features import (
    FeatureExtractor,
    batches_of,
    inception_extractor,
    variables_fingerprint,
)
from ddpm_jax.evaluation.image_sets import ImageSet, open_images
from ddpm_jax.evaluation.inception_score import InceptionScore, inception_score
from ddpm_jax.evaluation.inception_v3 import InceptionOutput, InceptionV3
from ddpm_jax.evaluation.inception_weights import (
    inception_variables_from_torch,
    inception_variables_to_torch,
    load_inception_weights,
)
from ddpm_jax.evaluation.kid import KernelDistance, kernel_distance, polynomial_mmd
from ddpm_jax.evaluation.metrics import (
    Interval,
    Moments,
    bootstrap_interval,
    fitted_gaussian_images,
    frechet_distance,
    moments,
    pixel_features,
    rms_difference,
    rms_pairwise,
    update_moments,
)
from ddpm_jax.evaluation.neighbours import Neighbours, nearest_neighbours
from ddpm_jax.evaluation.precision_recall import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)
from ddpm_jax.evaluation.preprocessing import (
    PREPROCESSINGS,
    PYTORCH,
    TF1,
    Preprocessing,
    resize_pytorch,
    resize_tf1,
)
from ddpm_jax.evaluation.statistics import (
    StatisticsKey,
    cached_statistics,
    load_statistics,
    read_reference_statistics,
    save_statistics,
)
from ddpm_jax.evaluation.summary import FeatureSummary, moments_of, summarize_features

__all__ = [
    "PREPROCESSINGS",
    "PYTORCH",
    "TF1",
    "Classify",
    "DensityCoverage",
    "FeatureExtractor",
    "FeatureSummary",
    "ImageSet",
    "InceptionOutput",
    "InceptionScore",
    "InceptionV3",
    "Interval",
    "KernelDistance",
    "Moments",
    "Neighbours",
    "PrecisionRecall",
    "Preprocessing",
    "StatisticsKey",
    "batches_of",
    "bootstrap_interval",
    "cached_statistics",
    "density_coverage",
    "fit_classifier",
    "fitted_gaussian_images",
    "frechet_distance",
    "inception_extractor",
    "inception_score",
    "inception_variables_from_torch",
    "inception_variables_to_torch",
    "kernel_distance",
    "label_entropy",
    "label_histogram",
    "load_inception_weights",
    "load_statistics",
    "moments",
    "moments_of",
    "nearest_neighbours",
    "open_images",
    "pixel_features",
    "polynomial_mmd",
    "precision_recall",
    "read_reference_statistics",
    "resize_pytorch",
    "resize_tf1",
    "rms_difference",
    "rms_pairwise",
    "save_statistics",
    "share_confident",
    "summarize_features",
    "update_moments",
    "variables_fingerprint",
]
