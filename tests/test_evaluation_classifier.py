"""The classifier on real digits, on fakes and on noise; counts of labels, by hand."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ddpm_jax.evaluation import (
    fit_classifier,
    fitted_gaussian_images,
    label_entropy,
    label_histogram,
    share_confident,
)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    images = np.rint(data.images * 255 / 16).astype(np.uint8)[..., None]
    train, heldout, labels, heldout_labels = train_test_split(
        images, data.target, test_size=0.2, stratify=data.target, random_state=0
    )
    return train, labels, heldout, heldout_labels


@pytest.fixture(scope="module")
def classify(digits):
    train, labels, _, _ = digits
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a deprecated option of scikit-learn's would warn
        return fit_classifier(train, labels)


def test_held_out_digits_are_named_and_surely(digits, classify):
    _, _, heldout, labels = digits
    p = classify(heldout)
    assert p.shape == (360, 10) and p.dtype == np.float64
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-9)
    assert (p.argmax(axis=1) == labels).mean() >= 0.98
    assert share_confident(p) >= 0.95


def test_probabilities_are_calibrated(digits, classify):
    """The mean confidence is the accuracy, to within what 360 images can tell."""
    _, _, heldout, labels = digits
    p = classify(heldout)
    assert abs(p.max(axis=1).mean() - (p.argmax(axis=1) == labels).mean()) < 0.025
    log_loss = -np.log(p[np.arange(len(labels)), labels]).mean()
    assert log_loss < 0.05


def test_fakes_and_noise_are_doubted(digits, classify):
    """The fitted Gaussian shares every second moment with digits, and noise shares nothing."""
    train = digits[0]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1000, 8, 8, 1)).astype(np.uint8)
    speckle = (255 * (rng.random((1000, 8, 8, 1)) < 0.3)).astype(np.uint8)
    assert share_confident(classify(fitted_gaussian_images(train, 1000, seed=0))) < 0.33
    assert share_confident(classify(noise)) < 0.01
    assert share_confident(classify(speckle)) < 0.03


def test_all_classes_occur_and_a_collapse_shows(digits, classify):
    _, _, heldout, labels = digits
    p = classify(heldout)
    np.testing.assert_allclose(label_histogram(p), np.bincount(labels), atol=4)
    assert np.exp(label_entropy(p)) > 9.9
    sevens = classify(heldout[labels == 7])
    assert label_histogram(sevens).argmax() == 7 and np.exp(label_entropy(sevens)) < 1.5


def test_images_are_judged_one_by_one(digits, classify):
    heldout = digits[2]
    together = classify(jnp.asarray(heldout[:5]))
    alone = np.concatenate([classify(heldout[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(together, alone, rtol=1e-9, atol=1e-15)


def two_classes(count=20):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (2 * count, 3, 3, 1)).astype(np.uint8)
    labels = np.arange(2 * count) % 2
    images[labels == 1, 1] += 150
    return images, labels


def test_the_seed_alone_decides():
    images, labels = two_classes()
    first, again = (fit_classifier(images, labels, seed=3)(images) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first.argmax(axis=1), labels)


def test_classify_refuses_other_images():
    classify = fit_classifier(*two_classes())
    with pytest.raises(ValueError, match=r"fitted to images \(3, 3, 1\) and got \(4, 4, 1\)"):
        classify(np.zeros((1, 4, 4, 1), np.uint8))
    with pytest.raises(TypeError, match="classify needs uint8.*to_pixels"):
        classify(np.zeros((1, 3, 3, 1)))


@pytest.mark.parametrize(
    "change, error, words",
    [
        (lambda x, y: (x / 255, y), TypeError, "fit_classifier needs uint8"),
        (lambda x, y: (x[..., 0], y), ValueError, "fit_classifier needs images"),
        (lambda x, y: (x, y.astype(float)), TypeError, "integer labels, got dtype float64"),
        (lambda x, y: (x, y[1:]), ValueError, r"labels \[40\], one per image, got shape \(39,\)"),
        (lambda x, y: (x, y - 1), ValueError, "labels from 0 up, got -1"),
        (lambda x, y: (x, y * 2), ValueError, r"counts \[20, 0, 20\]"),
        (lambda x, y: (x, y * 0), ValueError, r"at least two classes.*counts \[40\]"),
        (lambda x, y: (x[:19], y[:19]), ValueError, r"counts \[10, 9\]"),
    ],
)
def test_fitting_refuses_what_it_cannot_learn(change, error, words):
    with pytest.raises(error, match=words):
        fit_classifier(*change(*two_classes()))


def test_share_confident_counts_rows_above_the_threshold():
    p = np.array([[0.9, 0.1], [0.91, 0.09], [0.5, 0.5], [0.0, 1.0]])
    assert share_confident(p) == 0.5  # exactly 0.9 is not above it
    assert share_confident(p, threshold=0.95) == 0.25
    assert share_confident(jnp.asarray(p, jnp.float32), threshold=0.4) == 1.0


def test_histogram_and_entropy_of_the_most_probable_classes():
    p = np.array([[0.6, 0.4, 0.0], [0.4, 0.6, 0.0], [0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    np.testing.assert_array_equal(label_histogram(p), [2, 2, 0])
    np.testing.assert_allclose(label_entropy(p), np.log(2))
    np.testing.assert_allclose(label_entropy(np.eye(7)), np.log(7))
    assert label_entropy(np.eye(7)[[3, 3, 3]]) == 0
    np.testing.assert_allclose(label_entropy(np.eye(2)[[0, 0, 0, 1]]), np.log(4) - 0.75 * np.log(3))


@pytest.mark.parametrize("measure", [share_confident, label_histogram, label_entropy])
@pytest.mark.parametrize(
    "p, words",
    [
        (np.ones(10) / 10, r"\[N, K\]"),
        (np.zeros((0, 10)), r"\[N, K\]"),
        (np.array([[2.0, 3.0]]), "sum to one"),
        (np.array([[1.5, -0.5]]), "≥ 0"),
        (np.array([[np.nan, 1.0]]), "finite"),
    ],
)
def test_scores_are_not_taken_for_probabilities(measure, p, words):
    with pytest.raises(ValueError, match=words):
        measure(p)
