"""Image files and folders: bombs, truncations, strange modes, things that are no files."""

import io
import os
import shutil
import socket
import struct
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddpm_jax.data import load_folder
from ddpm_jax.data.images import decode_image
from ddpm_jax.evaluation import open_images
from tests.hostile.bounds import MIB, attempt, examples, refused
from tests.hostile.mutation import mutated

SIDE = 6
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def encoded(kind, image=None, **options):
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, content):
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(width=SIDE, height=SIDE, depth=8, colour=2, extra=b"", rows=None, compressed=None):
    """A PNG written by hand, so that its header may say anything."""
    if rows is None:
        rows = b"".join(b"\0" + row.tobytes() for row in PIXELS)
    compressed = zlib.compress(rows) if compressed is None else compressed
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
        + extra
        + chunk(b"IDAT", compressed)
        + chunk(b"IEND", b"")
    )


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


FILES = {
    "png": encoded("PNG", exif=exif(6)),
    "jpg": encoded("JPEG", exif=exif(3)),
    "webp": encoded("WEBP", lossless=True, exif=exif(8)),
    "bmp": encoded("BMP"),
    "palette": encoded("PNG", Image.fromarray(PIXELS).convert("P")),
    "animated": encoded(
        "WEBP",
        save_all=True,
        append_images=[Image.new("RGB", (SIDE, SIDE), "red")] * 3,
        lossless=True,
    ),
    "apng": encoded(
        "PNG", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE), "red")] * 3
    ),
    "cmyk": encoded("JPEG", Image.fromarray(PIXELS).convert("CMYK")),
    "gif": encoded("GIF"),
    "tiff": encoded("TIFF"),
    "lzw": encoded("TIFF", compression="tiff_lzw"),
    "ppm": encoded("PPM"),
    "qoi": encoded("QOI"),
}


@pytest.mark.filterwarnings("ignore")
@examples(100)
@given(content=st.sampled_from(sorted(FILES)).flatmap(lambda kind: mutated(FILES[kind])))
def test_damaged_images_are_pixels_or_refused(place, content):
    path = place / "a.img"
    path.write_bytes(content)
    result = attempt(lambda: decode_image(path, SIDE), str(path), seconds=10, memory=64 * MIB)
    if not refused(result):
        pixels, _ = result
        assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8


