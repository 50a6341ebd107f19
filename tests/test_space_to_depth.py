"""Patches as channels: a permutation, its inverse, and where each number goes."""

import jax
import numpy as np
import pytest

from ddpm_jax.nn.space_to_depth import depth_to_space, space_to_depth
from tests.reference_unet import channels_to_patches, patches_to_channels


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    "patch_size,shape", [(1, (2, 3, 5, 2)), (2, (2, 4, 6, 3)), (3, (1, 9, 3, 1))]
)
def test_each_undoes_the_other(patch_size, shape):
    """Both move numbers and compute none, so the round trips are exact."""
    x = numbers(*shape)
    batch, height, width, channels = shape
    h = space_to_depth(x, patch_size)
    assert h.shape == (
        batch,
        height // patch_size,
        width // patch_size,
        patch_size**2 * channels,
    )
    np.testing.assert_array_equal(np.sort(np.ravel(h)), np.ravel(x))
    np.testing.assert_array_equal(depth_to_space(h, patch_size), x)
    deep = numbers(2, 2, 3, 2 * patch_size**2)
    np.testing.assert_array_equal(
        space_to_depth(depth_to_space(deep, patch_size), patch_size), deep
    )


def test_patches_of_one_pixel_are_the_image_itself():
    x = numbers(1, 2, 2, 3)
    assert space_to_depth(x, 1) is x and depth_to_space(x, 1) is x


def test_where_each_number_goes():
    """[b, i, j, (u p + v) C + c] is x[b, i p + u, j p + v, c], read with strides."""
    x = numbers(2, 4, 6, 3)
    np.testing.assert_array_equal(space_to_depth(x, 2), patches_to_channels(x, 2))
    deep = numbers(2, 2, 3, 12)
    np.testing.assert_array_equal(depth_to_space(deep, 2), channels_to_patches(deep, 2))


def test_a_position_is_one_patch():
    """The gradient of one position with respect to the image is on its own patch alone."""
    gradient = jax.grad(lambda x: space_to_depth(x, 2)[0, 1, 2].sum())(numbers(1, 4, 6, 3))
    expected = np.zeros((1, 4, 6, 3))
    expected[0, 2:4, 4:6] = 1
    np.testing.assert_array_equal(gradient, expected)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiples of patch_size=2, got 4×5"):
        space_to_depth(numbers(1, 4, 5, 3), 2)
    with pytest.raises(ValueError, match="patch_size² = 4 channels, got 6"):
        depth_to_space(numbers(1, 2, 2, 6), 2)
