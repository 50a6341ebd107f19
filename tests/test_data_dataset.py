"""The loaders' common currency: what is refused, and what a fingerprint tells apart."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from ddpm_jax.data import fingerprint_of, make_dataset
from ddpm_jax.data.dataset import Fingerprint


def images_and_labels(num=7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, 4, 5, 3), np.uint8), rng.integers(0, 10, num).astype(np.int32)


def test_the_fingerprint_is_the_documented_sha256():
    images, labels = images_and_labels()
    text = (
        b"images uint8 [7, 4, 5, 3]\n"
        + images.tobytes()
        + b"labels int32 [7]\n"
        + labels.astype("<i4").tobytes()
    )
    assert fingerprint_of(images, labels) == hashlib.sha256(text).hexdigest()


def test_the_fingerprint_does_not_depend_on_blocks_or_memory_layout():
    images, labels = images_and_labels()
    blocks = Fingerprint(images.shape)
    blocks.update(images[:3])
    blocks.update(images[3:])
    whole = fingerprint_of(images, labels)
    assert blocks.hexdigest(labels) == whole
    assert fingerprint_of(np.asfortranarray(images), labels) == whole
    assert fingerprint_of(images, labels.astype(np.int64)) == whole


@pytest.mark.parametrize("change", ["pixel", "label", "order", "shape"])
def test_the_fingerprint_notices(change):
    images, labels = images_and_labels()
    before = fingerprint_of(images, labels)
    if change == "pixel":
        images[3, 2, 1, 0] ^= 1
    elif change == "label":
        labels[6] = (labels[6] + 1) % 10
    elif change == "order":
        images = images[::-1]
    else:
        images = images.reshape(7, 5, 4, 3)
    assert fingerprint_of(images, labels) != before


def test_a_data_set_without_labels_has_zeros_and_no_classes():
    dataset = make_dataset(images_and_labels()[0], None, None, "plain")
    assert dataset.num_classes is None
    np.testing.assert_array_equal(dataset.labels, np.zeros(7, np.int32))


def test_what_is_returned_cannot_be_written():
    images, labels = images_and_labels()
    dataset = make_dataset(images, labels, 10, "toy")
    with pytest.raises(ValueError, match="read-only"):
        dataset.images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        dataset.labels[0] = 0
    images[0] = 1  # the caller's own array stays writable


@pytest.mark.parametrize(
    ("images", "labels", "num_classes", "match"),
    [
        (np.zeros((2, 4, 4, 1), np.float32), None, None, "uint8"),
        (np.zeros((2, 4, 4), np.uint8), None, None, r"\[N, H, W, C\]"),
        (np.zeros((0, 4, 4, 1), np.uint8), None, None, "no axis empty"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, int), None, "together or neither"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, int), 10, "for 2 images"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2), 10, "integer labels"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 10]), 10, "label < 10"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.array([0, -1]), 10, "from -1 to 0"),
    ],
)
def test_what_is_not_a_data_set_is_refused(images, labels, num_classes, match):
    with pytest.raises((TypeError, ValueError), match=match):
        make_dataset(images, labels, num_classes, "toy")


def test_importing_the_room_imports_no_decoder():
    code = (
        "import sys, ddpm_jax.data\n"
        "print([m for m in ('PIL', 'sklearn', 'tensorflow', 'tensorflow_datasets', 'tqdm')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
