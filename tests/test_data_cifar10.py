"""CIFAR-10: a known record gives a known image, wrong files are named, searches are ordered."""

import gzip
import importlib.util
import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_jax.data import cifar10, load_cifar10

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
EACH = 20  # records a file in the miniature, two of each class


@pytest.fixture(autouse=True)
def miniature(tmp_path, monkeypatch):
    """Files of 20 records instead of 10,000, and no data of this machine's owner."""
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", EACH)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no-tfds"))
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))


def make_images(seed=0):
    """Returns images [120, 32, 32, 3] and labels [120] of the six files, in order."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([rng.permutation(np.arange(EACH) % 10) for _ in range(6)])
    return rng.integers(0, 256, (6 * EACH, 32, 32, 3), np.uint8), labels.astype(np.uint8)


def make_files(images, labels):
    """Writes the six files record by record, pixel by pixel as the format's page describes it."""
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    files = {}
    for i, name in enumerate(names):
        records = bytearray()
        for image, label in zip(images[i * EACH :][:EACH], labels[i * EACH :], strict=False):
            records.append(label)
            for channel in range(3):
                records += image[:, :, channel].tobytes(order="C")
        files[name] = bytes(records)
    return files


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def write_archive(path, files, prefix="cifar-10-batches-bin/"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, data in {"readme.html": b"hello", **files}.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


FILES = make_files(*make_images())


@pytest.mark.parametrize("shape", ["archive", "folder", "parent", "parent of archive", "dotted"])
def test_records_decode_to_the_images_they_were_made_of(tmp_path, shape):
    images, labels = make_images()
    if shape in ("archive", "parent of archive"):
        path = write_archive(tmp_path / "in" / "cifar-10-binary.tar.gz", FILES)
    elif shape == "dotted":
        path = write_archive(tmp_path / "in" / "own.tgz", FILES, "./cifar-10-batches-bin/")
    else:
        path = write_folder(tmp_path / "in" / "cifar-10-batches-bin", FILES)
    path = path.parent if shape.startswith("parent") else path
    for split, part in (("train", slice(0, 5 * EACH)), ("test", slice(5 * EACH, None))):
        dataset = load_cifar10(split, path=path)
        np.testing.assert_array_equal(dataset.images, images[part])
        np.testing.assert_array_equal(dataset.labels, labels[part])
        assert dataset.name == f"cifar10/{split}"
        assert dataset.num_classes == 10
        assert dataset.labels.dtype == np.int32


def test_a_second_call_reads_the_cache_and_a_changed_path_is_read_again(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "in", FILES)
    first = load_cifar10("train", path=folder)
    monkeypatch.setattr(cifar10, "read_batches", lambda *a: pytest.fail("decoded twice"))
    for path in (folder, None):
        assert load_cifar10("train", path=path).fingerprint == first.fingerprint
    monkeypatch.undo()
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", EACH)
    for name, data in make_files(*make_images(seed=1)).items():
        (folder / name).write_bytes(data)
    cache_dir = tmp_path / "cache"
    changed = load_cifar10("train", path=folder, cache_dir=cache_dir)
    np.testing.assert_array_equal(changed.images, make_images(seed=1)[0][: 5 * EACH])


def test_a_damaged_cache_is_rebuilt_with_a_warning(tmp_path):
    folder = write_folder(tmp_path / "in", FILES)
    first = load_cifar10("train", path=folder)
    file = tmp_path / "cache" / "cifar10-train" / "images.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 4
    file.write_bytes(data)
    with pytest.warns(UserWarning, match="damaged"):
        again = load_cifar10("train", path=folder)
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.images, make_images()[0][: 5 * EACH])


def test_without_a_path_the_cache_folder_is_searched(tmp_path):
    write_archive(tmp_path / "cache" / "cifar-10-binary.tar.gz", FILES)
    np.testing.assert_array_equal(load_cifar10("test").images, make_images()[0][5 * EACH :])


def spoil(files, name, data):
    return {**files, name: data}


