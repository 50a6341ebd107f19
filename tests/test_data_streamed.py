"""Streamed images are the decoded ones: same pixels, order, labels and fingerprint."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import (
    PrefetchedBatches,
    ShuffledIndices,
    fits_on_device,
    folder,
    load_folder,
    make_dataset,
)
from ddpm_jax.data.dataset import split_dataset
from ddpm_jax.data.encoded import Encoded, decode_dataset, hold_out
from ddpm_jax.data.streamed import StreamedImages
from tests.small_run import program

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), np.uint8)


def streamed():
    return StreamedImages(lambda indices: PIXELS[indices], PIXELS.shape)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of 12 images in three classes; the cache is empty."""
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))
    for i, pixels in enumerate(PIXELS):
        place = tmp_path / "pictures" / f"class{i // 4}" / f"{i:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(pixels))
    return tmp_path / "pictures"


@pytest.mark.parametrize(
    "key",
    [
        3,
        -1,
        np.int32(2),
        slice(2, 9, 3),
        slice(0, 0),
        np.arange(12) % 2 == 0,
        [1, 1, 0],
        np.array([[5, 3], [0, 5]]),
        np.zeros((0,), int),
    ],
    ids=str,
)
def test_indexing_gives_what_the_array_gives(key):
    got = streamed()[key]
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, PIXELS[key])


def test_it_has_the_measures_of_an_array_and_becomes_one(monkeypatch):
    images = streamed()
    for name in ("shape", "dtype", "ndim", "size", "nbytes"):
        assert getattr(images, name) == getattr(PIXELS, name)
    np.testing.assert_array_equal(np.asarray(images), PIXELS)
    np.testing.assert_array_equal(images.subset(np.arange(12) > 8)[1:], PIXELS[10:])
    with pytest.raises(TypeError, match="first axis alone"):
        images[0, 1]
    monkeypatch.setattr("ddpm_jax.data.streamed.MEMORY_BYTES", 100)
    with pytest.raises(ValueError, match="1,080 bytes.*images\\[:1000\\]"):
        np.asarray(images)


def test_a_streamed_folder_is_the_decoded_one(pictures, tmp_path):
    options = {"split": "train", "holdout": 0.25, "labels": "auto"}
    stream = load_folder(pictures, "6x5", stream="always", **options)
    assert not list((tmp_path / "cache").rglob("images.npy"))
    whole = load_folder(pictures, "6x5", stream="never", **options)
    assert isinstance(stream.images, StreamedImages) and isinstance(whole.images, np.memmap)
    np.testing.assert_array_equal(np.asarray(stream.images), whole.images)
    np.testing.assert_array_equal(stream.labels, whole.labels)
    for name in ("num_classes", "name", "fingerprint", "class_names"):
        assert getattr(stream, name) == getattr(whole, name), name
    # What is decoded already is used.
    again = load_folder(pictures, "6x5", stream="always", **options)
    assert isinstance(again.images, np.memmap)


def test_images_are_identified_once(pictures, tmp_path, monkeypatch):
    first = load_folder(pictures, "6x5", stream="always")
    decoded = []
    decode_image = folder.decode_image

    def counting(path, *arguments, **options):
        decoded.append(path.name)
        return decode_image(path, *arguments, **options)

    monkeypatch.setattr(folder, "decode_image", counting)
    again = load_folder(pictures, "6x5", stream="always")
    assert again.fingerprint == first.fingerprint and not decoded
    np.testing.assert_array_equal(again.images[[7, 2]], PIXELS[[7, 2]])
    assert sorted(decoded) == ["02.png", "07.png"]
    (note,) = (tmp_path / "cache").glob("streamed-*.json")
    note.write_text("{}")
    assert load_folder(pictures, "6x5", stream="always").fingerprint == first.fingerprint
    assert len(decoded) == 2 + 12
    # Another image under the same name is another data set.
    (pictures / "class0" / "02.png").write_bytes(png(PIXELS[3]))
    assert load_folder(pictures, "6x5", stream="always").fingerprint != first.fingerprint


@pytest.mark.parametrize("room", [1079, 1080])
def test_auto_streams_what_the_disk_has_no_room_for(pictures, monkeypatch, capsys, room):
    usage = shutil.disk_usage(pictures)._replace(free=room)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    data = load_folder(pictures, "6x5")
    said = capsys.readouterr().err
    assert isinstance(data.images, StreamedImages) == (room < 1080)
    if room < 1080:
        assert "12 images take 1,080 bytes decoded" in said and "1,079 bytes free" in said
        assert "--data.stream" in said
        with pytest.raises(OSError, match="1,079 bytes free"):
            load_folder(pictures, "6x5", stream="never")


