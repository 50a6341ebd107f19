"""Data sets of encoded images: pixels, labels and errors, of files that a list holds."""

import io

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.encoded import BLOCK, Encoded, decode_dataset
from ddpm_jax.data.images import MAX_NAMED

NAMES = ("cat", "dog")


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pixels_of(count):
    return np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), np.uint8)


def source(contents, labels=None, names=NAMES):
    labels = [i % 2 for i in range(len(contents))] if labels is None else labels
    pairs = list(zip(contents, labels, strict=True))
    return Encoded("a test", len(pairs), lambda rows: [pairs[i] for i in rows], names)


def decoded(made, root, stream="never", resolution=None):
    return decode_dataset(
        made, "test:set", root, resolution=resolution, channels="auto", stream=stream
    )


@pytest.mark.parametrize("stream", ["never", "always"])
def test_images_and_labels_keep_their_order(tmp_path, stream):
    """More than one block, decoded by several threads."""
    pixels = pixels_of(BLOCK + 7)
    made = decoded(source(list(map(png, pixels))), tmp_path, stream)
    np.testing.assert_array_equal(made.images[np.arange(len(pixels))], pixels)
    np.testing.assert_array_equal(made.labels, np.arange(len(pixels)) % 2)
    assert (made.num_classes, made.class_names) == (2, NAMES)


@pytest.mark.parametrize("stream", ["never", "always"])
@pytest.mark.parametrize(
    "wrong,said",
    [
        ({"content": b"no image"}, "none of PNG, JPEG"),
        ({"content": b"cut"}, "cut|truncated|damaged"),
        ({"size": 5}, "has 5×5 pixels, and the first 6×6"),
        ({"label": 2}, "label 2, not one of 0 to 1"),
        ({"label": None}, "label None, not one of 0 to 1"),
        ({"label": -1}, "label -1, not one of 0 to 1"),
    ],
)
def test_every_image_that_cannot_be_used_is_named_at_once(tmp_path, wrong, said, stream):
    contents = list(map(png, pixels_of(12)))
    labels = [i % 2 for i in range(12)]
    for i in (3, 7, 11):
        if "label" in wrong:
            labels[i] = wrong["label"]
        elif "size" in wrong:
            contents[i] = png(pixels_of(1)[0, :5, :5])
        else:
            cut = wrong["content"] == b"cut"
            contents[i] = contents[i][:-30] if cut else wrong["content"]
    with pytest.raises(ValueError, match="3 of 12 images in test:set cannot be used") as caught:
        decoded(source(contents, labels), tmp_path, stream)
    text = str(caught.value)
    assert all(f"image {i} of test:set" in text for i in (3, 7, 11))
    assert len([line for line in text.splitlines()[1:] if line.strip()]) == 3
    with pytest.raises(ValueError, match=said):
        decoded(source(contents, labels), tmp_path, stream)


def test_a_single_one_is_named_without_a_list(tmp_path):
    contents = list(map(png, pixels_of(4)))
    contents[2] = b"no image"
    with pytest.raises(ValueError, match="^image 2 of test:set"):
        decoded(source(contents), tmp_path)


def test_a_data_set_of_which_most_cannot_be_used_is_not_decoded_to_its_end(tmp_path):
    contents = [*map(png, pixels_of(2)), *[b"no image"] * (MAX_NAMED + 5)]
    seen = []
    made = source(contents + contents * 30)

    def fetch(rows):
        seen.append(rows)
        return made.fetch(rows)

    with pytest.raises(ValueError, match=f"in the first {BLOCK} of test:set .* these {MAX_NAMED}"):
        decoded(made._replace(fetch=fetch), tmp_path, resolution=6)
    # The first pass looks for colour, and the first image has it.
    assert max(rows[-1] for rows in seen) == BLOCK - 1
    assert not any(tmp_path.rglob("*.npy"))
