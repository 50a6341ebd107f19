"""Geometric augmentation that does not leak into samples (Karras et al. 2022, EDM, App. F.2).

Each training image is mirrored, scaled, rotated, stretched and shifted at random, and a vector of 9
numbers tells the network how. A vector of zeros means an unchanged image, so that samples
conditioned on zeros look like the data, and not like augmented data.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from ddpm_jax.keys import normal_per_example, split_each
from ddpm_jax.types import Array, Key

AUGMENT_FEATURES = 9
PROBABILITY = 0.12
"""Of each transformation but the mirror image, which has ½ (EDM, Table 6: 0.12 for CIFAR-10)."""
SCALE, STRETCH, SHIFT = 2**0.2, 2**0.2, 1 / 8
"""Factors per standard deviation, and the shift's standard deviation as a share of the image."""


def augment_geometry(images: Array, keys: Key) -> tuple[Array, Array]:
    """Images [B, H, W, C], each transformed by its own key of keys [B], and the vectors [B, 9].

    The vector: mirrored left to right (0, 1), top to bottom (0, 1); log-scale a; cos θ - 1, sin θ
    of the rotation; b cos φ, b sin φ of the stretch by 2^(b/5) along φ/2; shifts right and down.
    a, b and the shifts have variance 1, θ and φ are uniform. Resampling is bilinear, with
    reflection at the borders; an unchanged or mirrored image keeps its exact values.
    """
    key_which, key_size, key_angle = split_each(keys, 3)
    which = jax.vmap(lambda key: jax.random.uniform(key, (6,), jnp.float32))(key_which)
    which = which < jnp.array([[0.5, *[PROBABILITY] * 5]])  # mirror, flip, scale, …, shift
    size = normal_per_example(key_size, (4,))
    angle = jax.vmap(lambda key: jax.random.uniform(key, (2,), jnp.float32, -jnp.pi, jnp.pi))(
        key_angle
    )
    mirror, flip = which[:, 0].astype(jnp.float32), which[:, 1].astype(jnp.float32)
    scale = jnp.where(which[:, 2], size[:, 0], 0.0)
    rotation = jnp.where(which[:, 3], angle[:, 0], 0.0)
    stretch = jnp.where(which[:, 4], size[:, 1], 0.0)
    shift = jnp.where(which[:, 5:], size[:, 2:], 0.0)
    vector = jnp.stack(
        [
            *(mirror, flip, scale, jnp.cos(rotation) - 1.0, jnp.sin(rotation)),
            *(stretch * jnp.cos(angle[:, 1]), stretch * jnp.sin(angle[:, 1])),
            *(shift[:, 0], shift[:, 1]),
        ],
        axis=1,
    )
    return jax.vmap(transform_image)(images, vector), vector


def transform_image(image: Array, vector: Array) -> Array:
    """The image [H, W, C] transformed as the vector [9] of `augment_geometry` says."""
    height, width, _ = image.shape
    mirror, flip, scale, cos_1, sin, stretch_x, stretch_y, right, down = vector
    turn_back = jnp.array([[1.0 + cos_1, sin], [-sin, 1.0 + cos_1]])
    # The stretch is exp(r K), where K = [[cos φ, sin φ], [sin φ, -cos φ]] has K² = 1.
    length = jnp.hypot(stretch_x, stretch_y)
    rate, norm = jnp.log(STRETCH) * length, jnp.where(length > 0, length, 1.0)
    along = jnp.array([[stretch_x, stretch_y], [stretch_y, -stretch_x]]) / norm
    shrink_back = jnp.cosh(rate) * jnp.eye(2) - jnp.sinh(rate) * along
    mirrors = jnp.array([[1.0 - 2.0 * mirror], [1.0 - 2.0 * flip]])
    inverse = mirrors * SCALE**-scale * jnp.matmul(turn_back, shrink_back, precision="highest")
    # Where each pixel (x, y) of the result comes from, about the centre of the image.
    x, y = jnp.meshgrid(jnp.arange(width), jnp.arange(height))
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    x, y = x - centre_x - SHIFT * width * right, y - centre_y - SHIFT * height * down
    source_x = inverse[0, 0] * x + inverse[0, 1] * y + centre_x
    source_y = inverse[1, 0] * x + inverse[1, 1] * y + centre_y
    resample = functools.partial(jax.scipy.ndimage.map_coordinates, order=1, mode="mirror")
    return jax.vmap(lambda channel: resample(channel, [source_y, source_x]), in_axes=2, out_axes=2)(
        image
    )
