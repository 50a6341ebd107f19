"""What the models of `rivals_digits.py` learn: 8×8 digits, whose 17 grey levels become intervals.

    x = 2 (v + u)/17 - 1,    v ∈ {0, …, 16},  u ~ U[0, 1)               (uniform dequantisation)

fills [-1, 1], and log P(v) ≥ E_u log p(x) + d log (2/17) (Theis, van den Oord, Bethge 2016,
1511.01844, §3.1). So a density of vectors bounds the code length of the levels, and the uniform
density on [-1, 1] costs log2 17 = 4.09 bits per pixel, as it should.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from ddpm_jax import evaluation
from ddpm_jax.data.digits import load_digits
from ddpm_jax.likelihood import bits_per_dim
from ddpm_jax.types import Array, Key
from rivals.measures import mode_shares

LEVELS = 17
DIM = 64
CONFIDENT = 0.9
"""A sample shows a digit if the classifier gives one label more than this probability."""


def to_vectors(images: np.ndarray, key: Key) -> Array:
    """Dequantised vectors [N, 64] in [-1, 1] of digits uint8 [N, 8, 8, 1]."""
    levels = np.rint(images.reshape(len(images), DIM) * ((LEVELS - 1) / 255.0))
    return 2.0 * (jnp.asarray(levels) + jax.random.uniform(key, levels.shape)) / LEVELS - 1.0


def to_images(x: np.ndarray) -> np.ndarray:
    """The inverse: uint8 [N, 8, 8, 1] of vectors [N, 64]; values outside [-1, 1] are clipped."""
    levels = np.clip(np.floor((np.asarray(x, np.float64) + 1.0) * LEVELS / 2.0), 0, LEVELS - 1)
    return np.round(levels * (255.0 / (LEVELS - 1))).astype(np.uint8).reshape(-1, 8, 8, 1)


def bits(log_p: Any) -> float:
    """The mean over log p [N] in nats of dequantised digits, as bits per pixel of 17 levels."""
    return float(jnp.mean(bits_per_dim(jnp.asarray(log_p), (DIM,), bin_width=2.0 / LEVELS)))


class Digits(NamedTuple):
    """Training and held-out digits, uint8 [N, 8, 8, 1], and the measures that compare with them.

    Attributes:
        train: the training digits.
        heldout: as many held-out digits as samples are drawn.
        distance: `images -> ` the Fréchet distance of pixels to the training digits.
        labels: `images -> ` the share that is no confident digit, the share of labels covered and
            the error of their weights (`mode_shares`).
    """

    train: np.ndarray
    heldout: np.ndarray
    distance: Callable[[np.ndarray], float]
    labels: Callable[[np.ndarray], dict[str, float]]


def load(count: int) -> Digits:
    """All training digits, and `count` held-out digits spread evenly over the classes."""
    train, heldout = load_digits("train"), load_digits("heldout")
    order = np.argsort(heldout.labels, kind="stable")
    chosen = order[evenly(len(order), count)]
    classify = evaluation.fit_classifier(train.images, train.labels)
    truth = evaluation.moments(evaluation.pixel_features(train.images))
    weights = np.bincount(train.labels) / len(train.labels)

    def distance(images: np.ndarray) -> float:
        features = evaluation.pixel_features(images)
        return evaluation.frechet_distance(truth, evaluation.moments(features))

    def labels(images: np.ndarray) -> dict[str, float]:
        p = classify(images)
        return mode_shares(np.where(p.max(axis=1) > CONFIDENT, p.argmax(axis=1), -1), weights)

    return Digits(train.images, heldout.images[chosen], distance, labels)


def evenly(total: int, count: int) -> np.ndarray:
    """`count` of the indices below `total`, evenly spaced."""
    return np.arange(count) * total // count


def fitted_gaussian(x: np.ndarray) -> Any:
    """The Gaussian with the mean and covariance of vectors x [N, d]: the model to beat."""
    covariance: Any = np.cov(x, rowvar=False)
    return scipy.stats.multivariate_normal(x.mean(axis=0), covariance)
