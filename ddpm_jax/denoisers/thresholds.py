"""What is done to x̂_0 before a step uses it: nothing, a clip, or a dynamic threshold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.checks import check_number, check_same_shape, is_finite_number
from ddpm_jax.types import Array, bcast_right, describe

Threshold = Callable[[Array], Array]
Clip = bool | None | float | tuple[float, float] | Threshold
"""True: clip x̂_0 to [-1, 1]; b: to [-b, b]; (low, high); False or None: leave it; or a function."""


def _limits(call: str, clip: Any) -> tuple[float, float] | None:
    """(low, high), or None where nothing is clipped; ValueError for anything else."""
    if clip is None or isinstance(clip, (bool, np.bool_)):
        return (-1.0, 1.0) if clip else None
    if is_finite_number(clip):
        low, high = -clip, clip
    elif isinstance(clip, (tuple, list)) and len(clip) == 2 and all(map(is_finite_number, clip)):
        low, high = clip
    else:
        low, high = 0.0, 0.0
    if not low < high:
        raise ValueError(
            f"{call} takes clip=True for [-1, 1], a number b > 0 for [-b, b], a pair (low, high) "
            "with low < high, False or None for no clipping, or a function of x̂_0; got "
            f"{clip if isinstance(clip, (tuple, list)) else describe(clip)}."
        )
    return float(low), float(high)


def check_clip(call: str, clip: Clip) -> None:
    """Raises ValueError, in the name of the call, unless `clip` is one of the kinds of `Clip`."""
    if not callable(clip):
        _limits(call, clip)


def threshold_x_0(x_0_hat: Array, clip: Clip) -> Array:
    """x̂_0 [B, ...] clipped, left as it is, or passed through a function, as `clip` says.

    Raises ValueError for another `clip`, and for a function that changes the shape.
    """
    if callable(clip):
        changed = clip(x_0_hat)
        check_same_shape("clip, a function of x̂_0,", result=changed, x_0_hat=x_0_hat)
        return changed
    limits = _limits("threshold_x_0", clip)
    return x_0_hat if limits is None else jnp.clip(x_0_hat, *limits)


def dynamic_threshold(percentile: float = 99.5) -> Threshold:
    """x̂_0 → clip(x̂_0, -s, s)/s, s the larger of 1 and the percentile of |x̂_0| in each example.

    Strong guidance pushes x̂_0 out of [-1, 1]; this pulls it back without saturating whole regions
    (Saharia et al. 2022, 2205.11487, §2.3). Pass the result as `clip=`. Raises ValueError unless
    1 < percentile <= 100; the function that it returns raises it for a scalar.

    Example:
        >>> dj.dynamic_threshold(100)(jnp.array([[0.5, -2.0, 1.0]]))
        Array([[ 0.25, -1.  ,  0.5 ]], dtype=float32)
    """
    remedy = "It is per cent and no fraction: Imagen uses clip=dynamic_threshold(99.5)."
    check_number("dynamic_threshold", "percentile", percentile, remedy, within="(1, 100]")

    def threshold(x_0_hat: Array) -> Array:
        shape = check_same_shape("dynamic_threshold", x_0_hat=x_0_hat)
        if not shape:
            raise ValueError("dynamic_threshold needs x̂_0 [B, ...], got a scalar.")
        size = jnp.abs(x_0_hat).reshape(shape[0], math.prod(shape[1:]))
        limit = bcast_right(jnp.maximum(jnp.percentile(size, percentile, axis=1), 1.0), len(shape))
        return jnp.clip(x_0_hat, -limit, limit) / limit

    return threshold
