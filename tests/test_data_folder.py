"""Folders of images: the right pixels in the right order, decoded once, and bad files named."""

import io
import os
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm_jax.data import folder as folder_module
from ddpm_jax.data import load_folder
from ddpm_jax.data.folder import list_images
from ddpm_jax.data.images import decode_image


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


def test_the_parts_are_disjoint_complete_and_every_so_many(photos):
    root, _, pixels = photos
    heldout = load_folder(root, 6, split="heldout", holdout_every=3)
    train = load_folder(root, 6, split="train", holdout_every=3)
    np.testing.assert_array_equal(heldout.images, pixels[[0, 3]])
    np.testing.assert_array_equal(train.images, pixels[[1, 2, 4]])


def test_class_folders_give_labels(photos):
    root, _, _ = photos
    with pytest.raises(ValueError, match=r"Z\.png is in none"):
        load_folder(root, 6, class_folders=True)
    for name in ("Z.png", "é.webp"):
        (root / name).unlink()
    dataset = load_folder(root, 6, class_folders=True)
    np.testing.assert_array_equal(dataset.labels, [0, 1, 1])
    assert dataset.num_classes == 2


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
    load_folder(root, 6, grey=True)
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


def test_a_dangling_or_circular_link_is_named(photos):
    root, _, _ = photos
    for target in ("nowhere.png", "link.png"):
        (root / "link.png").symlink_to(root / target)
        with pytest.raises(OSError, match=r"link\.png"):
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
BAD = {
    "text": lambda good: b"I am no image",
    "empty": lambda good: b"",
    "truncated": lambda good: good[:-40],
    "bomb": lambda good: png_claiming(60_000, 60_000),
    "half a bomb": lambda good: png_claiming(10_000, 9_000),  # Pillow itself only warns
    "a format not asked for": lambda good: GIF,
    "postscript": lambda good: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
}


def test_the_gif_of_the_next_test_is_a_good_one():
    assert Image.open(io.BytesIO(GIF)).convert("RGB").size == (1, 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_is_named_and_leaves_no_cache(photos, tmp_path, bad):
    root, _, _ = photos
    (root / "m.png").write_bytes(BAD[bad]((root / "Z.png").read_bytes()))
    before = list(warnings.filters)
    with pytest.raises(ValueError, match=r"m\.png could not be read as an image") as caught:
        load_folder(root, 6)
    assert ("decompression bomb" in str(caught.value)) == (bad == "bomb")
    assert ("10000×9000 pixels are over" in str(caught.value)) == (bad == "half a bomb")
    assert list((tmp_path / "cache").iterdir()) == []
    assert warnings.filters == before
    assert not [t for t in threading.enumerate() if t.name.startswith("decode-images")]


def test_deep_grey_is_refused_rather_than_clipped(tmp_path):
    file = save(tmp_path / "deep.png", np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    with pytest.raises(ValueError, match=r"deep\.png.*8 bits a channel"):
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
    with pytest.warns(UserWarning, match=r"1 of 2 images.*smaller than 8.*small\.png"):
        load_folder(tmp_path / "in", 8)


def test_an_unwritable_cache_warns_and_works(photos, tmp_path):
    root, _, pixels = photos
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be written"):
        dataset = load_folder(root, 6, cache_dir=tmp_path / "file")
    np.testing.assert_array_equal(dataset.images, pixels)


def test_what_is_no_folder_of_images_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent, which is not a folder"):
        load_folder(tmp_path / "absent", 8)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tiff").write_text("")
    with pytest.raises(ValueError, match="no image in .* and 1 other files"):
        load_folder(tmp_path / "in", 8)
    save(tmp_path / "in" / "only.png", noise(8, 8))
    with pytest.raises(ValueError, match="train split of .* is empty"):
        load_folder(tmp_path / "in", 8, split="train")
    with pytest.raises(ValueError, match="got 'test'"):
        load_folder(tmp_path / "in", 8, split="test")  # type: ignore
    with pytest.raises(ValueError, match="resolution=0"):
        load_folder(tmp_path / "in", 0)
