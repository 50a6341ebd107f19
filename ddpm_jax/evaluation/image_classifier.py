"""A small convolutional classifier, whose features and decisions measure samples.

It works on patches of the image, at three resolutions: a convolution, then one residual block per
resolution (He et al. 2016, 1603.05027, with one convolution per block), the mean over space, and a
linear layer. Group normalisation (Wu, He 2018) makes each image's output independent of its batch.

The Fréchet distance in its features is no FID: that one is defined by Inception-v3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from ddpm_jax.evaluation.features import FeatureExtractor
from ddpm_jax.evaluation.preprocessing import Preprocessing
from ddpm_jax.forward.checks import check_kind, check_whole
from ddpm_jax.nn.blocks import GroupNorm, conv, dense
from ddpm_jax.nn.space_to_depth import space_to_depth
from ddpm_jax.types import Array, Device, PyTree, describe

NATIVE = Preprocessing("native", lambda x, height, width: x.astype(jnp.float32), 127.5, 127.5, 0)
"""0..255 to -1..1 at the size of the images."""
LEVELS = 3
GROUPS = 8


class ClassifierOutput(NamedTuple):
    """Features [B, D], the mean over space before the last layer, and logits [B, K]."""

    features: Array
    logits: Array


class ImageClassifier(nn.Module):
    """The network; `apply(variables, x)` maps x [B, H, W, 3] in [-1, 1] to `ClassifierOutput`.

    channels    those of the first level, a multiple of 8; each level has twice those before
    patch_size  side of the patches, which must divide H and W
    """

    num_classes: int
    channels: int = 48
    patch_size: int = 2

    def __post_init__(self) -> None:
        call = "ImageClassifier"
        self.num_classes = check_whole(call, "num_classes", self.num_classes)
        self.patch_size = check_whole(call, "patch_size", self.patch_size)
        self.channels = check_whole(call, "channels", self.channels)
        if self.channels % GROUPS:
            raise ValueError(f"{call} needs channels, a multiple of {GROUPS}, got {self.channels}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> ClassifierOutput:
        """Maps images [B, H, W, 3] to features and logits; ValueError for other shapes."""
        if jnp.ndim(x) != 4 or x.shape[-1] != 3:
            raise ValueError(f"ImageClassifier needs images [B, H, W, 3], got {describe(x)}.")
        x = conv(self.channels, jnp.float32, name="stem")(space_to_depth(x, self.patch_size))
        for i in range(LEVELS):
            if i:
                h = nn.relu(GroupNorm(GROUPS, name=f"down_norm{i}")(x))
                x = conv(self.channels * 2**i, jnp.float32, strides=2, name=f"down{i}")(h)
            h = nn.relu(GroupNorm(GROUPS, name=f"norm{i}")(x))
            x = x + conv(x.shape[-1], jnp.float32, name=f"block{i}")(h)
        features = nn.relu(GroupNorm(GROUPS, name="last_norm")(x)).mean((1, 2))
        return ClassifierOutput(
            features, dense(self.num_classes, jnp.float32, name="out")(features)
        )


def classifier_extractor(
    network: ImageClassifier,
    variables: PyTree,
    *,
    batch_size: int = 64,
    devices: Sequence[Device] | None = None,
) -> FeatureExtractor:
    """The extractor of a trained classifier's "features" and "logits", from uint8 images.

    Raises TypeError for another network; then as `FeatureExtractor` does.
    """
    call = "classifier_extractor"
    check_kind(call, "network", network, ImageClassifier, "ImageClassifier(num_classes)")

    def apply(variables: PyTree, x: Array) -> dict[str, Array]:
        return network.apply(variables, x)._asdict()  # type: ignore[union-attr]

    return FeatureExtractor(
        apply,
        variables,
        network=f"classifier of {network.num_classes} classes",
        preprocess=NATIVE,
        batch_size=batch_size,
        devices=devices,
    )
