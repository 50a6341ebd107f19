"""The split of scikit-learn's digits: apart, complete, stratified, the same everywhere."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets

from ddpm_jax.data import digits, load_digits
from ddpm_jax.data.digits import split_indices


def test_the_parts_are_disjoint_complete_and_stratified():
    labels = datasets.load_digits().target
    train, heldout = split_indices(labels)
    assert len(heldout) == 360
    np.testing.assert_array_equal(np.sort(np.concatenate([train, heldout])), np.arange(1797))
    share = np.bincount(labels) / 5
    assert np.all(np.abs(np.bincount(labels[heldout]) - share) < 1)


def test_the_held_out_digits_are_every_fifth_of_a_class():
    """By hand: sorted by class, positions 0, 5, 10, … are held out."""
    labels = np.array([1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0])
    # Class 0 at 1 3 4 6 9 10, class 1 at 0 2 5 7 8: the sorted list is 1 3 4 6 9 | 10 0 2 5 7 | 8.
    train, heldout = split_indices(labels)
    np.testing.assert_array_equal(heldout, [1, 8, 10])
    np.testing.assert_array_equal(train, [0, 2, 3, 4, 5, 6, 7, 9])


def test_the_held_out_digits_are_spread_over_the_writers():
    """A writer is a run of about 138 digits; every run of 100 gives near a fifth."""
    _, heldout = split_indices(datasets.load_digits().target)
    counts = np.histogram(heldout, bins=np.arange(0, 1800, 100))[0][:-1]
    assert np.all(np.abs(counts - 20) <= 5)


@pytest.mark.parametrize(("split", "part"), [("train", 0), ("heldout", 1)])
def test_grey_levels_are_scaled_to_the_full_range(split, part):
    raw = datasets.load_digits()
    chosen = split_indices(raw.target)[part]
    dataset = load_digits(split)
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int32
    assert dataset.num_classes == 10
    assert dataset.name == f"digits/{split}"
    np.testing.assert_array_equal(dataset.labels, raw.target[chosen])
    np.testing.assert_allclose(
        dataset.images[..., 0], raw.images[chosen] * 255 / 16, rtol=0, atol=0.5
    )
    assert (dataset.images.min(), dataset.images.max()) == (0, 255)


def test_the_parts_have_different_fingerprints():
    assert load_digits("train").fingerprint != load_digits("heldout").fingerprint


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="\"heldout\", got 'test'"):
        load_digits("test")  # type: ignore


def test_the_file_is_read_as_scikit_learn_reads_it(monkeypatch):
    wanted = datasets.load_digits(return_X_y=True)
    for found in (digits.importlib.util.find_spec, lambda name: None):
        monkeypatch.setattr(digits.importlib.util, "find_spec", found)
        for got, want in zip(digits._levels_and_labels.__wrapped__(), wanted, strict=True):
            np.testing.assert_array_equal(got, want)


def test_scikit_learn_is_not_imported():
    """It takes longer to import than JAX."""
    code = "import sys; from ddpm_jax.data import load_digits; load_digits('train'); "
    subprocess.run([sys.executable, "-c", code + "assert 'sklearn' not in sys.modules"], check=True)
