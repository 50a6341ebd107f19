"""Data sets that TFDS prepared, by somebody else: folders, counts and images that lie."""

import struct
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax.data import cifar10, prepare_cifar10_tfds, tfds_reader
from tests.hostile.bounds import MIB, attempt, examples, refused
from tests.hostile.mutation import mutated
from tests.hostile.test_cifar10 import EACH, NAMES, batch
from tests.hostile.test_images import PIXELS, SIDE, png

SHAPE = (SIDE, SIDE, 3)


class Source(list):
    """What TFDS hands out: a list that may claim any length."""

    def __init__(self, examples, claimed):
        super().__init__(examples)
        self.claimed = claimed

    def __len__(self):
        return self.claimed

    def __getitems__(self, indices):
        return [self[i] for i in indices]


def read(folder, examples, claimed):
    """The reader's answer to a builder of these examples, TFDS itself being left out."""
    fake = types.ModuleType("tensorflow_datasets")
    builder = types.SimpleNamespace(as_data_source=lambda *_, **__: Source(examples, claimed))
    fake.builder_from_directory = lambda _: builder
    fake.decode = types.SimpleNamespace(SkipDecoding=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds_reader, "import_tfds", lambda: fake)
        return attempt(
            lambda: tfds_reader.read_prepared(folder, "train", SHAPE), folder, memory=64 * MIB
        )


@pytest.fixture(scope="module")
def folder(place):
    folder = place / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "cifar10-train.array_record-00000-of-00001").write_bytes(bytes(1000))
    return folder


@examples(40)
@given(
    image=mutated(png()) | st.binary(max_size=50) | st.just(png()),
    label=st.sampled_from([0, 9, -1, 2**70, 1.5, "a", None, b"", [1]]),
)
def test_records_are_pixels_or_refused(folder, image, label):
    result = read(folder, [{"image": image, "label": label}], 1)
    if not refused(result):
        assert result[0].shape == (1, *SHAPE) and result[1].tolist() == [label]
        if image == png():
            np.testing.assert_array_equal(result[0][0], PIXELS)


@pytest.mark.parametrize("claimed", [0, 2, 10**7, 10**12, sys.maxsize])
def test_counts_that_no_file_holds_are_refused_before_memory_is_taken(folder, claimed):
    result = read(folder, [{"image": png(), "label": 1}], claimed)
    assert refused(result)


def test_pictures_of_another_size_are_refused_by_their_headers(folder):
    image = png(10**5, 10**5, compressed=struct.pack(">I", 1))
    assert refused(read(folder, [{"image": image, "label": 1}], 1))


@pytest.mark.parametrize("name", ["9" * 200, "1.0.0", "٣", "..x", "\udcff"])
def test_folders_of_any_name_are_looked_through(place, name):
    version = place / "other" / "cifar10" / name
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("{}")
    (version / "cifar10-train.array_record-00000-of-00001").touch()
    assert tfds_reader.find_prepared("cifar10", place / "other") is not None


@pytest.fixture(scope="module")
def prepared(place):
    """The folder of a data set of 20 records a file, as TFDS itself keeps it."""
    if not tfds_reader.is_installed():
        pytest.skip("TFDS is not installed (the tfds extra)")
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    (place / "batches").mkdir()
    for name in NAMES:
        (place / "batches" / name).write_bytes(batch(0))
    (place / "batches" / "test_batch.bin").write_bytes(batch(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "RECORDS_PER_FILE", EACH)
        return prepare_cifar10_tfds(place / "tfds", path=place / "batches")


@examples(25, most=500)
@given(data=st.data())
def test_damaged_data_sets_are_refused_by_tfds_too(prepared, data):
    """With the real reader, where it is installed: flips in every file of a data set."""
    path = data.draw(st.sampled_from(sorted(p for p in prepared.iterdir() if p.is_file())))
    whole = path.read_bytes()
    path.write_bytes(data.draw(mutated(whole)))
    try:
        result = attempt(
            lambda: tfds_reader.read_prepared(prepared, "test", (32, 32, 3)),
            prepared,
            memory=2**40,
            seconds=10,
        )
    finally:
        path.write_bytes(whole)
    if not refused(result):
        assert result[0].shape[1:] == (32, 32, 3) and result[0].dtype == np.uint8
