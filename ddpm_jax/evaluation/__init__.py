"""Measures of samples: distance to the data, recognisability, variety, memorisation."""

from ddpm_jax.evaluation.classifier import Classify as Classify
from ddpm_jax.evaluation.classifier import fit_classifier as fit_classifier
from ddpm_jax.evaluation.classifier import label_entropy as label_entropy
from ddpm_jax.evaluation.classifier import label_histogram as label_histogram
from ddpm_jax.evaluation.classifier import share_confident as share_confident
from ddpm_jax.evaluation.features import FeatureExtractor as FeatureExtractor
from ddpm_jax.evaluation.features import batches_of as batches_of
from ddpm_jax.evaluation.features import inception_extractor as inception_extractor
from ddpm_jax.evaluation.features import variables_fingerprint as variables_fingerprint
from ddpm_jax.evaluation.image_classifier import ClassifierOutput as ClassifierOutput
from ddpm_jax.evaluation.image_classifier import ImageClassifier as ImageClassifier
from ddpm_jax.evaluation.image_classifier import classifier_extractor as classifier_extractor
from ddpm_jax.evaluation.image_sets import ImageSet as ImageSet
from ddpm_jax.evaluation.image_sets import open_images as open_images
from ddpm_jax.evaluation.inception_score import InceptionScore as InceptionScore
from ddpm_jax.evaluation.inception_score import inception_score as inception_score
from ddpm_jax.evaluation.inception_v3 import InceptionOutput as InceptionOutput
from ddpm_jax.evaluation.inception_v3 import InceptionV3 as InceptionV3
from ddpm_jax.evaluation.inception_weights import (
    inception_variables_from_torch as inception_variables_from_torch,
)
from ddpm_jax.evaluation.inception_weights import (
    inception_variables_to_torch as inception_variables_to_torch,
)
from ddpm_jax.evaluation.inception_weights import load_inception_weights as load_inception_weights
from ddpm_jax.evaluation.kid import KernelDistance as KernelDistance
from ddpm_jax.evaluation.kid import kernel_distance as kernel_distance
from ddpm_jax.evaluation.kid import polynomial_mmd as polynomial_mmd
from ddpm_jax.evaluation.metrics import Interval as Interval
from ddpm_jax.evaluation.metrics import Moments as Moments
from ddpm_jax.evaluation.metrics import bootstrap_interval as bootstrap_interval
from ddpm_jax.evaluation.metrics import fitted_gaussian_images as fitted_gaussian_images
from ddpm_jax.evaluation.metrics import frechet_distance as frechet_distance
from ddpm_jax.evaluation.metrics import moments as moments
from ddpm_jax.evaluation.metrics import pixel_features as pixel_features
from ddpm_jax.evaluation.metrics import rms_difference as rms_difference
from ddpm_jax.evaluation.metrics import rms_pairwise as rms_pairwise
from ddpm_jax.evaluation.metrics import update_moments as update_moments
from ddpm_jax.evaluation.neighbours import Neighbours as Neighbours
from ddpm_jax.evaluation.neighbours import nearest_neighbours as nearest_neighbours
from ddpm_jax.evaluation.precision_recall import DensityCoverage as DensityCoverage
from ddpm_jax.evaluation.precision_recall import PrecisionRecall as PrecisionRecall
from ddpm_jax.evaluation.precision_recall import density_coverage as density_coverage
from ddpm_jax.evaluation.precision_recall import precision_recall as precision_recall
from ddpm_jax.evaluation.preprocessing import PREPROCESSINGS as PREPROCESSINGS
from ddpm_jax.evaluation.preprocessing import PYTORCH as PYTORCH
from ddpm_jax.evaluation.preprocessing import TF1 as TF1
from ddpm_jax.evaluation.preprocessing import Preprocessing as Preprocessing
from ddpm_jax.evaluation.preprocessing import resize_pytorch as resize_pytorch
from ddpm_jax.evaluation.preprocessing import resize_tf1 as resize_tf1
from ddpm_jax.evaluation.statistics import StatisticsKey as StatisticsKey
from ddpm_jax.evaluation.statistics import cached_statistics as cached_statistics
from ddpm_jax.evaluation.statistics import load_statistics as load_statistics
from ddpm_jax.evaluation.statistics import read_reference_statistics as read_reference_statistics
from ddpm_jax.evaluation.statistics import save_statistics as save_statistics
from ddpm_jax.evaluation.summary import FeatureSummary as FeatureSummary
from ddpm_jax.evaluation.summary import moments_of as moments_of
from ddpm_jax.evaluation.summary import summarize_features as summarize_features
