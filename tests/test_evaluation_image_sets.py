"""Images from arrays, folders and archives come as they were stored, or an error names the file."""

import os
import pickle
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.dataset import make_dataset
from ddpm_jax.evaluation import open_images

PIXELS = np.random.default_rng(0).integers(0, 256, (23, 6, 6, 3), np.uint8)


def stored_as(kind, folder):
    if kind == "array":
        return PIXELS
    if kind == "folder":
        (folder / "set" / "sub").mkdir(parents=True)
        for i, image in enumerate(PIXELS):
            place = folder / "set" / ("sub" if i >= 15 else ".")
            Image.fromarray(image).save(place / f"{i:03d}.png")
        (folder / "set" / "notes.txt").write_text("not an image")
        return folder / "set"
    file = folder / "set.npz"
    save = np.savez_compressed if kind == "compressed" else np.savez
    save(file, **{"labels": np.arange(23), ("arr_0" if kind == "compressed" else "images"): PIXELS})
    return str(file)


@pytest.mark.parametrize("kind", ["array", "folder", "npz", "compressed"])
def test_all_sources_give_the_same_pixels(tmp_path, kind):
    found = open_images(stored_as(kind, tmp_path))
    assert found.shape == PIXELS.shape and len(found) == 23
    for size in (1, 10, 23, 100):
        batches = list(found.batches(size))
        assert [len(b) for b in batches] == [len(PIXELS[i : i + size]) for i in range(0, 23, size)]
        assert all(b.dtype == np.uint8 for b in batches)
        np.testing.assert_array_equal(np.concatenate(batches), PIXELS)
    np.testing.assert_array_equal(np.concatenate(list(found)), PIXELS)
    assert found.fingerprint() == make_dataset(PIXELS, None, None, "x").fingerprint


def test_an_archive_is_never_in_memory_whole(tmp_path):
    np.savez(tmp_path / "big.npz", samples=np.zeros((3000, 32, 32, 3), np.uint8))  # 9.2 MB
    found = open_images(tmp_path / "big.npz")
    tracemalloc.start()
    assert sum(len(batch) for batch in found.batches(50)) == 3000
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2e6, f"{most / 1e6:.1f} MB at once, for batches of 0.15 MB"


def test_an_array_may_be_chosen_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=PIXELS[:5], mine=PIXELS)
    assert len(open_images(tmp_path / "a.npz")) == 5
    assert len(open_images(tmp_path / "a.npz", name="mine")) == 23
    with pytest.raises(ValueError, match=r"a.npz has the arrays .* none called other. Pass name="):
        open_images(tmp_path / "a.npz", name="other")


def test_folders_of_several_sizes_ask_for_one(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="b.png is 8×8.*6×6 here. Pass resolution="):
        list(open_images(tmp_path).batches())
    (batch,) = open_images(tmp_path, resolution=4).batches()
    assert batch.shape == (2, 4, 4, 3)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png is 8×6, and open_images needs squares"):
        open_images(tmp_path)


def test_damaged_images_name_the_file(tmp_path):
    source = stored_as("folder", tmp_path)
    victim = source / "007.png"
    victim.write_bytes(victim.read_bytes()[:60])
    with pytest.raises(ValueError, match="007.png could not be read as an image.*Remove it"):
        list(open_images(source).batches(4))
    (source / "000.png").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="000.png could not be read"):
        open_images(source)


def test_damaged_archives_name_the_file(tmp_path):
    source = stored_as("npz", tmp_path)
    whole = open(source, "rb").read()
    file = tmp_path / "cut.npz"
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.npz could not be read.*np.savez"):
        open_images(file)
    at = whole.index(PIXELS.tobytes()[:50]) + 1000
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match="cut.npz could not be read.*CRC"):
        list(open_images(file).batches(4))


class Program:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_pickles_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Program()))
    with pytest.raises(ValueError, match="a.npz could not be read.*pickle"):
        open_images("a.npz")
    np.savez(tmp_path / "b.npz", images=np.array([Program()], object))
    with pytest.raises(ValueError, match="b.npz .* object, a pickle"):
        open_images("b.npz")
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b.npz"]


@pytest.mark.parametrize("array", [PIXELS / 255.0, PIXELS[..., 0], PIXELS[:0], PIXELS.astype(int)])
def test_other_arrays_are_refused(tmp_path, array):
    with pytest.raises((TypeError, ValueError), match="open_images needs"):
        open_images(array)
    np.savez(tmp_path / "a.npz", images=array)
    with pytest.raises(ValueError, match=r"needs uint8 \[N, H, W, C\].*to_pixels"):
        open_images(tmp_path / "a.npz")


def test_other_paths_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_images(tmp_path / "absent")
    (tmp_path / "a.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match="neither a folder of images nor an .npz"):
        open_images(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="found no image"):
        open_images(tmp_path)
    with pytest.raises(ValueError, match="batch_size, a whole number of at least 1"):
        open_images(PIXELS).batches(0)
