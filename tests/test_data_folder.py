"""Folders of images: the right pixels in the right order, decoded once, and bad files named."""

import contextlib
import io
import json
import math
import os
import shutil
import struct
import threading
import warnings
import zlib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from ddpm_jax.data import folder as folder_module
from ddpm_jax.data import load_folder, streamed
from ddpm_jax.data.image_files import list_images
from ddpm_jax.data.images import decode_image
from ddpm_jax.programs.config import DataConfig, NetworkConfig, TrainConfig
from ddpm_jax.programs.config_values import from_json, to_json
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.programs.training_run import TrainingRun
from tests.small_run import program


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def lanczos(pixels, size):
    """Lanczos-3 with support 3·scale, in float64, straight from its definition."""
    weights = []
    for n in (0, 1):
        scale = pixels.shape[n] / size
        centres = (np.arange(size) + 0.5) * scale
        distance = (np.arange(pixels.shape[n]) + 0.5 - centres[:, None]) / max(scale, 1)
        kernel = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
        weights.append(kernel / kernel.sum(1, keepdims=True))
    across = np.clip(np.round(np.einsum("xw,hwc->hxc", weights[1], pixels.astype(float))), 0, 255)
    return np.clip(np.einsum("yh,hxc->yxc", weights[0], across), 0, 255)


@pytest.mark.parametrize(("side", "size"), [(50, 16), (31, 8), (20, 32)])
def test_resizing_is_lanczos_by_its_definition(tmp_path, side, size):
    pixels = noise(side, side)
    file = save(tmp_path / "a.png", pixels)
    decoded, enlarged = decode_image(file, size)
    np.testing.assert_allclose(decoded, lanczos(pixels, size), rtol=0, atol=1.01)
    assert enlarged == (side < size)


def test_a_fine_pattern_becomes_its_mean_not_an_alias(tmp_path):
    """Stripes of one pixel, reduced by 50/16: a filter of fixed support would leave bands."""
    stripes = np.zeros((50, 50, 3), np.uint8)
    stripes[:, ::2] = 255
    decoded, _ = decode_image(save(tmp_path / "a.png", stripes), 16)
    np.testing.assert_allclose(decoded[:, 2:-2], 127.5, atol=4)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 13), (14, 8), (8, 31)])
def test_at_its_own_size_an_image_is_cropped_and_not_touched(tmp_path, height, width):
    pixels = noise(height, width)
    top, left = (height - 8) // 2, (width - 8) // 2
    decoded, _ = decode_image(save(tmp_path / "a.png", pixels), 8)
    np.testing.assert_array_equal(decoded, pixels[top : top + 8, left : left + 8])


