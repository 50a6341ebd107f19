"""Decoded images on disk: what is read back, what is refused, and how a failing disk is met."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ddpm_jax.data import cache, cache_root, download, fingerprint_of
from ddpm_jax.data.download import download_file
from ddpm_jax.data.unfinished import STALE_SECONDS, remove_stale, unfinished_rows
from tests.disk import no_file_beyond

SOURCE = {"kind": "toy", "path": "/data", "files": [["a", 1, 2]]}


def images_and_labels(num=6):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num, 4, 5, 3), np.uint8), np.arange(num, dtype=np.int64) % 3


def store(root, images, labels, num_classes=3):
    return cache.write_entry(root, "toy", images, labels, num_classes, "toy/train", SOURCE)


def test_an_entry_reads_back_as_it_was_written(tmp_path):
    images, labels = images_and_labels()
    written = store(tmp_path / "new" / "root", images, labels)
    read = cache.read_entry(tmp_path / "new" / "root", "toy")
    for dataset in (written, read):
        np.testing.assert_array_equal(dataset.images, images)
        np.testing.assert_array_equal(dataset.labels, labels)
        assert dataset.images.dtype == np.uint8
        assert dataset[2:5] == (3, "toy/train", fingerprint_of(images, labels))
        assert isinstance(dataset.images.base, np.memmap)
        assert Path(dataset.images.filename) == tmp_path / "new" / "root" / "toy" / "images.npy"
    assert sorted(p.name for p in (tmp_path / "new" / "root").iterdir()) == ["toy"]


def test_without_labels_there_are_no_classes(tmp_path):
    images, _ = images_and_labels()
    store(tmp_path, images, None, None)
    read = cache.read_entry(tmp_path, "toy")
    assert read.num_classes is None
    np.testing.assert_array_equal(read.labels, np.zeros(6))


def test_blocks_make_the_same_entry_as_the_whole(tmp_path):
    images, labels = images_and_labels()
    with cache.EntryWriter(tmp_path, "toy", images.shape) as writer:
        for start in (0, 1, 3):
            writer.append(images[start : {0: 1, 1: 3, 3: 6}[start]])
        dataset = writer.finish(labels, 3, "toy/train", SOURCE)
    assert dataset.fingerprint == fingerprint_of(images, labels)
    np.testing.assert_array_equal(np.load(tmp_path / "toy" / "images.npy"), images)


def test_an_entry_of_another_source_is_not_used(tmp_path):
    store(tmp_path, *images_and_labels())
    assert cache.read_entry(tmp_path, "toy", lambda source: source == SOURCE) is not None
    assert cache.read_entry(tmp_path, "toy", lambda source: source["kind"] == "other") is None
    assert cache.read_entry(tmp_path, "absent") is None


def test_a_new_entry_replaces_the_old_and_leaves_its_readers_alone(tmp_path):
    images, labels = images_and_labels()
    old = store(tmp_path, images, labels)
    store(tmp_path, 255 - images, labels)
    np.testing.assert_array_equal(old.images, images)
    np.testing.assert_array_equal(cache.read_entry(tmp_path, "toy").images, 255 - images)
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


@pytest.mark.parametrize(
    "damage",
    ["pixel", "truncated", "label", "json", "shape", "no images", "header", "not npy", "pickled"],
)
def test_a_damaged_entry_is_reported_and_not_used(tmp_path, damage):
    store(tmp_path, *images_and_labels())
    entry = tmp_path / "toy"
    file = entry / "images.npy"
    data = bytearray(file.read_bytes())
    if damage == "pixel":
        data[-7] ^= 1
        file.write_bytes(data)
    elif damage == "truncated":
        file.write_bytes(data[:-1])
    elif damage == "header":
        file.write_bytes(bytes(data).replace(b"|u1", b"|i1"))
    elif damage == "not npy":
        file.write_bytes(b"")
    elif damage == "no images":
        file.unlink()
    elif damage == "pickled":
        np.save(file, np.array([{"run": "code"}], object), allow_pickle=True)
    elif damage == "label":
        np.save(entry / "labels.npy", np.zeros(6, np.int32))
    elif damage == "json":
        (entry / "entry.json").write_text('{"name": "toy')
    else:
        about = json.loads((entry / "entry.json").read_text())
        (entry / "entry.json").write_text(json.dumps({**about, "shape": [6, 5, 4, 3]}))
    with pytest.warns(UserWarning, match="damaged.*decoded again"):
        assert cache.read_entry(tmp_path, "toy") is None


def test_a_failure_while_writing_leaves_nothing(tmp_path):
    images, labels = images_and_labels()
    with pytest.raises(RuntimeError, match="decoder"):
        with cache.EntryWriter(tmp_path, "toy", images.shape) as writer:
            writer.append(images[:2])
            raise RuntimeError("decoder")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="needs 6 images, got 2"):
        with cache.EntryWriter(tmp_path, "toy", images.shape) as writer:
            writer.append(images[:2])
            writer.finish(labels, 3, "toy", SOURCE)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_cache_warns_and_works(tmp_path):
    (tmp_path / "file").write_text("in the way")
    images, labels = images_and_labels()
    with pytest.warns(UserWarning, match="cannot be written"):
        dataset = store(tmp_path / "file" / "cache", images, labels)
    np.testing.assert_array_equal(dataset.images, images)
    assert dataset.fingerprint == fingerprint_of(images, labels)


def test_images_too_many_for_memory_need_a_writable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(cache, "MEMORY_BYTES", 100)
    with pytest.raises(OSError, match="writable cache_dir"):
        cache.EntryWriter(tmp_path / "file", "toy", (6, 4, 5, 3))


def test_a_full_disk_is_noticed_before_any_work(tmp_path, monkeypatch):
    images, labels = images_and_labels()
    usage = shutil.disk_usage(tmp_path)._replace(free=images.nbytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="359 bytes free, and the decoded images need 360"):
        cache.EntryWriter(tmp_path, "toy", images.shape)
    with pytest.warns(UserWarning, match="could not be cached.*359 bytes free"):
        dataset = store(tmp_path, images, labels)
    np.testing.assert_array_equal(dataset.images, images)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("event", "with_sources"),
    [((4, 4, 3), False), ((4, 4, 3), True), ((1, 1, 3), True)],
    ids=["no records", "the images do not fit", "their records do not fit"],
)
def test_a_disk_that_becomes_full_leaves_only_what_can_be_used_again(tmp_path, event, with_sources):
    """Closing a file writes what is buffered, and so fails like the write before it."""
    images = np.random.default_rng(0).integers(0, 256, (900, *event), np.uint8)
    digests = [i.to_bytes(16, "big") for i in range(1, 901)]
    with no_file_beyond(10_000), pytest.raises(OSError, match="too large"):
        with cache.EntryWriter(tmp_path, "toy", images.shape) as writer:
            for image, digest in zip(images, digests, strict=True):
                writer.append(image[None], [(digest, 0)] if with_sources else None)
    assert [path.suffix for path in tmp_path.iterdir()] == [".kept"] * with_sources
    found, _ = unfinished_rows(tmp_path, images.shape, set(digests))
    assert (len(found) > 100) == with_sources
    for digest, row in found.items():
        np.testing.assert_array_equal(row.pixels, images[digests.index(digest)])


def test_every_file_of_an_entry_is_on_the_disk_before_the_entry_has_its_name(tmp_path, monkeypatch):
    """Of entries over `VERIFY_BYTES` only sizes are compared, which lost blocks do not change."""
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.fstat(handle).st_ino))
    store(tmp_path, *images_and_labels())
    assert {path.stat().st_ino for path in (tmp_path / "toy").iterdir()} == synced


def test_a_source_whose_name_is_not_utf8_can_be_stored(tmp_path):
    folder = tmp_path / "f\udcff"
    folder.mkdir()
    (folder / "a\udcff").write_text("x")
    origin = cache.signature("toy", folder, [folder / "a\udcff"])
    cache.write_entry(tmp_path, "toy", *images_and_labels(), 3, "toy/train", origin)
    assert cache.read_entry(tmp_path, "toy", lambda source: source == origin) is not None


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_the_user_has_where_an_entry_would_be_stays(tmp_path, kind):
    """The cache may be a folder of data sets, and that of the user's has the same name."""
    theirs = tmp_path / ("elsewhere" if kind == "link" else "toy")
    if kind == "file":
        theirs.write_text("mine")
    else:
        theirs.mkdir()
        (theirs / "0.png").write_text("mine")
    if kind == "link":
        (tmp_path / "toy").symlink_to(theirs)
    images, labels = images_and_labels()
    with pytest.warns(UserWarning, match="toy.*in memory"):
        dataset = store(tmp_path, images, labels)
    np.testing.assert_array_equal(dataset.images, images)
    assert (theirs if kind == "file" else theirs / "0.png").read_text() == "mine"


