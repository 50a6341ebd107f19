"""Every registered data set, from tiny files in its own format: what any consumer relies on.

A new data set adds a row to `CASES`: how its files are made, and what they hold.
"""

import gzip
import io
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import cifar10, cifar100, fashion_mnist, mnist, svhn
from ddpm_jax.data.registry import DATA_SETS, PREFIXES, DataOptions, load_named

RNG = np.random.default_rng(0)
TWO_OF_EACH = np.tile(np.arange(10), 2)


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no-tfds"))
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", 20)
    monkeypatch.setattr(cifar100, "CLASS_COUNTS", {"train": (2,) * 100, "test": (1,) * 100})
    counts = {"train": (2,) * 10, "test": (1,) * 10}
    monkeypatch.setattr(mnist, "CLASS_COUNTS", counts)
    monkeypatch.setattr(fashion_mnist, "DATA", fashion_mnist.DATA._replace(class_counts=counts))
    monkeypatch.setattr(svhn, "CLASS_COUNTS", counts)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def nothing(folder):
    return {}


def cifar10_files(folder):
    for names in cifar10.FILES.values():
        for name in names:
            records = RNG.integers(0, 256, (20, 3073), np.uint8)
            records[:, 0] = RNG.permutation(TWO_OF_EACH)
            (folder / name).write_bytes(records.tobytes())
    folder.rename(folder.with_name(cifar10.FOLDER))
    return {"path": folder.with_name(cifar10.FOLDER)}