ORIENTATIONS = {  # tag 274: what the stored rows and columns mean
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("tag", ORIENTATIONS)
def test_the_exif_orientation_is_applied(tmp_path, tag):
    pixels = noise(8, 8)
    exif = Image.Exif()
    exif[274] = tag
    file = save(tmp_path / "a.png", pixels, exif=exif)
    np.testing.assert_array_equal(decode_image(file, 8)[0], ORIENTATIONS[tag](pixels))


def test_colour_modes_become_rgb_or_luminance(tmp_path):
    rgb = noise(8, 8)
    grey = noise(8, 8, 1)
    luminance = rgb @ np.array([0.299, 0.587, 0.114])  # ITU-R 601-2
    np.testing.assert_allclose(
        decode_image(save(tmp_path / "rgb.png", rgb), 8, grey=True)[0][..., 0], luminance, atol=1
    )
    file = save(tmp_path / "grey.png", grey)
    np.testing.assert_array_equal(decode_image(file, 8)[0], np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(decode_image(file, 8, grey=True)[0], grey[..., None])
    rgba = np.concatenate([rgb, np.zeros((8, 8, 1), np.uint8)], -1)
    rgba[:4, :, 3] = 255  # the upper half opaque, the lower transparent
    seen = decode_image(save(tmp_path / "rgba.png", rgba), 8)[0]
    np.testing.assert_array_equal(seen[:4], rgb[:4])
    np.testing.assert_array_equal(seen[4:], np.full((4, 8, 3), 255))
    Image.fromarray(rgb).quantize(16).save(tmp_path / "palette.png")
    palette = np.asarray(Image.open(tmp_path / "palette.png").convert("RGB"))
    np.testing.assert_array_equal(decode_image(tmp_path / "palette.png", 8)[0], palette)


@pytest.fixture
def photos(tmp_path):
    """Five 6×6 images in nested folders, in several formats, among other things."""
    root = tmp_path / "photos"
    names = ["b/2.png", "b/10.bmp", "a/z/1.PNG", "Z.png", "é.webp"]
    for i, name in enumerate(names):
        save(root / name, noise(6, 6, seed=i), **({"lossless": True} if "webp" in name else {}))
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden.png").write_text("not an image")
    (root / "b" / "._2.png").write_text("what a file manager leaves")
    order = ["Z.png", "a/z/1.PNG", "b/10.bmp", "b/2.png", "é.webp"]  # by bytes: é is C3 A9
    return root, order, np.stack([noise(6, 6, seed=names.index(name)) for name in order])


def test_all_images_are_found_in_the_order_of_their_bytes(photos):
    root, order, pixels = photos
    dataset = load_folder(root, 6)
    assert [file.name for file in list_images(root)] == order
    np.testing.assert_array_equal(dataset.images, pixels)
    assert dataset.num_classes is None
    assert dataset.name == "photos/all"
    assert isinstance(dataset.images.base, np.memmap)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_many_files_keep_their_order_in_blocks(tmp_path, monkeypatch, num_workers):
    monkeypatch.setattr(folder_module, "BLOCK", 4)
    root = tmp_path / "many"
    for i in range(50):
        save(root / f"{i:03}.png", np.full((4, 4, 3), i, np.uint8))
    reports = []
    dataset = load_folder(
        root, 4, num_workers=num_workers, progress=lambda *pair: reports.append(pair)
    )
    np.testing.assert_array_equal(dataset.images[:, 0, 0, 0], np.arange(50))
    assert reports == [(min(i, 50), 50) for i in range(4, 53, 4)]
    assert not [t for t in threading.enumerate() if t.name.startswith("decode-images")]


def test_the_parts_are_disjoint_and_complete(photos):
    root, _, pixels = photos
    heldout = load_folder(root, 6, split="heldout", holdout=1 / 3)
    train = load_folder(root, 6, split="train", holdout=1 / 3)
    np.testing.assert_array_equal(heldout.images, pixels[[0, 3]])
    np.testing.assert_array_equal(train.images, pixels[[1, 2, 4]])


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.01, 0.1, 1 / 3, 0.3, 0.5, 0.9, 0.999])
def test_the_share_held_out_is_exact_and_evenly_spaced(share):
    """⌈N · share⌉ of every first N: no rounding of 0.1 may hold out one more at 30."""
    held = folder_module.held_out_of(1000, share)
    exact = Fraction(share).limit_denominator(10**6)
    expected = [math.ceil(exact * n) for n in range(1, 1001)]
    np.testing.assert_array_equal(np.cumsum(held), expected)
    if share == 0.1:
        np.testing.assert_array_equal(np.flatnonzero(held), np.arange(0, 1000, 10))


def test_nothing_need_be_held_out(photos):
    root, _, pixels = photos
    np.testing.assert_array_equal(load_folder(root, 6, split="train", holdout=0).images, pixels)
    nothing = load_folder(root, 6, split="heldout", holdout=0)
    assert nothing.images.shape == (0, 6, 6, 3) and nothing.labels.shape == (0,)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"holdout in \[0, 1\)"):
            load_folder(root, 6, holdout=share)


def test_a_folder_is_decoded_once_and_again_when_it_or_the_options_change(photos, monkeypatch):
    root, _, pixels = photos
    decoded = []
    real = folder_module.decode_image

    def counted(file, *arguments, **options):
        decoded.append(file.name)
        return real(file, *arguments, **options)

    monkeypatch.setattr(folder_module, "decode_image", counted)
    first = load_folder(root, 6)
    assert load_folder(root, 6).fingerprint == first.fingerprint
    assert len(decoded) == 5
    load_folder(root, 5)
    load_folder(root, 6, channels=1)
    assert len(decoded) == 15
    os.utime(root / "Z.png", ns=(0, 12345))
    load_folder(root, 6)
    (root / "Z.png").rename(root / "Y.png")
    load_folder(root, 6)
    (root / "Y.png").unlink()
    np.testing.assert_array_equal(load_folder(root, 6).images, pixels[1:])
    assert len(decoded) == 29


def test_links_are_followed_and_loops_end(photos, tmp_path):
    root, order, _ = photos
    (root / "a" / "loop").symlink_to(root)
    (root / "again").symlink_to(root / "b")
    elsewhere = save(tmp_path / "elsewhere" / "1.png", noise(6, 6)).parent
    (root / "linked").symlink_to(elsewhere)
    names = [file.name for file in list_images(root)]
    assert "linked/1.png" in names
    assert len(names) == len(order) + 1


