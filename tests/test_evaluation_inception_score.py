"""The Inception Score in its closed forms."""

import numpy as np
import pytest

from ddpm_jax.evaluation import inception_score


def test_sure_and_varied_is_the_number_of_classes():
    p = np.tile(np.eye(7), (20, 1))
    found = inception_score(probabilities=p, splits=10)  # 14 rows a split: every class twice
    np.testing.assert_allclose(found, (7.0, 0.0, 10), atol=1e-12)


@pytest.mark.parametrize("row", [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
def test_always_the_same_is_one(row):
    found = inception_score(probabilities=np.tile(row, (30, 1)), splits=3)
    np.testing.assert_allclose(found[:2], (1.0, 0.0), atol=1e-12)


def test_two_labels_between():
    """p = (q, 1-q) or its mirror, equally often: IS = 2 exp(-H(q))."""
    q = 0.8
    p = np.tile([[q, 1 - q], [1 - q, q]], (50, 1))
    expected = 2 * np.exp(q * np.log(q) + (1 - q) * np.log(1 - q))
    np.testing.assert_allclose(inception_score(probabilities=p, splits=1).mean, expected)


def test_logits_are_the_probabilities_they_stand_for():
    """Far from zero too, where an unguarded exponential overflows, and in float32."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((40, 6)) * 3
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = inception_score(probabilities=p, splits=4)
    np.testing.assert_allclose(inception_score(logits=logits, splits=4), expected, rtol=1e-12)
    shifted = (logits + 5000).astype(np.float32)
    np.testing.assert_allclose(inception_score(logits=shifted, splits=4), expected, rtol=1e-3)


def test_splits_are_consecutive_and_of_the_paper():
    """Ten rows in four splits: 2, 3, 2, 3 of them. Mean and standard deviation over the splits."""
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(5), size=10)
    scores = []
    for part in (p[:2], p[2:5], p[5:7], p[7:]):
        marginal = part.mean(axis=0)
        scores.append(np.exp((part * (np.log(part) - np.log(marginal))).sum(axis=1).mean()))
    found = inception_score(probabilities=p, splits=4)
    np.testing.assert_allclose(found[:2], (np.mean(scores), np.std(scores)), rtol=1e-12)


def test_refusals_say_what_to_do():
    p = np.full((4, 2), 0.5)
    with pytest.raises(ValueError, match="either logits or probabilities"):
        inception_score(logits=p, probabilities=p)
    with pytest.raises(ValueError, match="either logits or probabilities"):
        inception_score()
    with pytest.raises(ValueError, match="as logits="):
        inception_score(probabilities=p * 2, splits=1)
    with pytest.raises(ValueError, match="splits"):
        inception_score(probabilities=p)
    with pytest.raises(ValueError, match="finite logits"):
        inception_score(logits=p * np.nan)
