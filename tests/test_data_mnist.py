"""MNIST: hand-made IDX files read back, wrong ones are named, downloads are pinned."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_jax.data import load_mnist, mnist

COUNTS = {"train": (5, 4, 3, 2, 1, 1, 2, 3, 4, 5), "test": (1, 1, 1, 2, 1, 1, 1, 1, 1, 1)}


@pytest.fixture(autouse=True)
def miniature(tmp_path, monkeypatch):
    """Thirty training images and eleven test images, and no data of this machine's owner."""
    monkeypatch.setattr(mnist, "CLASS_COUNTS", COUNTS)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no-tfds"))
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))


def make(split):
    rng = np.random.default_rng(len(split))
    labels = rng.permutation(np.repeat(np.arange(10), COUNTS[split])).astype(np.uint8)
    # Few grey levels, so that gzip has something to compress and its fuzzed streams to break.
    return rng.integers(0, 6, (len(labels), 28, 28), np.uint8) * 51, labels


def make_files():
    """The four files as the format's page describes them: big-endian header, then the bytes."""
    files = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        images, labels = make(split)
        header = struct.pack(">IIII", 2051, len(images), 28, 28)
        files[f"{stem}-images-idx3-ubyte"] = header + images.tobytes()
        files[f"{stem}-labels-idx1-ubyte"] = (
            struct.pack(">II", 2049, len(labels)) + labels.tobytes()
        )
    return files