def test_what_a_killed_run_left_is_removed_in_time(tmp_path):
    days = STALE_SECONDS
    removed = {f".toy.{'0a' * 16}.{ending}": 10 * days for ending in ("partial", "old", "kept")}
    running = {f".toy.{'0b' * 16}.partial": 10, f".toy.{'0b' * 16}.kept": 3 * days}
    # The cache may lie in a folder of the user's, such as the home folder.
    theirs = {f".{name}": 1000 * days for name in ("venv.old", "config.d.old", "mail.x.partial")}
    for name, age in (removed | running | theirs).items():
        left = tmp_path / name
        left.mkdir()
        (left / "images.npy").write_text("half")
        for path in (left / "images.npy", left):
            then = path.stat().st_mtime - age
            os.utime(path, (then, then))
    store(tmp_path, *images_and_labels())
    assert {path.name for path in tmp_path.iterdir()} == {*running, *theirs, "toy"}


@pytest.mark.parametrize(
    "name,age,stays",
    [
        (f".data.bin.{'0a' * 16}.partial", 2 * STALE_SECONDS, False),
        (f".other.bin.{'0a' * 16}.partial", 2 * STALE_SECONDS, False),
        (f".data.bin.{'0b' * 16}.partial", STALE_SECONDS / 2, True),
        (".data.bin.partial", 1000 * STALE_SECONDS, True),
        (".data.bin.0a0a0a0a.partial", 1000 * STALE_SECONDS, True),
        (f"data.bin.{'0a' * 16}.partial", 1000 * STALE_SECONDS, True),
        (f".data.bin.{'0a' * 16}.txt", 1000 * STALE_SECONDS, True),
    ],
)
@pytest.mark.parametrize("next_start", ["download", "entry"])
def test_what_a_killed_download_left_is_removed_in_time(tmp_path, next_start, name, age, stays):
    """Not that of a running one, and nothing of the user's."""
    left = tmp_path / name
    left.write_text("half")
    os.utime(left, (left.stat().st_mtime - age,) * 2)
    if next_start == "entry":
        store(tmp_path, *images_and_labels())
    else:
        with pytest.raises(ConnectionError):
            download_file(["file:///missing"], tmp_path / "data.bin", size=1, sha256="")
    assert left.exists() == stays