@pytest.mark.parametrize("names", [("b", "a"), ("a", "b")])
def test_a_folder_with_two_names_has_the_first_in_whatever_order_the_disk_lists_them(
    tmp_path, monkeypatch, names
):
    """Names decide the order of the images and their classes, which must not depend on the disk."""
    save(tmp_path / "elsewhere" / "1.png", noise(6, 6))
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / name).symlink_to(tmp_path / "elsewhere")
    scandir = os.scandir

    @contextlib.contextmanager
    def in_this_order(place):
        with scandir(place) as entries:
            found = {entry.name: entry for entry in entries}
        yield [found[name] for name in names if name in found] or list(found.values())

    monkeypatch.setattr(os, "scandir", in_this_order)
    assert [file.name for file in list_images(tmp_path / "in")] == ["a/1.png"]


def test_a_held_out_image_in_colour_makes_the_cached_training_images_rgb(tmp_path):
    for i in range(4):
        save(tmp_path / "in" / f"{i}.png", noise(6, 6, channels=1, seed=i))
    options = {"channels": "auto", "holdout": 0.25}
    assert load_folder(tmp_path / "in", 6, split="train", **options).images.shape[-1] == 1
    save(tmp_path / "in" / "0.png", noise(6, 6))
    for split in ("train", "heldout"):
        assert load_folder(tmp_path / "in", 6, split=split, **options).images.shape[-1] == 3


def test_a_dangling_or_circular_link_is_named(photos):
    root, _, _ = photos
    for target in ("nowhere.png", "link.png"):
        (root / "link.png").symlink_to(root / target)
        with pytest.raises(OSError, match=r"link\.png is a link to nowhere. Remove it"):
            load_folder(root, 6)
        (root / "link.png").unlink()