def write(folder, files, style="plain"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        if style == "gz":
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        elif style == "dotted":
            (folder / name.replace("-idx", ".idx")).write_bytes(data)
        else:
            (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("style", ["plain", "gz", "dotted"])
@pytest.mark.parametrize("inside", ["", "MNIST/raw"])
def test_images_and_labels_read_back(tmp_path, style, inside):
    write(tmp_path / "in" / inside, make_files(), style)
    for split in ("train", "test"):
        images, labels = make(split)
        dataset = load_mnist(split, path=tmp_path / "in")
        np.testing.assert_array_equal(dataset.images, images[..., None])
        np.testing.assert_array_equal(dataset.labels, labels)
        assert (dataset.num_classes, dataset.name) == (10, f"mnist/{split}")


@pytest.mark.parametrize(("pad_to", "before"), [(32, 2), (29, 0), (64, 18)])
def test_padding_is_a_black_frame(tmp_path, pad_to, before):
    folder = write(tmp_path / "in", make_files())
    padded = load_mnist("test", path=folder, pad_to=pad_to)
    expected = np.zeros((11, pad_to, pad_to, 1), np.uint8)
    expected[:, before : before + 28, before : before + 28, 0] = make("test")[0]
    np.testing.assert_array_equal(padded.images, expected)
    assert padded.fingerprint != load_mnist("test", path=folder).fingerprint


def test_the_cache_is_used_until_the_files_change(tmp_path, monkeypatch):
    folder = write(tmp_path / "in", make_files())
    first = load_mnist("test", path=folder)
    monkeypatch.setattr(mnist, "read_idx", lambda *a: pytest.fail("decoded twice"))
    for path in (folder, None):
        assert load_mnist("test", path=path).fingerprint == first.fingerprint
    (folder / "t10k-images-idx3-ubyte").touch()
    with pytest.raises(pytest.fail.Exception):
        load_mnist("test", path=folder)


IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize("style", ["plain", "gz"])
@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (IMAGES, lambda data: data[:-1], "8,639"),
        (IMAGES, lambda data: data + b"\0", "more"),
        (IMAGES, lambda data: b"", "has 0"),
        (IMAGES, lambda data: struct.pack(">I", 2049) + data[4:], "begins with 00000801"),
        (IMAGES, lambda data: data[:8] + struct.pack(">II", 14, 56) + data[16:], "IDX header"),
        (LABELS, lambda data: data[:4] + struct.pack(">i", -11) + data[8:], "IDX header"),
        (LABELS, lambda data: data[:-1] + bytes([data[-1] ^ 1]), "another data set"),
        (LABELS, lambda data: data[:-1] + b"\xff", "another data set"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, style, name, change, match):
    files = make_files()
    folder = write(tmp_path / "in", {**files, name: change(files[name])}, style)
    with pytest.raises(ValueError, match=match) as caught:
        load_mnist("test", path=folder)
    assert str(folder if match == "another data set" else folder / name) in str(caught.value)
    assert len(load_mnist("train", path=folder).images) == 30


@pytest.fixture(scope="module")
def zipped(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "images.gz"
    path.write_bytes(gzip.compress(make_files()[IMAGES]))
    return path


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**9), st.integers(1, 255), st.booleans())
def test_a_damaged_gzip_is_a_value_error_or_no_error(zipped, where, flip, truncate):
    data = zipped.read_bytes()
    where %= len(data)
    rest = b"" if truncate else bytes([data[where] ^ flip]) + data[where + 1 :]
    path = zipped.parent / "damaged.gz"
    path.write_bytes(data[:where] + rest)
    try:
        images = mnist.read_idx(path, (11, 28, 28))
    except ValueError as error:
        assert str(path) in str(error)
    else:
        np.testing.assert_array_equal(images, make("test")[0])


def test_a_bomb_is_read_no_further_than_it_should_be_long(tmp_path):
    """A quarter of a gigabyte of zeros in 261 kB."""
    header = make_files()[IMAGES][:16]
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(header) + gzip.compress(bytes(1 << 22)) * 64)
    tracemalloc.start()
    with pytest.raises(ValueError, match="8,640 bytes in all, but .* has more"):
        mnist.read_idx(path, (11, 28, 28))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_download_is_pinned_and_only_what_the_split_needs(tmp_path, monkeypatch):
    asked = []

    def fake(urls, destination, *, size, sha256, progress):
        asked.append((urls, size, sha256))
        name = destination.name.removesuffix(".gz")
        write(destination.parent, {name: make_files()[name]}, "gz")

    monkeypatch.setattr(mnist, "download_file", fake)
    dataset = load_mnist("test", download=True)
    np.testing.assert_array_equal(dataset.images[..., 0], make("test")[0])
    assert [urls[0].rsplit("/", 1)[1] for urls, _, _ in asked] == [f"{IMAGES}.gz", f"{LABELS}.gz"]
    assert all(len(urls) == 2 and urls[0].startswith("https://") for urls, _, _ in asked)
    assert [(size, sha256[:8]) for _, size, sha256 in asked] == [
        (1_648_877, "8d422c7b"),
        (4_542, "f7ae60f9"),
    ]
    assert all(len(sha256) == 64 for _, _, sha256 in asked)


@pytest.mark.parametrize("download", [False, True])
def test_with_nothing_there_one_error_lists_three_remedies(monkeypatch, download):
    def offline(urls, destination, **known):
        raise ConnectionError("no network")

    monkeypatch.setattr(mnist, "download_file", offline)
    with pytest.raises(FileNotFoundError) as caught:
        load_mnist("train", download=download)
    for remedy in ("1. path=", "2. download=True", "3. TFDS"):
        assert remedy in str(caught.value)
    assert ("no network" in str(caught.value)) == download


def test_half_a_split_is_not_enough(tmp_path):
    files = make_files()
    del files[LABELS]
    folder = write(tmp_path / "in", files)
    with pytest.raises(FileNotFoundError, match=LABELS):
        load_mnist("test", path=folder)
    assert len(load_mnist("train", path=folder).images) == 30


def test_arguments_out_of_their_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got 'valid'"):
        load_mnist("valid")  # type: ignore
    with pytest.raises(ValueError, match="got 'hub'"):
        load_mnist("train", source="hub")  # type: ignore
    with pytest.raises(ValueError, match="pad_to ≥ 28, got 27"):
        load_mnist("train", pad_to=27)
    with pytest.raises(FileNotFoundError, match="not a folder"):
        load_mnist("train", path=tmp_path / "absent")