def test_broken_files_are_named_before_training_and_lost_ones_in_it(pictures):
    (pictures / "class1" / "05.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match="05.png"):
        load_folder(pictures, "6x5", stream="always")
    (pictures / "class1" / "05.png").write_bytes(png(PIXELS[5]))
    data = load_folder(pictures, "6x5", stream="always")
    (pictures / "class1" / "05.png").unlink()
    indices = ShuffledIndices(12, 12, 0)
    with PrefetchedBatches(data, indices, start_step=0, chunk_length=lambda s: 1) as chunks:
        with pytest.raises(RuntimeError, match=r"steps 0\.\.0 of pictures/all.*05.png"):
            next(chunks)


def test_batches_are_those_of_the_array(pictures):
    data = load_folder(pictures, "6x5", stream="always")
    whole = make_dataset(PIXELS, None, None, "array")
    assert not fits_on_device(data, 10**9) and fits_on_device(whole, 10**9)
    for resident in (data, whole):
        indices = ShuffledIndices(12, 5, 3)
        with PrefetchedBatches(resident, indices, start_step=2, chunk_length=lambda s: 3) as chunks:
            chunk = next(chunks)
        np.testing.assert_array_equal(chunk.images, PIXELS[indices.chunk(2, 3)])


def test_a_split_of_a_streamed_set_decodes_nothing():
    def read(indices):
        raise AssertionError("decoded")

    data = make_dataset(StreamedImages(read, PIXELS.shape), None, None, "s", fingerprint="a" * 64)
    chosen = np.arange(12) % 3 == 0
    one, other = split_dataset(data, chosen, "s/a"), split_dataset(data, ~chosen, "s/b")
    assert (len(one.images), len(other.images)) == (4, 8)
    assert len({data.fingerprint, one.fingerprint, other.fingerprint}) == 3
    assert split_dataset(data, chosen, "s/c").fingerprint == one.fingerprint


def source(labels=(0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1)):
    stored = list(map(png, PIXELS))
    return Encoded(
        "content", 12, lambda indices: [(stored[i], labels[i]) for i in indices], ("a", "b")
    )


def test_another_librarys_images_are_streamed_as_they_are_decoded(tmp_path):
    options = {"resolution": None, "channels": 3}
    stream = decode_dataset(source(), "tfds:x", tmp_path, stream="always", **options)
    # The second time labels and fingerprint come from the cache.
    again = decode_dataset(source(), "tfds:x", tmp_path, stream="always", **options)
    whole = decode_dataset(source(), "tfds:x", tmp_path, stream="never", **options)
    for data in (stream, again):
        assert isinstance(data.images, StreamedImages)
        np.testing.assert_array_equal(np.asarray(data.images), whole.images)
        np.testing.assert_array_equal(data.labels, whole.labels)
        assert data.fingerprint == whole.fingerprint and data.class_names == ("a", "b")


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_part_of_streamed_images_is_that_of_the_decoded_ones(tmp_path, split):
    """With its fingerprint, as a resumed run may stream what was decoded before."""
    seen, made = [], source()

    def fetch(indices):
        seen.extend(indices)
        return made.fetch(indices)

    def part(stream):
        data = made._replace(fetch=fetch)
        whole = decode_dataset(data, "tfds:x", tmp_path, stream=stream, resolution=None, channels=3)
        return hold_out(whole, split, 0.25, f"tfds:x/{split}", tmp_path)

    stream = part("always")
    seen.clear()
    again = part("always")
    assert len(seen) < 12  # the size, and whether there is colour, but not all of them
    whole = part("never")
    for data in (stream, again):
        assert isinstance(data.images, StreamedImages)
        np.testing.assert_array_equal(np.asarray(data.images), whole.images)
        assert data.fingerprint == whole.fingerprint and data.name == whole.name


@pytest.mark.parametrize("stream", [None, True, "yes", 1])
def test_another_value_is_refused_by_name(pictures, stream):
    with pytest.raises(ValueError, match='stream "auto", "always" or "never"'):
        load_folder(pictures, "6x5", stream=stream)


@pytest.mark.slow
def test_a_run_streams_resumes_and_equals_the_decoded_run(pictures, tmp_path):
    tiny = """--batch-size=4 --devices.count=1 --report.log-every=1 --network.channels=8
        --network.channel-multipliers 1 --network.num-res-blocks=1 --network.num-groups=4
        --network.attention-resolutions 8 --diffusion.num-timesteps=20
        --diffusion.beta-start=0.005 --diffusion.beta-end=0.5 --report.sample-every=0
        --report.heldout-every=2 --report.heldout-draws=8 --report.checkpoint-every=2
        --report.final-count=2 --report.final-steps=2 --data.resolution=8""".split()

    def train(name, *arguments):
        run = tmp_path / name
        arguments = [f"--run-dir={run}", f"--data.path={pictures}", *tiny, *arguments]
        program("train_celebahq.py", *arguments)
        lines = [json.loads(line) for line in (run / "log.jsonl").open()]
        return [{k: v for k, v in line.items() if k != "time"} for line in lines]

    streamed_log = train("streamed", "--num-steps=4", "--data.stream=always")
    assert not list((tmp_path / "cache").rglob("images.npy"))
    # Half of it streamed, the other half decoded.
    train("mixed", "--num-steps=2", "--data.stream=always")
    mixed = train("mixed", "--num-steps=4", "--data.stream=never", "--resume-with-changes")
    assert [line for line in streamed_log if line["kind"] == "train"] == [
        line for line in mixed if line["kind"] == "train"
    ]