BATCH = FILES["data_batch_3.bin"]
WRONG = {
    "short": (spoil(FILES, "data_batch_3.bin", BATCH[:-1]), "data_batch_3.bin has 61,459 bytes"),
    "empty": (spoil(FILES, "data_batch_3.bin", b""), "data_batch_3.bin has 0 bytes"),
    "long": (spoil(FILES, "data_batch_3.bin", BATCH + BATCH[:3073]), "21 records of 3073 and 0"),
    "label": (
        spoil(FILES, "data_batch_3.bin", BATCH[: 3073 * 4] + b"\x0a" + BATCH[3073 * 4 + 1 :]),
        "record 4 of data_batch_3.bin has label 10",
    ),
    "missing": ({k: v for k, v in FILES.items() if k != "data_batch_3.bin"}, "data_batch_3.bin"),
    "counts": (
        spoil(FILES, "data_batch_3.bin", b"\x00" + BATCH[1:3073] + BATCH[:3073] * 19),
        "images of every class",
    ),
}


@pytest.mark.parametrize("kind", ["folder", "archive"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_is_refused_by_name(tmp_path, kind, wrong):
    files, match = WRONG[wrong]
    place = tmp_path / "in"
    path = write_folder(place, files) if kind == "folder" else write_archive(place, files)
    with pytest.raises((ValueError, FileNotFoundError), match=match) as caught:
        load_cifar10("train", path=path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "cache").exists()
    if wrong in ("short", "label", "missing"):
        assert len(load_cifar10("test", path=path).images) == EACH


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """One archive for all fuzzed cases."""
    return write_archive(tmp_path_factory.mktemp("fuzz") / "good.tar.gz", FILES)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**9), st.integers(1, 255), st.booleans(), st.booleans())
def test_damage_within_an_archive_is_noticed(archive, where, flip, truncate, zipped):
    """Cut or flipped anywhere in the gzip stream, it is refused, as gzip has a check sum, or whole.

    (gzip's own header is not under it.) A plain tar has one for its headers alone, so that a flip
    in pixels goes unnoticed.
    """
    data = archive.read_bytes() if zipped else gzip.decompress(archive.read_bytes())
    where %= len(data)
    rest = b"" if truncate else bytes([data[where] ^ flip]) + data[where + 1 :]
    path = archive.parent / "damaged.tar.gz"
    path.write_bytes(data[:where] + rest)
    try:
        images, labels = cifar10.read_batches(path, "train")
    except (ValueError, FileNotFoundError) as error:
        assert str(path) in str(error)
    else:
        if zipped:
            np.testing.assert_array_equal(images, make_images()[0][: 5 * EACH])
            np.testing.assert_array_equal(labels, make_images()[1][: 5 * EACH])
        assert images.shape == (5 * EACH, 32, 32, 3)
        assert labels.max() <= 9


