"""Both resizes against float64 loops, and against PyTorch where it is installed."""

import jax
import numpy as np
import pytest

from ddpm_jax.evaluation import PYTORCH, TF1, resize_pytorch, resize_tf1

SIZES = [(32, 32, 299, 299), (5, 9, 8, 4), (1, 1, 3, 3), (40, 31, 17, 31), (8, 8, 8, 8)]


def by_definition(image, height, width, position):
    """Bilinear interpolation in float64 as four weights a pixel, held at the border."""
    h, w, _ = image.shape
    y, x = position(np.arange(height), h / height), position(np.arange(width), w / width)
    out = np.zeros((height, width, image.shape[2]))
    for dy in (0, 1):
        for dx in (0, 1):
            i, j = np.floor(y).astype(int) + dy, np.floor(x).astype(int) + dx
            weight = np.outer(1 - np.abs(y - i), 1 - np.abs(x - j))[:, :, None]
            out += weight * image[np.minimum(i, h - 1)][:, np.minimum(j, w - 1)]
    return out


POSITIONS = {
    resize_tf1: lambda i, scale: i * scale,
    resize_pytorch: lambda i, scale: np.maximum((i + 0.5) * scale - 0.5, 0.0),
}


@pytest.mark.parametrize("resize", [resize_tf1, resize_pytorch])
@pytest.mark.parametrize("h, w, height, width", SIZES)
def test_equal_the_definition(resize, h, w, height, width):
    images = np.random.default_rng(h).integers(0, 256, (2, h, w, 3), np.uint8)
    found = resize(images, height, width)
    assert found.dtype == np.float32 and found.shape == (2, height, width, 3)
    for image, resized in zip(images.astype(np.float64), np.asarray(found), strict=True):
        expected = by_definition(image, height, width, POSITIONS[resize])
        np.testing.assert_allclose(resized, expected, atol=2e-3)  # of 255, as positions are float32


def test_what_tensorflow_1_does_to_a_ramp():
    """Doubling 0, 10, 20, 30: TensorFlow 1 begins on the first pixel and repeats the last."""
    ramp = (np.arange(4, dtype=np.uint8) * 10).reshape(1, 1, 4, 1)
    found = np.asarray(resize_tf1(ramp, 1, 8)).ravel()
    np.testing.assert_allclose(found, [0, 5, 10, 15, 20, 25, 30, 30])
    found = np.asarray(resize_pytorch(ramp, 1, 8)).ravel()
    np.testing.assert_allclose(found, [0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30])


@pytest.mark.parametrize("h, w, height, width", SIZES)
def test_against_pytorch(h, w, height, width):
    torch = pytest.importorskip("torch", reason="PyTorch is what one of them must equal")
    images = np.random.default_rng(w).integers(0, 256, (2, h, w, 3), np.uint8)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2).float(),
        size=(height, width),
        mode="bilinear",
        align_corners=False,
    ).permute(0, 2, 3, 1)
    found = resize_pytorch(images, height, width)
    np.testing.assert_allclose(found, theirs.numpy(), atol=1e-3)


@pytest.mark.parametrize("preprocess, low, high", [(TF1, -1, 127 / 128), (PYTORCH, -1, 1)])
def test_range_and_grey(preprocess, low, high):
    """Black and white go where the networks had them, and grey to three equal channels."""
    grey = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    x = np.asarray(jax.jit(preprocess)(grey))
    assert x.shape == (2, 299, 299, 3)
    np.testing.assert_array_equal(x[0], np.float32(low))
    np.testing.assert_array_equal(x[1], np.float32(high))