def png_claiming(width, height):
    """A well-formed PNG header over no data: what it claims is all there is."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


GIF = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
ICO = io.BytesIO()
Image.new("RGB", (16, 16)).save(ICO, "ICO")
BAD = {
    "text": lambda good: b"I am no image",
    "empty": lambda good: b"",
    "truncated": lambda good: good[:-40],
    "bomb": lambda good: png_claiming(60_000, 60_000),
    "half a bomb": lambda good: png_claiming(10_000, 9_000),  # Pillow itself only warns
    "a format that is not read": lambda good: ICO.getvalue(),
    "a GIF by another name": lambda good: GIF,
    "postscript": lambda good: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
}


def test_icon_and_gif_of_the_next_test_are_good_ones():
    assert Image.open(io.BytesIO(GIF)).convert("RGB").size == (1, 1)
    assert Image.open(ICO).convert("RGB").size == (16, 16)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_is_named_and_leaves_no_entry(photos, tmp_path, bad):
    root, _, _ = photos
    (root / "m.png").write_bytes(BAD[bad]((root / "Z.png").read_bytes()))
    before = list(warnings.filters)
    with pytest.raises(ValueError, match=r"m\.png could not be read as an image") as caught:
        load_folder(root, 6)
    assert ("decompression bomb" in str(caught.value)) == (bad == "bomb")
    assert ("10000×9000 pixels are over" in str(caught.value)) == (bad == "half a bomb")
    remedies = {"empty": ": it is empty. Remove it.", "truncated": ". Remove it, or convert"}
    remedies |= dict.fromkeys(("bomb", "half a bomb"), ". Make it smaller, or remove it.")
    assert remedies.get(bad, "it is none of ") in str(caught.value)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".kept"]
    assert warnings.filters == before
    assert not [t for t in threading.enumerate() if t.name.startswith("decode-images")]


def test_deep_grey_is_refused_rather_than_clipped(tmp_path):
    file = save(tmp_path / "deep.png", np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    with pytest.raises(ValueError, match=r"deep\.png.*8 bits per channel. Convert it to 8"):
        decode_image(file, 8)


def test_the_pixel_limit_is_the_callers(photos):
    root, _, _ = photos
    with pytest.raises(ValueError, match="6×6 pixels are over 35"):
        load_folder(root, 6, max_pixels=35)


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]), st.data())
def test_a_damaged_image_is_a_value_error_or_an_image(tmp_path_factory, format, data):
    file = tmp_path_factory.getbasetemp() / f"damaged.{format.lower()}"
    Image.fromarray(noise(9, 7)).save(file, format)
    content = bytearray(file.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:where]
    else:
        content[where] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        pixels, _ = decode_image(file, 4)
    except ValueError as error:
        assert str(file) in str(error)
    else:
        assert (pixels.shape, pixels.dtype) == ((4, 4, 3), np.uint8)


def test_enlarging_is_warned_of(tmp_path):
    save(tmp_path / "in" / "small.png", noise(4, 9))
    save(tmp_path / "in" / "tall.png", noise(9, 8))
    with pytest.warns(UserWarning, match=r"1 of 2 images.*small\.png, are smaller than 8"):
        load_folder(tmp_path / "in", 8)


def test_an_unwritable_cache_warns_and_works(photos, tmp_path):
    root, _, pixels = photos
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be written"):
        dataset = load_folder(root, 6, cache_dir=tmp_path / "file")
    np.testing.assert_array_equal(dataset.images, pixels)


def test_what_is_no_folder_of_images_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent, which does not exist"):
        load_folder(tmp_path / "absent", 8)
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"a\.zip, which is not a folder.* Unpack an arch"):
        load_folder(tmp_path / "a.zip", 8)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("")
    with pytest.raises(ValueError, match="no image in "):
        load_folder(tmp_path / "in", 8)
    save(tmp_path / "in" / "only.png", noise(8, 8))
    with pytest.raises(ValueError, match="train split of .* is empty"):
        load_folder(tmp_path / "in", 8, split="train")
    with pytest.raises(ValueError, match="got 'test'"):
        load_folder(tmp_path / "in", 8, split="test")  # type: ignore
    with pytest.raises(ValueError, match="got 0"):
        load_folder(tmp_path / "in", 0)


ENDINGS = {
    "PNG": ".png .PNG .apng",
    "JPEG": ".jpg .JPG .jpeg .JPEG .jpe .jfif",
    "MPO": ".mpo .jpg",
    "WEBP": ".webp",
    "BMP": ".bmp .BMP",
    "GIF": ".gif",
    "TIFF": ".tif .TIFF",
    "PPM": ".ppm .pnm",
    "QOI": ".qoi",
    "AVIF": ".avif",
}
FILES = [(kind, ending) for kind in ENDINGS for ending in ENDINGS[kind].split()]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "ending"), [*FILES, *((kind, "") for kind in ENDINGS)])
def test_images_are_read_by_content_whatever_their_ending(tmp_path, kind, ending):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.fromarray(noise(8, 8)).save(buffer := io.BytesIO(), kind)
    (tmp_path / "in").mkdir()
    for name in (f"a{ending}", "b.dat"):
        (tmp_path / "in" / name).write_bytes(buffer.getvalue())
    expected = np.asarray(Image.open(buffer).convert("RGB"))
    np.testing.assert_array_equal(load_folder(tmp_path / "in", 8).images, [expected] * 2)


def test_what_is_left_out_is_counted_and_named(tmp_path):
    """Formats that are not read and files of other kinds, but no captions and hidden files."""
    root = save(tmp_path / "in" / "a.png", noise(8, 8)).parent
    icon = {"photo.heic": b"....ftypheic", "logo.svg": b"<svg/>", "a.ico": ICO.getvalue()}
    others = icon | {"b.npy": b"\x93NUMPY", "c.zip": b"PK", "\udcff.x": b"", "d": b"BMno image"}
    for name, content in (others | {"caption.TXT": b"", "Thumbs.db": b"", ".x.tga": b""}).items():
        (root / name).write_bytes(content)
    os.mkfifo(root / "z")
    with pytest.warns(UserWarning, match=f"{len(others) + 1} files in .*, …. Convert") as caught:
        assert len(load_folder(root, 8).images) == 1
    assert "a.ico, b.npy, c.zip, d, logo.svg" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in (*others, "z"):
            (root / name).unlink()
        load_folder(root, 8)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_frames_the_first_is_read_and_a_warning_says_so(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    (tmp_path / "in").mkdir()
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(tmp_path / "in" / "a", kind, save_all=True, append_images=frames[1:], **options)
    with pytest.warns(UserWarning, match="1 of 1 images .* only the first"):
        (image,) = load_folder(tmp_path / "in", 8).images
    assert (image == [255, 0, 0]).mean() > 0.9


def deep(kind):
    """8×8 pixels of 16 bits per channel, in colour, which Pillow cannot write."""
    if kind == "PPM":
        return b"P6 8 8 65535\n" + bytes(8 * 8 * 6)
    tags = [(256, 3, 8), (257, 3, 8), (258, 3, 0), (259, 3, 1), (262, 3, 2), (273, 4, 0)]
    tags += [(277, 3, 3), (278, 3, 8), (279, 4, 384)]
    end = 14 + 12 * len(tags)
    places = {258: (3, end), 273: (1, end + 6)}
    body = b"".join(
        struct.pack("<HHII", tag, of, *places.get(tag, (1, value))) for tag, of, value in tags
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + body + struct.pack("<IHHH", 0, 16, 16, 16) + bytes(384)


@pytest.mark.parametrize("kind", ["PPM", "TIFF"])
def test_deep_colour_is_refused_rather_than_cut(tmp_path, kind):
    (tmp_path / "a.img").write_bytes(deep(kind))
    assert Image.open(tmp_path / "a.img").mode == "RGB"
    with pytest.raises(ValueError, match="8 bits per channel"):
        decode_image(tmp_path / "a.img", 8)


@pytest.mark.parametrize("count", [2, 30])
def test_all_broken_files_are_named_and_the_others_are_not_decoded_again(
    tmp_path, monkeypatch, count
):
    monkeypatch.setattr(folder_module, "BLOCK", 7)
    root, cache = tmp_path / "in", tmp_path / "cache"
    pixels = [noise(6, 6, seed=i) for i in range(40)]
    for i, image in enumerate(pixels):
        save(root / f"{i:02}.png", image)
    for i in range(count):
        (root / f"bad{i:02}.png").write_bytes(b"no image")
    for _ in range(2):  # failing twice, nothing piles up
        with pytest.raises(
            ValueError, match=f"{count} of {40 + count} images .* cannot be used"
        ) as error:
            load_folder(root, 6)
        assert str(error.value).count("bad") == min(count, 20)
        assert len(list(cache.iterdir())) == 1
    for file in root.glob("bad*"):
        file.unlink()
    decoded = count_decoded(monkeypatch)
    np.testing.assert_array_equal(load_folder(root, 6).images, pixels)
    assert decoded == []
    assert [path.name[:9] for path in cache.iterdir()] == ["folder-in"]


def count_decoded(monkeypatch):
    decoded, real = [], folder_module.decode_image

    def counted(file, *arguments, **options):
        decoded.append(file.name)
        return real(file, *arguments, **options)

    monkeypatch.setattr(folder_module, "decode_image", counted)
    return decoded


@pytest.mark.parametrize("damage", ["none", "pixel", "cut", "records", "empty"])
def test_what_an_interrupted_start_decoded_is_used_if_it_is_whole(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(folder_module, "BLOCK", 5)
    root, cache = tmp_path / "in", tmp_path / "cache"
    pixels = [noise(6, 6, seed=i) for i in range(20)]
    for i, image in enumerate(pixels):
        save(root / f"{i:02}.png", image)

    def interrupt(done, total):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_folder(root, 6, progress=interrupt)
    (kept,) = cache.iterdir()
    file = kept / ("rows" if damage == "records" else "images.npy")
    content = bytearray(file.read_bytes())
    if damage == "pixel":
        content[-1] ^= 1
    elif damage in ("cut", "records"):
        del content[-1:]
    elif damage == "empty":
        content.clear()
    file.write_bytes(content)
    decoded = count_decoded(monkeypatch)
    np.testing.assert_array_equal(load_folder(root, 6).images, pixels)
    again = {"none": 10, "empty": 20}.get(damage, 11)
    assert len(decoded) == again


def test_the_same_images_in_a_renamed_folder_are_not_decoded_again(photos, tmp_path, monkeypatch):
    root, _, _ = photos
    first = load_folder(root, 6)
    decoded = count_decoded(monkeypatch)
    moved = load_folder(root.rename(tmp_path / "elsewhere"), 6)
    assert decoded == [] and moved.fingerprint == first.fingerprint
    assert moved.name == "elsewhere/all"


def test_names_that_are_not_utf8_are_kept_and_can_be_printed(tmp_path):
    """As folder too: the name is stored in JSON, which has no such text."""
    save(tmp_path / "f\udcff" / "a\udcff.png", noise(6, 6))
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dataset = load_folder(tmp_path / "f\udcff", 6)
    assert dataset.name == "f\\xff/all"
    (tmp_path / "f\udcff" / "b\udcff.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b\\xff\.png") as caught:
        load_folder(tmp_path / "f\udcff", 6)
    str(caught.value).encode()


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(save(tmp_path / "in" / "a.png", noise(6, 6)).parent))
    assert len(load_folder("~", 6).images) == 1
    with pytest.raises(FileNotFoundError, match="~nobody-here/x, which does not exist"):
        load_folder("~nobody-here/x", 6)


def test_all_unreadable_entries_are_named_in_one_error(tmp_path, monkeypatch):
    root = save(tmp_path / "in" / "a.png", noise(6, 6)).parent
    (root / "link.png").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe.png")
    (root / "locked").mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OSError, match="4 of 5") as caught:
        load_folder(root, 6)
    assert all(name in str(caught.value) for name in ("link.png", "loop", "pipe.png", "locked"))


def test_a_large_folder_is_announced_and_refused_without_room(photos, monkeypatch, capsys):
    root, _, _ = photos
    monkeypatch.setattr(streamed, "ANNOUNCED_BYTES", 5 * 6 * 6 * 3)
    usage = shutil.disk_usage(root)._replace(free=5 * 6 * 6 * 3 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="539 bytes free, and the decoded images need 540. Make room"):
        load_folder(root, 6, stream="never")
    assert "5 images take 540 bytes decoded" in (said := capsys.readouterr().err)
    assert "539 bytes free" in said and os.environ["DDPM_JAX_CACHE"] in said


def run_of(folder, place, **options):
    config = TrainConfig(
        place / "run",
        num_steps=2,
        batch_size=8,
        data=DataConfig("folder", folder, resolution=8, **options),
        network=NetworkConfig(8, (1,), 1, (8,), num_groups=4),
    )
    return TrainingRun(config)


def test_a_run_is_resumed_with_the_same_images_in_another_folder_only(tmp_path):
    for i in range(20):
        save(tmp_path / "a" / f"{i:02}.png", noise(8, 8, seed=i))
    run = run_of(tmp_path / "a", tmp_path)
    run.directory.write(run.config, run.facts)
    (run.directory.checkpoints / "1").mkdir(parents=True)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = run_of(tmp_path / "b", tmp_path)
    moved.directory.check(moved.config, moved.facts)
    save(tmp_path / "b" / "07.png", noise(8, 8, seed=99))
    other = run_of(tmp_path / "b", tmp_path)
    with pytest.raises(RunDirectoryError, match="fingerprint"):
        other.directory.check(other.config, other.facts)


@pytest.mark.parametrize(
    "run_dir, apart",
    [("a", False), ("a/runs/folder", False), ("a/../a", False), ("a/.run", True), ("ab", True)],
)
def test_a_run_does_not_lie_among_its_images(tmp_path, run_dir, apart):
    (tmp_path / "a").mkdir()  # without images, whose absence is the next error
    with pytest.raises(ValueError, match="no image" if apart else "--run-dir .* lies in --data"):
        run_of(tmp_path / "a", tmp_path / run_dir)


def test_the_digits_are_no_images_of_ones_own(tmp_path):
    """Refused at the start of training: earlier runs whose configuration has a path still open."""
    config = TrainConfig(run_dir=tmp_path / "run", num_steps=1, data=DataConfig("digits", tmp_path))
    with pytest.raises(ValueError, match="takes no --data.path.* ddpm-jax train folder"):
        TrainingRun(config)


def test_a_configuration_without_holdout_still_reads_as_every_tenth():
    values = to_json(DataConfig("folder"))
    del values["holdout"]
    assert from_json(DataConfig, values).holdout == 0.1


TINY = """--num-steps=2 --batch-size=4 --devices.count=1 --report.log-every=1
--network.channels=8 --network.channel-multipliers 1 --network.num-res-blocks=1
--network.attention-resolutions 8 --network.num-groups=4
--diffusion.num-timesteps=20 --diffusion.beta-start=0.005 --diffusion.beta-end=0.5
--report.sample-every=0 --report.sample-count=2 --report.sample-steps=2
--report.final-count=2 --report.final-steps=2"""


@pytest.mark.slow
def test_training_without_held_out_images_leaves_the_measurement_out(tmp_path):
    for i in range(8):
        save(tmp_path / "a" / f"{i}.png", noise(8, 8, seed=i))
    arguments = [f"--data.path={tmp_path / 'a'}", "--data.resolution=8"]
    arguments += ["--data.holdout=0", "--report.heldout-every=1", *TINY.split()]
    program("train_celebahq.py", f"--run-dir={tmp_path / 'run'}", *arguments)
    kinds = {json.loads(line)["kind"] for line in (tmp_path / "run" / "log.jsonl").open()}
    assert "train" in kinds and "heldout" not in kinds