def test_members_are_never_extracted(tmp_path, monkeypatch):
    """A path that leads out of the folder, a link in place of a batch, and a bomb."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.tar.gz"
    for make, match in [
        (lambda tar: tar.addfile(tarfile.TarInfo("../../outside")), "test_batch.bin"),
        (
            lambda tar: tar.addfile(link("cifar-10-batches-bin/test_batch.bin")),
            "regular file",
        ),
        (lambda tar: add_bomb(tar), "claims 10,000,000,001 bytes"),
    ]:
        with tarfile.open(path, "w:gz") as tar:
            make(tar)
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            load_cifar10("test", path=path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.tar.gz"]


def link(name):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


def add_bomb(tar):
    member = tarfile.TarInfo("cifar-10-batches-bin/bomb")
    member.size = 10_000_000_001
    tar.fileobj.write(member.tobuf())  # the header alone: addfile would ask for the content


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", "cifar-10-batches-py"])
def test_the_python_version_is_refused_unread(tmp_path, name, inside):
    """The pickle would raise if anything loaded it."""

    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("a pickle was loaded",)

    place = tmp_path / "in" / name
    place.parent.mkdir()
    if name.endswith("py"):
        place.mkdir()
        (place / "data_batch_1").write_bytes(pickle.dumps(Bomb()))
    else:
        write_archive(place, {"data_batch_1": pickle.dumps(Bomb())}, "cifar-10-batches-py/")
    with pytest.raises(ValueError, match="pickle.*binary version"):
        load_cifar10("train", path=place.parent if inside else place)


def test_beside_a_python_version_the_binary_one_is_read(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    write_folder(tmp_path / "cifar-10-batches-bin", FILES)
    assert len(load_cifar10("train", path=tmp_path).images) == 5 * EACH


def offline(urls, destination, **known):
    raise ConnectionError(f"{urls[0]} could not be opened: no network")


@pytest.mark.parametrize("download", [False, True])
def test_with_nothing_there_one_error_lists_three_remedies(tmp_path, monkeypatch, download):
    monkeypatch.setattr(cifar10, "download_file", offline)
    with pytest.raises(FileNotFoundError) as caught:
        load_cifar10("train", download=download)
    message = str(caught.value)
    for remedy in ("1. path=", "2. download=True", "3. TFDS"):
        assert remedy in message
    assert str(tmp_path / "cache") in message
    assert ("no network" in message) == download


def test_a_download_is_pinned_and_then_read(tmp_path, monkeypatch):
    asked = []

    def fake(urls, destination, **known):
        asked.append((urls, known))
        return write_archive(destination, FILES)

    monkeypatch.setattr(cifar10, "download_file", fake)
    assert len(load_cifar10("test", download=True).images) == EACH
    assert len(load_cifar10("train", download=True).images) == 5 * EACH  # from the same archive
    [(urls, known)] = asked
    assert urls == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]
    assert known["size"] == 170_052_171
    assert known["sha256"].startswith("c4a38c50")
    assert len(known["sha256"]) == 64


def test_nothing_is_downloaded_unasked(monkeypatch):
    monkeypatch.setattr(cifar10, "download_file", lambda *a, **k: pytest.fail("downloaded"))
    for options in ({}, {"source": "tfds", "download": True}):
        with pytest.raises(FileNotFoundError):
            load_cifar10("train", **options)


def test_arguments_out_of_their_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got 'valid'"):
        load_cifar10("valid")  # type: ignore
    with pytest.raises(ValueError, match="got 'hub'"):
        load_cifar10("train", source="hub")  # type: ignore
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_cifar10("train", path=tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="found no CIFAR-10"):
        load_cifar10("train", path=tmp_path)


def test_tfrecords_are_recognised_and_explained(tmp_path):
    version = tmp_path / "tfds" / "cifar10" / "3.0.2"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("{}")
    (version / "cifar10-train.tfrecord-00000-of-00001").write_text("")
    with pytest.raises(FileNotFoundError, match='TensorFlow.*file_format="array_record"'):
        load_cifar10("train", path=tmp_path / "tfds")


def test_a_missing_tfds_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_data_source", None)
    version = tmp_path / "tfds" / "cifar10" / "3.0.2"
    version.mkdir(parents=True)
    (version / "dataset_info.json").write_text("{}")
    (version / "cifar10-train.array_record-00000-of-00001").write_text("")
    with pytest.raises(ImportError, match="pip install tensorflow-datasets"):
        load_cifar10("train", path=tmp_path / "tfds")


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason=f"the real data are not at {SHARED}")
def test_the_real_data_have_the_known_statistics(tmp_path, monkeypatch):
    """Channel means and standard deviations of the 50,000 training images, as widely published."""
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", 10_000)
    script = SHARED / "unpack_cifar10.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True)
    train = load_cifar10("train", path=tmp_path)
    test = load_cifar10("test", path=tmp_path)
    assert train.images.shape == (50_000, 32, 32, 3)
    assert test.images.shape == (10_000, 32, 32, 3)
    values = np.arange(256) / 255
    counts = np.stack([np.bincount(train.images[..., c].ravel(), minlength=256) for c in range(3)])
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ values
    std = np.sqrt(share @ values**2 - mean**2)
    np.testing.assert_allclose(mean, [0.49139968, 0.48215841, 0.44653091], atol=5e-9)
    np.testing.assert_allclose(std, [0.24703223, 0.24348513, 0.26158784], atol=5e-9)
    original = importlib.util.spec_from_file_location("unpack", script)
    unpack = importlib.util.module_from_spec(original)
    original.loader.exec_module(unpack)
    images, labels = unpack.read("test")
    np.testing.assert_array_equal(test.images, images)
    np.testing.assert_array_equal(test.labels, labels)