@pytest.mark.filterwarnings("ignore")
@examples(60)
@given(
    size=st.tuples(*[st.sampled_from([0, 1, 5, SIDE, 2**15, 2**31 - 1, 2**32 - 1])] * 2),
    depth=st.sampled_from([0, 1, 8, 16, 255]),
    colour=st.sampled_from([0, 1, 2, 3, 4, 6, 255]),
)
def test_headers_of_any_size_are_pixels_or_refused(place, size, depth, colour):
    """Only what the rows could be of is accepted: a small file never stands for a large image."""
    path = place / "a.png"
    path.write_bytes(png(*size, depth, colour))
    result = attempt(lambda: decode_image(path, SIDE), str(path), seconds=10, memory=64 * MIB)
    bits = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 0) * depth
    held = len(b"".join(b"\0" + row.tobytes() for row in PIXELS))
    if not refused(result):
        assert 0 < size[1] * (1 + -(-size[0] * bits // 8)) <= held


@pytest.mark.parametrize("colour,values", [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_a_channel_are_refused_in_every_colour(place, colour, values):
    """Pillow would read the upper eight of them without a word."""
    row = np.arange(SIDE * SIDE * values, dtype=">u2").reshape(SIDE, -1)
    path = place / "deep.png"
    path.write_bytes(png(depth=16, colour=colour, rows=b"".join(b"\0" + r.tobytes() for r in row)))
    result = attempt(lambda: decode_image(path, SIDE), str(path))
    assert refused(result) and "8 bits" in str(result)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("orientation", [float("nan"), 1e30, 0, 9, (1, 2), 65535])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_orientation_that_is_none_turns_nothing(place, orientation, kind):
    if isinstance(orientation, float):
        # As a 64-bit float, which Pillow itself would not write there.
        body = struct.pack("<2sHIHHHIIId", b"II", 42, 8, 1, 0x0112, 12, 1, 26, 0, orientation)
        tags = b"Exif\0\0" + body
    else:
        tags = exif(orientation)
    path = place / "a.img"
    options = {"PNG": {}, "JPEG": {"quality": 100}, "WEBP": {"lossless": True}}[kind]
    path.write_bytes(encoded(kind, exif=tags, **options))
    result = attempt(lambda: decode_image(path, SIDE), str(path))
    if not refused(result) and kind != "JPEG":
        np.testing.assert_array_equal(result[0], PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("interlaced", [False, True])
def test_rows_that_are_missing_are_not_taken_for_black(place, mode, interlaced):
    """Any number of whole rows of every pass, in a stream that ends as it should."""
    path = place / "short.png"
    bits = {"1": 1, "L": 8, "LA": 16, "P": 8, "RGB": 24, "RGBA": 32}[mode]
    colours = {"1": (1, 0), "L": (8, 0), "LA": (8, 4), "P": (8, 3), "RGB": (8, 2), "RGBA": (8, 6)}
    depth, colour = colours[mode]
    passes = [(1, 1), (1, 1), (2, 1), (1, 2), (3, 1), (3, 3), (6, 3)] if interlaced else [(6, 6)]
    palette = chunk(b"PLTE", bytes(3)) if mode == "P" else b""
    # Black and transparent throughout, which is what missing rows would look like.
    rows = [bytes(1 + -(-width * bits // 8)) for width, count in passes for _ in range(count)]
    for kept in range(len(rows) + 1):
        content = png(depth=depth, colour=colour, extra=palette, rows=b"".join(rows[:kept]))
        if interlaced:
            start = struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour, 0, 0, 1)
            content = content[:8] + chunk(b"IHDR", start) + content[33:]
        path.write_bytes(content)
        assert refused(attempt(lambda: decode_image(path, SIDE), path)) == (kept < len(rows))


def test_bombs_are_refused_by_their_headers(place):
    side = 9000
    zeros = zlib.compress(bytes(MIB), 9)
    swollen = b"a\0\0" + zlib.compress(bytes(100 * MIB), 1)
    text, profile = chunk(b"zTXt", swollen), chunk(b"iCCP", swollen)
    bombs = {
        "pixels": png(10**5, 10**5, compressed=zeros),
        "lines": png(1, 2**31 - 1, compressed=zeros),
        "text": png(extra=text),
        "profile": png(extra=profile),
        "bmp": FILES["bmp"][:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + FILES["bmp"][26:],
    }
    for name, content in bombs.items():
        path = place / f"{name}.png"
        path.write_bytes(content)
        result = attempt(lambda path=path: decode_image(path, SIDE), path.name, memory=64 * MIB)
        assert refused(result) or name in ("profile", "text"), name
    path.write_bytes(png(side, side, compressed=zeros))
    result = attempt(lambda: decode_image(path, SIDE, max_pixels=10**6), path.name)
    assert refused(result)


def folder_of(place, files):
    folder = place / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("what", ["pipe", "device", "nowhere", "itself", "folder", "socket"])
@pytest.mark.parametrize("read", ["load_folder", "open_images"])
def test_what_is_no_regular_file_is_not_waited_for(place, what, read):
    folder = folder_of(place, {"a.png": FILES["bmp"]})
    path = folder / "b.png"
    server = socket.socket(socket.AF_UNIX)
    # Should a thread wait for the pipe after all, it is released, so that the test can fail.
    release = threading.Timer(8, lambda: os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK)))
    if what == "pipe":
        release.start()
    {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "nowhere": lambda: path.symlink_to("nowhere.png"),
        "itself": lambda: path.symlink_to("b.png"),
        "folder": path.mkdir,
        "socket": lambda: server.bind(os.path.relpath(path)),
    }[what]()
    if read == "load_folder":
        result = attempt(lambda: load_folder(folder, SIDE), "b.png", seconds=5)
    else:
        result = attempt(lambda: list(open_images(folder).batches(1)), "b.png", seconds=5)
    server.close()
    release.cancel()
    assert refused(result) == (what != "folder")


@pytest.mark.filterwarnings("ignore")
@examples(10)
@given(content=st.sampled_from(["png", "bmp", "webp"]).flatmap(lambda k: mutated(FILES[k], most=2)))
def test_sets_of_images_are_read_or_refused(place, content):
    folder = folder_of(place, {"a.png": encoded("PNG"), "b.png": content})
    result = attempt(lambda: list(open_images(folder).batches(2)), "b.png", seconds=10)
    if not refused(result):
        assert np.concatenate(result).shape == (2, SIDE, SIDE, 3)
        np.testing.assert_array_equal(result[0][0], PIXELS)


@pytest.mark.parametrize("name", ["\udcff.png", "a\nb.png", "-rf.png", "$(x).png", "ü.png"])
def test_names_are_only_names(place, name):
    folder = folder_of(place, {})
    (folder / name).write_bytes(FILES["bmp"])
    np.testing.assert_array_equal(load_folder(folder, SIDE).images[0], PIXELS)
    (folder / name).write_bytes(b"no image")
    assert refused(attempt(lambda: load_folder(folder, SIDE), str(folder)))
