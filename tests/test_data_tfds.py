"""Data sets prepared for TFDS, and read from it, without TensorFlow and without a network."""

import io
import socket
import sys

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import (
    cifar10,
    load_cifar10,
    load_mnist,
    mnist,
    prepare_cifar10_tfds,
    tfds_builder,
    tfds_reader,
)

if not tfds_reader.is_installed():
    pytest.skip("TFDS is not installed (the tfds extra)", allow_module_level=True)

import tensorflow_datasets as tfds  # noqa: E402

EACH = 20


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Files of 20 records, no data of this machine's owner, and every connection an error."""

    def refuse(*arguments, **options):
        raise AssertionError(f"the network was used: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", EACH)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))
    tfds.disable_progress_bar()


@pytest.fixture
def batches(tmp_path):
    """A batch folder of random records, two of each class in a file."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for names in cifar10.FILES.values():
        for name in names:
            records = rng.integers(0, 256, (EACH, 3073), np.uint8)
            records[:, 0] = rng.permutation(np.arange(EACH) % 10)
            (folder / name).write_bytes(records.tobytes())
    return folder


def prepared_order(data_dir, split):
    """The stock reader's ids, as positions in the archive."""
    source = tfds.data_source(
        "cifar10", data_dir=data_dir, split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    ids = [example["id"].decode() for example in source]
    assert all(name.startswith(f"{split}_") for name in ids)
    return [int(name[-5:]) for name in ids]


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_stock_reader_reads_what_was_prepared(tmp_path, batches, split):
    images, labels = cifar10.read_batches(batches, split)
    folder = prepare_cifar10_tfds(tmp_path / "own", path=batches)
    assert folder == tmp_path / "own" / "cifar10" / "3.0.2"
    source = tfds.data_source("cifar10", data_dir=tmp_path / "own", split=split)
    order = prepared_order(tmp_path / "own", split)
    assert sorted(order) == list(range(len(images)))
    for position, example in zip(order, source, strict=True):
        np.testing.assert_array_equal(example["image"], images[position])
        assert example["label"] == labels[position]
    builder = tfds.builder_from_directory(folder)
    assert builder.info.features["label"].names == list(cifar10.CLASSES)
    assert not [module for module in sys.modules if module.split(".")[0] == "tensorflow"]


@pytest.mark.slow
def test_the_order_is_that_of_the_stock_builder(tmp_path, monkeypatch):
    """The first ids of TFDS's own cifar10, as its users' public listings show them.

    The order follows from split and keys alone, so that the pixels may all be the same.
    """
    blank = np.zeros((50_000, 32, 32, 3), np.uint8), np.zeros(50_000, np.uint8)
    monkeypatch.setattr(cifar10, "read_batches", lambda place, split: blank)
    monkeypatch.setattr(tfds_builder, "locate", lambda *a: ("archive", tmp_path))
    monkeypatch.setattr(cifar10, "FILES", {"train": ()})
    png = tfds_builder.encode_png(blank[0][0])
    monkeypatch.setattr(tfds_builder, "encode_png", lambda image: png)
    prepare_cifar10_tfds(tmp_path / "own")
    order = prepared_order(tmp_path / "own", "train")
    assert order[:6] == [16399, 1680, 47917, 17307, 27051, 48736]
    assert order[6:12] == [26263, 1456, 19135, 31598, 12970, 4223]


@pytest.mark.parametrize("how", ["data_dir", "name", "version", "environment", "source"])
def test_a_prepared_data_set_is_found_and_read(tmp_path, batches, how):
    images, labels = cifar10.read_batches(batches, "train")
    version = prepare_cifar10_tfds(path=batches)
    order = prepared_order(tmp_path / "tfds", "train")
    path = {"data_dir": tmp_path / "tfds", "name": version.parent, "version": version}.get(how)
    source = "tfds" if how == "source" else "auto"
    dataset = load_cifar10("train", path=path, source=source)
    np.testing.assert_array_equal(dataset.images, images[order])
    np.testing.assert_array_equal(dataset.labels, labels[order])
    assert load_cifar10("train", path=path, source=source).fingerprint == dataset.fingerprint


def test_the_order_of_the_sources_is_kept_apart_by_the_fingerprint(tmp_path, batches):
    prepare_cifar10_tfds(path=batches)
    archive = load_cifar10("train", path=batches)
    prepared = load_cifar10("train", path=tmp_path / "tfds")
    assert archive.fingerprint != prepared.fingerprint
    again = load_cifar10("train", path=batches)
    assert again.fingerprint == archive.fingerprint


def test_an_explicit_source_admits_no_other(tmp_path, batches):
    prepare_cifar10_tfds(path=batches)
    with pytest.raises(FileNotFoundError, match="source='archive'"):
        load_cifar10("train", path=tmp_path / "tfds", source="archive")
    with pytest.raises(FileNotFoundError, match="source='tfds'"):
        load_cifar10("train", path=batches, source="tfds")


def test_what_is_prepared_is_left_alone(tmp_path, batches):
    folder = prepare_cifar10_tfds(path=batches)
    times = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert prepare_cifar10_tfds() == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == times
    other = tmp_path / "other" / "cifar10" / "3.0.2"
    other.mkdir(parents=True)
    (other / "cifar10-train.tfrecord-00000-of-00001").write_text("")
    with pytest.raises(FileExistsError, match="Pass another data_dir"):
        prepare_cifar10_tfds(tmp_path / "other", path=batches)


def test_without_an_archive_nothing_is_prepared(tmp_path):
    with pytest.raises(FileNotFoundError, match="1. path="):
        prepare_cifar10_tfds(tmp_path / "own")
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("damage", ["truncated", "zeros", "features", "split"])
def test_damaged_records_are_a_value_error_that_names_the_folder(tmp_path, batches, damage):
    folder = prepare_cifar10_tfds(path=batches)
    [file] = tfds_reader.record_files(folder, "train")
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:100_000])
    elif damage == "zeros":
        content = bytearray(file.read_bytes())
        content[70_000:90_000] = bytes(20_000)
        file.write_bytes(content)
    elif damage == "features":
        (folder / "features.json").write_text("{")
    else:
        info = (folder / "dataset_info.json").read_text()
        (folder / "dataset_info.json").write_text(info.replace('"train"', '"valid"'))
    with pytest.raises(ValueError, match="could not be read.*prepare it again") as caught:
        load_cifar10("train", path=tmp_path / "tfds")
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(("side", "match"), [(28, None), (29, "29×29")])
def test_a_prepared_mnist_is_read(tmp_path, monkeypatch, side, match):
    """A data set with the stock MNIST's name and features, twenty grey images of two each."""
    monkeypatch.setattr(mnist, "CLASS_COUNTS", {"test": (2,) * 10, "train": (2,) * 10})
    pixels = np.random.default_rng(0).integers(0, 256, (20, side, side), np.uint8)

    class Mnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.1")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(side, side, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(pixels):
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "PNG")
                yield i, {"image": buffer.getvalue(), "label": i % 10}

    Mnist(data_dir=tmp_path / "tfds").download_and_prepare(file_format="array_record")
    if match:
        with pytest.raises(ValueError, match=match):
            load_mnist("test")
        return
    dataset = load_mnist("test")
    assert dataset.images.shape == (20, 28, 28, 1)
    found = {image.tobytes(): label for image, label in zip(*dataset[:2], strict=True)}
    assert found == {image.tobytes(): i % 10 for i, image in enumerate(pixels)}
