"""The Inception Score of Salimans et al. (2016): confident single images, varied classes.

    IS = exp( E_x KL( p(y|x) ‖ p(y) ) ),    p(y) = E_x p(y|x)

It lies between 1 (every image has the same label distribution) and K (each image has one certain
class, and all classes are equally frequent). It does not use the data, and grows with the number of
images per split.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, xlogy

from ddpm_jax.evaluation.checks import checked_features, checked_probabilities
from ddpm_jax.forward.checks import check_whole


class InceptionScore(NamedTuple):
    """Mean and standard deviation (divisor: their number) of the score over the splits."""

    mean: float
    std: float
    splits: int


def inception_score(
    *,
    logits: npt.ArrayLike | None = None,
    probabilities: npt.ArrayLike | None = None,
    splits: int = 10,
) -> InceptionScore:
    """Computes the Inception Score of logits or probabilities [N, K], in the order of the images.

    Split i has the rows i·N//splits to (i+1)·N//splits, unshuffled, as in the paper's code: images
    sorted by class give a small score. For numbers as published pass the network's
    `logits_unbiased`: the reference code multiplies by the last weight and leaves out the bias.

    Raises ValueError unless exactly one of the two is given, for other shapes, for rows that are
    not probabilities, and unless 1 ≤ splits ≤ N.
    """
    if (logits is None) == (probabilities is None):
        raise ValueError("inception_score needs either logits or probabilities, and not both.")
    if probabilities is not None:
        p = checked_probabilities("inception_score", probabilities)
    else:
        x = checked_features("inception_score", "logits", logits).astype(np.float64)  # type: ignore
        p = np.exp(x - logsumexp(x, axis=1, keepdims=True))
    remedy = "Each needs an image."
    splits = check_whole("inception_score", "splits", splits, most=len(p), remedy=remedy)
    edges = [i * len(p) // splits for i in range(splits + 1)]
    scores = [_score(p[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), splits)


def _score(p: npt.NDArray[np.float64]) -> float:
    """exp(E KL) as exp(H(mean) - mean H); xlogy gives 0 ln 0 = 0 for impossible classes."""
    marginal = p.mean(axis=0)
    return float(np.exp(xlogy(p, p).sum(axis=1).mean() - xlogy(marginal, marginal).sum()))