def test_a_killed_download_leaves_a_name_by_which_it_is_found(tmp_path, monkeypatch):
    """A file that the next download, a day later, takes for a dead one's."""
    begun = []

    def killed(urls):
        begun.extend(tmp_path.iterdir())
        raise ConnectionError

    monkeypatch.setattr(download, "_open", killed)
    with pytest.raises(ConnectionError):
        download_file(["http://localhost/"], tmp_path / "data.bin", size=1, sha256="")
    ((left,), then) = begun, os.path.getmtime(tmp_path) - 2 * STALE_SECONDS
    left.write_text("half")
    os.utime(left, (then, then))
    remove_stale(tmp_path)
    assert not left.exists()


def test_the_cache_lies_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DDPM_JAX_CACHE", raising=False)
    assert cache_root() == Path("/home/someone/.cache/ddpm_jax")
    for given, root in (("/xdg", "/xdg"), ("~/xdg", "/home/someone/xdg")):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache_root() == Path(root) / "ddpm_jax"
    for relative in ("", "xdg", "./xdg"):  # to be ignored, says its specification
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert cache_root() == Path("/home/someone/.cache/ddpm_jax")
    monkeypatch.setenv("DDPM_JAX_CACHE", "~/own")
    assert cache_root() == Path("/home/someone/own")
    assert cache_root("/given") == Path("/given")
