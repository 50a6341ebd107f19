"""The inputs of a run's network: augmented images, conditions, and arrays concatenated to x_t."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.data.augment import AUGMENT_FEATURES, augment_geometry
from ddpm_jax.data.pipeline import augment_images
from ddpm_jax.forward.pixels import from_pixels
from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.types import Array, Key, bcast_right


def network_cond_features(config: TrainConfig, cond_features: int | None) -> int | None:
    """The width of the network's `cond`: the data's vectors, then the augmentation's."""
    if config.data.augment != "edm":
        return cond_features
    return (cond_features or 0) + AUGMENT_FEATURES


def input_shape(image_shape: tuple[int, ...], concat_features: int | None) -> tuple[int, ...]:
    """The shape of one input of the network: the image and the array concatenated to it."""
    return (*image_shape[:-1], image_shape[-1] + (concat_features or 0))


def concatenated(x: Array, concat: Any | None, concat_features: int | None) -> Array:
    """The network's input for x [B, H, W, C]: x and concat, or zeros, along the channels.

    Raises ValueError for a concat that the network does not take, or one of another shape.
    """
    shape = None if concat_features is None else (*x.shape[:-1], concat_features)
    found = None if concat is None else jnp.shape(concat)
    if found is not None and found != shape:
        wanted = "takes no concat" if shape is None else f"needs concat {shape}"
        raise ValueError(
            f"this run's network {wanted}, got one of shape {found} for x_t {x.shape}."
        )
    if shape is None:
        return x
    beside = jnp.zeros(shape) if concat is None else from_pixels_or_numbers(concat)
    return jnp.concatenate([x, beside.astype(x.dtype)], axis=-1)


def from_pixels_or_numbers(concat: Any) -> Array:
    """The array to concatenate to x_t: uint8 as pixels in [-1, 1], other numbers unchanged."""
    concat = jnp.asarray(concat)
    return from_pixels(concat) if concat.dtype == jnp.uint8 else concat


def drop_conditions(
    given: dict[str, Any], keys: Key, share: float, num_classes: int | None
) -> dict[str, Any]:
    """The conditions of a batch, dropped for a random share of the examples; see `UNet`."""
    if not given:
        return {}
    none = {"label": num_classes, "cond": 0.0, "context_mask": False, "concat": 0.0}
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, share))(keys)
    for name in none:
        if name in given:
            here = bcast_right(dropped, given[name].ndim)
            given[name] = jnp.where(here, none[name], given[name])
    return given


def augmented(
    kind: str, images: Array, conditions: dict[str, Any], keys: Key
) -> tuple[Array, dict[str, Any]]:
    """x_0 from uint8 images by --data.augment, and the conditions; concat is moved like x_0.

    With "edm", numbers that describe the augmentation are appended to the vector `cond`.
    """
    moves = {name: name in kind for name in ("flip", "pad_crop")}
    x, given, channels = from_pixels(images), dict(conditions), images.shape[-1]
    if "concat" in given:
        x = jnp.concatenate([x, given["concat"]], axis=-1)
    x = augment_images(x, keys, **moves)
    if kind == "edm":
        x, how = augment_geometry(x, keys)
        vectors = (given["cond"], how) if "cond" in given else (how,)
        given["cond"] = jnp.concatenate(vectors, axis=1)
    if "concat" in given:
        x, given["concat"] = x[..., :channels], x[..., channels:]
    return x, given
