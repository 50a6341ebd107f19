"""The Inception-v3 of the FID literature, with the names of its public PyTorch port.

It is the network of TensorFlow's file inception-2015-12-05 (Szegedy et al. 2015), and differs from
that of torchvision:

- 3×3 averages do not count the padding (Mixed_5, Mixed_6b to 6e, Mixed_7b);
- the last block, Mixed_7c, takes the maximum where its twin Mixed_7b takes the average;
- there are 1008 outputs, of which 1000 are classes, and no auxiliary classifier.

BatchNorm is used as in inference: one constant affine map per channel, ε = 0.001. Its constants are
therefore parameters here, and nothing is updated.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.types import Array

IMAGE_SIZE = 299
NUM_OUTPUTS = 1008
BATCH_NORM_EPSILON = 1e-3
_SPATIAL_CHANNELS = 7


class InceptionOutput(NamedTuple):
    """The outputs of the network that the metrics use, float32.

    pool             [B, 2048]  after the last average over space: FID, KID, precision and recall
    spatial          [B, 2023]  sFID (Nash et al. 2021): the first 7 channels of the 17×17 map that
                                the TensorFlow graph calls mixed_6/conv, which is the 1×1 branch of
                                Mixed_6d after its ReLU, flattened as rows, columns, channels
    logits_unbiased  [B, 1008]  pool times the last weight, without its bias: what the reference
                                code of the Inception Score puts through a softmax
    logits           [B, 1008]  with the bias
    """

    pool: Array
    spatial: Array
    logits_unbiased: Array
    logits: Array


class ConvNormRelu(nn.Module):
    """max(0, (w ∗ x - mean) scale/√(variance + ε) + bias), in float32 on every device."""

    features: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, H, W, C] to [B, H', W', features]."""
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        scale = self.param("scale", nn.initializers.ones, (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        mean = self.param("mean", nn.initializers.zeros, (self.features,))
        variance = self.param("variance", nn.initializers.ones, (self.features,))
        # Highest precision: by default GPUs and TPUs round the factors to 10 or 7 bits, so FIDs
        # would depend on the device.
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            self.strides,
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        factor = scale * jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
        return nn.relu((y - _row(mean)) * _row(factor) + _row(bias))


def _row(channels: Array) -> Array:
    return channels[None, None, None, :]


def _average(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _halve(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2))


Layer = tuple[str, int, tuple[int, int]]
"""The name of a convolution in the port, its number of features, and its kernel's size."""


def _chain(x: Array, *layers: Layer, last: str = "SAME") -> Array:
    """Applies convolutions of the calling module; the last one halves the size if it is "VALID"."""
    for i, (name, features, kernel) in enumerate(layers):
        halves = last == "VALID" and i == len(layers) - 1
        strides, padding = ((2, 2), "VALID") if halves else ((1, 1), "SAME")
        x = ConvNormRelu(features, kernel, strides, padding, name=name)(x)
    return x


class BlockA(nn.Module):
    """Mixed_5b, 5c, 5d, on 35×35: 64 + 64 + 96 + pool_features channels."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, H, W, C] to [B, H, W, 224 + pool_features]."""
        one = _chain(x, ("branch1x1", 64, (1, 1)))
        five = _chain(x, ("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5)))
        three = _chain(
            x,
            ("branch3x3dbl_1", 64, (1, 1)),
            ("branch3x3dbl_2", 96, (3, 3)),
            ("branch3x3dbl_3", 96, (3, 3)),
        )
        pool = _chain(_average(x), ("branch_pool", self.pool_features, (1, 1)))
        return jnp.concatenate([one, five, three, pool], axis=-1)


class BlockB(nn.Module):
    """Mixed_6a, from 35×35 to 17×17: 384 + 96 channels plus those of its input."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, H, W, C] to [B, H', W', 480 + C], H' = (H - 1) // 2."""
        three = _chain(x, ("branch3x3", 384, (3, 3)), last="VALID")
        double = _chain(
            x,
            ("branch3x3dbl_1", 64, (1, 1)),
            ("branch3x3dbl_2", 96, (3, 3)),
            ("branch3x3dbl_3", 96, (3, 3)),
            last="VALID",
        )
        return jnp.concatenate([three, double, _halve(x)], axis=-1)


class BlockC(nn.Module):
    """Mixed_6b to 6e, on 17×17: four branches of 192 channels, with 7×1 and 1×7 kernels."""

    channels: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Maps x [B, H, W, C] to [B, H, W, 768], and also returns its 1×1 branch [B, H, W, 192]."""
        n = self.channels
        one = _chain(x, ("branch1x1", 192, (1, 1)))
        seven = _chain(
            x,
            ("branch7x7_1", n, (1, 1)),
            ("branch7x7_2", n, (1, 7)),
            ("branch7x7_3", 192, (7, 1)),
        )
        double = _chain(
            x,
            ("branch7x7dbl_1", n, (1, 1)),
            ("branch7x7dbl_2", n, (7, 1)),
            ("branch7x7dbl_3", n, (1, 7)),
            ("branch7x7dbl_4", n, (7, 1)),
            ("branch7x7dbl_5", 192, (1, 7)),
        )
        pool = _chain(_average(x), ("branch_pool", 192, (1, 1)))
        return jnp.concatenate([one, seven, double, pool], axis=-1), one


class BlockD(nn.Module):
    """Mixed_7a, from 17×17 to 8×8: 320 + 192 channels plus those of its input."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, H, W, C] to [B, H', W', 512 + C], H' = (H - 1) // 2."""
        three = _chain(x, ("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3)), last="VALID")
        seven = _chain(
            x,
            ("branch7x7x3_1", 192, (1, 1)),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, (3, 3)),
            last="VALID",
        )
        return jnp.concatenate([three, seven, _halve(x)], axis=-1)


class BlockE(nn.Module):
    """Mixed_7b (average) and Mixed_7c (maximum), on 8×8: 320 + 768 + 768 + 192 channels."""

    maximum: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps x [B, H, W, C] to [B, H, W, 2048]."""
        one = _chain(x, ("branch1x1", 320, (1, 1)))
        three = _chain(x, ("branch3x3_1", 384, (1, 1)))
        double = _chain(x, ("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3)))
        if self.maximum:
            pool = nn.max_pool(x, (3, 3), padding="SAME")
        else:
            pool = _average(x)
        return jnp.concatenate(
            [
                one,
                _chain(three, ("branch3x3_2a", 384, (1, 3))),
                _chain(three, ("branch3x3_2b", 384, (3, 1))),
                _chain(double, ("branch3x3dbl_3a", 384, (1, 3))),
                _chain(double, ("branch3x3dbl_3b", 384, (3, 1))),
                _chain(pool, ("branch_pool", 192, (1, 1))),
            ],
            axis=-1,
        )


class InceptionV3(nn.Module):
    """The whole network; `InceptionV3().apply(variables, x)` may be jitted.

    Its modules have the port's names, so a weight's path is its name in the port
    (`inception_weights`).
    """

    @nn.compact
    def __call__(self, x: Array) -> InceptionOutput:
        """Maps images x [B, 299, 299, 3], float32 in about [-1, 1], to an InceptionOutput.

        `preprocessing.TF1` maps pixels to x. Other sizes from 75 up also work, with another number
        of spatial features.

        Raises ValueError for other shapes.
        """
        if x.ndim != 4 or x.shape[-1] != 3 or min(x.shape[1:3]) < 75:
            raise ValueError(
                "InceptionV3 needs images [B, 299, 299, 3] (at least 75 per side, RGB), got shape "
                f"{x.shape}. FeatureExtractor resizes them, and repeats grey three times."
            )
        x = x.astype(jnp.float32)
        x = ConvNormRelu(32, (3, 3), (2, 2), "VALID", name="Conv2d_1a_3x3")(x)
        x = ConvNormRelu(32, (3, 3), (1, 1), "VALID", name="Conv2d_2a_3x3")(x)
        x = ConvNormRelu(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = _halve(x)
        x = ConvNormRelu(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = ConvNormRelu(192, (3, 3), (1, 1), "VALID", name="Conv2d_4a_3x3")(x)
        x = _halve(x)
        x = BlockA(32, name="Mixed_5b")(x)
        x = BlockA(64, name="Mixed_5c")(x)
        x = BlockA(64, name="Mixed_5d")(x)
        x = BlockB(name="Mixed_6a")(x)
        x, _ = BlockC(128, name="Mixed_6b")(x)
        x, _ = BlockC(160, name="Mixed_6c")(x)
        x, mixed_6_conv = BlockC(160, name="Mixed_6d")(x)
        x, _ = BlockC(192, name="Mixed_6e")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(maximum=False, name="Mixed_7b")(x)
        x = BlockE(maximum=True, name="Mixed_7c")(x)
        pool = x.mean(axis=(1, 2))
        spatial = mixed_6_conv[..., :_SPATIAL_CHANNELS].reshape(x.shape[0], -1)
        unbiased, biased = Classifier(name="fc")(pool)
        return InceptionOutput(pool, spatial, unbiased, biased)


class Classifier(nn.Module):
    """The last layer, with and without its bias."""

    @nn.compact
    def __call__(self, pool: Array) -> tuple[Array, Array]:
        """Maps pool [B, 2048] to two [B, 1008]: w pool, and w pool + b."""
        shape = (pool.shape[-1], NUM_OUTPUTS)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (NUM_OUTPUTS,))
        unbiased = jnp.matmul(pool, kernel, precision=jax.lax.Precision.HIGHEST)
        return unbiased, unbiased + bias[None, :]