def cifar100_files(folder):
    with tarfile.open(folder / "cifar-100-binary.tar.gz", "w:gz") as archive:
        for split, each in (("train", 2), ("test", 1)):
            fine = RNG.permutation(np.repeat(np.arange(100, dtype=np.uint8), each))
            pixels = RNG.integers(0, 256, (len(fine), 3072), np.uint8)
            data = np.concatenate([fine[:, None] // 5, fine[:, None], pixels], 1).tobytes()
            member = tarfile.TarInfo(f"cifar-100-binary/{split}.bin")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return {"path": folder}


def idx_files(folder):
    for stem, each in (("train", 2), ("t10k", 1)):
        labels = RNG.permutation(np.repeat(np.arange(10, dtype=np.uint8), each))
        images = RNG.integers(0, 256, (len(labels), 28, 28), np.uint8)
        header = struct.pack(">IIII", 2051, len(images), 28, 28)
        content = gzip.compress(header + images.tobytes())
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(content)
        content = gzip.compress(struct.pack(">II", 2049, len(labels)) + labels.tobytes())
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(content)
    return {"path": folder}


def svhn_files(folder):
    from scipy.io import savemat

    for split, each in (("train", 2), ("test", 1)):
        digits = np.repeat(np.arange(1, 11, dtype=np.uint8), each)  # 10 stands for the digit 0
        pixels = RNG.integers(0, 256, (32, 32, 3, len(digits)), np.uint8)
        savemat(folder / f"{split}_32x32.mat", {"X": pixels, "y": digits[:, None]})
    return {"path": folder}


def class_folders(folder):
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for i in range(10):
            (folder / name / f"{i}.png").write_bytes(png(RNG.integers(0, 256, (8, 8, 3), np.uint8)))
    return {"path": folder, "resolution": 8}


def npz_file(folder):
    images = RNG.integers(0, 256, (20, 8, 6, 1), np.uint8)
    conditions = {"cond": RNG.normal(size=(20, 3)), "context": RNG.normal(size=(20, 2, 5))}
    np.savez(folder / "own.npz", images=images, labels=TWO_OF_EACH, **conditions)
    return {"path": folder / "own.npz"}


def tfds_files(folder):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    tfds.disable_progress_bar()

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "picture": tfds.features.Image(shape=(8, 8, 3)),
                "kind": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(20), "validation": self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                pixels = RNG.integers(0, 256, (8, 8, 3), np.uint8)
                yield i, {"picture": png(pixels), "kind": i % 2}

    Tiny(data_dir=folder).download_and_prepare(file_format="array_record")
    return {"path": folder}


def hugging_face_files(folder):
    pytest.importorskip("datasets")
    for split, count in (("train", 20), ("test", 4)):
        for i in range(count):
            file = folder / split / ("cat", "dog")[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(RNG.integers(0, 256, (8, 8, 3), np.uint8)))
    return {}


# name: (files, images per split, shape, number of classes)
CASES = {
    "digits": (nothing, (1437, 360), (8, 8, 1), 10),
    "cifar10": (cifar10_files, (100, 20), (32, 32, 3), 10),
    "cifar100": (cifar100_files, (200, 100), (32, 32, 3), 100),
    "mnist": (idx_files, (20, 10), (32, 32, 1), 10),
    "fashion_mnist": (idx_files, (20, 10), (32, 32, 1), 10),
    "svhn": (svhn_files, (20, 10), (32, 32, 3), 10),
    "folder": (class_folders, (18, 2), (8, 8, 3), 2),
    "arrays": (npz_file, (18, 2), (8, 6, 1), 10),
    "tfds": (tfds_files, (20, 4), (8, 8, 3), 2),
    "hf": (hugging_face_files, (20, 4), (8, 8, 3), 2),
}


def test_every_registered_data_set_has_a_row():
    assert set(CASES) == {*DATA_SETS, *PREFIXES}


@pytest.mark.parametrize("name", CASES)
def test_the_contract(name, tmp_path):
    make, counts, shape, classes = CASES[name]
    place = tmp_path / "in"
    place.mkdir()
    options = DataOptions(**make(place))
    full = {"tfds": "tfds:tiny", "hf": f"hf:{place}"}.get(name, name)
    prints = set()
    for split, count in zip(("train", "heldout"), counts, strict=True):
        data = load_named(full, split, options)
        assert data.images.shape == (count, *shape) and data.images.dtype == np.uint8
        assert data.labels.shape == (count,) and data.labels.dtype == np.int32
        assert data.num_classes == classes
        assert 0 <= data.labels.min() and data.labels.max() < classes
        assert data.class_names is None or len(data.class_names) == classes
        assert not data.images.flags.writeable and not data.labels.flags.writeable
        for condition in data.conditions.values():
            assert len(condition) == count and not condition.flags.writeable
        # The same from the cache, and from another cache: content alone decides.
        for cache in (None, tmp_path / "other"):
            again = load_named(full, split, options._replace(cache_dir=cache))
            assert again.fingerprint == data.fingerprint and len(data.fingerprint) == 64
            assert again.class_names == data.class_names
            np.testing.assert_array_equal(again.images, data.images)
            np.testing.assert_array_equal(again.labels, data.labels)
        prints.add(data.fingerprint)
    assert len(prints) == 2


@pytest.mark.parametrize("name", ["cifar100", "svhn"])
def test_wrong_files_are_named(name, tmp_path):
    place = tmp_path / "in"
    place.mkdir()
    options = DataOptions(**CASES[name][0](place))
    file = next(f for f in sorted(place.iterdir()) if "train" in f.name or name == "cifar100")
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"x" * 1000):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="again from") as caught:
            load_named(name, "train", options)
        assert file.name in str(caught.value)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="1. path=.*\n.*2. download=True"):
        load_named(name, "train", options._replace(path=place))


def test_svhn_and_cifar100_are_read_by_their_definition(tmp_path):
    """The digit 0 is stored as 10; the second byte of a record is the fine label."""
    place = tmp_path / "in"
    place.mkdir()
    svhn_files(place)
    data = load_named("svhn", "heldout", DataOptions(path=place))
    np.testing.assert_array_equal(data.labels, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
    from scipy.io import loadmat

    stored = loadmat(place / "test_32x32.mat")["X"]
    np.testing.assert_array_equal(data.images[3], stored[..., 3])
    record = np.arange(100 * 3074, dtype=np.uint64).astype(np.uint8).reshape(100, 3074)
    record[:, 1] = np.arange(100)
    (place / "cifar-100-binary").mkdir()
    (place / "cifar-100-binary" / "test.bin").write_bytes(record.tobytes())
    data = load_named("cifar100", "heldout", DataOptions(path=place / "cifar-100-binary"))
    np.testing.assert_array_equal(data.labels, np.arange(100))
    np.testing.assert_array_equal(data.images[7, 2, 3], record[7, 2:].reshape(3, 32, 32)[:, 2, 3])


def test_fashion_mnist_ignores_mnists_files_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    idx_files(tmp_path / "mnist")
    load_named("mnist", "train")
    with pytest.raises(FileNotFoundError, match="load_fashion_mnist found no Fashion-MNIST"):
        load_named("fashion_mnist", "train")
