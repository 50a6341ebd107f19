"""Conditions of images other than the class: a vector, tokens or an array per image.

cond          float32 [N, D], a vector per image
context       float32 [N, L, D], L tokens per image, in no order of their own
context_mask  bool [N, L], False for padding; an image may have no tokens
concat        [N, H, W, C], an array of the image's size, concatenated to x_t along the channels:
              an enlarged small image, a masked image, a class map. uint8 values are pixels, which
              are mapped to [-1, 1]; other numbers become float32 and are not scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.forward.checks import host_numbers

CONDITIONS = ("cond", "context", "context_mask", "concat")
Shape = tuple[int | str, ...]
"""The shape of the condition of one image; a letter stands for any length."""


def shapes_beside(space: tuple[int, ...]) -> dict[str, Shape]:
    """The shapes of the conditions of images of size `space`, [H, W] or of another rank."""
    return {"cond": ("D",), "context": ("L", "D"), "concat": (*space, "C")}


def fits(found: tuple[int, ...], wanted: Shape) -> bool:
    """Whether the condition of one image has the wanted shape."""
    return len(found) == len(wanted) and all(
        length > 0 and (isinstance(want, str) or want == length)
        for length, want in zip(found, wanted, strict=True)
    )


def written(wanted: Shape, first: str = "N") -> str:
    """The shape of the conditions of several images, as errors name it: [N, L, D]."""
    return f"[{', '.join(map(str, (first, *wanted)))}]"


def condition_dtype(name: str, x: np.ndarray) -> np.dtype:
    """The dtype in which the condition x of this name is stored."""
    if name == "context_mask":
        return np.dtype(np.bool_)
    return np.dtype(np.uint8 if name == "concat" and x.dtype == np.uint8 else np.float32)


def checked_conditions(
    given: Mapping[str, Any], call: str, shapes: Mapping[str, Shape], count: int | None = None
) -> dict[str, np.ndarray]:
    """Returns the conditions that are not None, in their dtypes, and a mask for every context.

    Args:
        given: finite numbers cond, context and concat; context_mask [N, L] of bools or of 0 and 1,
            or None for all tokens.
        call: the name of the caller in errors.
        shapes: the shape per image of each of the three, as `shapes_beside` returns them.
        count: N; None for any number.

    Raises TypeError for what is no array of numbers, ValueError for anything else.
    """
    unknown = sorted(given.keys() - set(CONDITIONS))
    if unknown:
        raise ValueError(f"{call} knows the conditions {', '.join(CONDITIONS)}, got {unknown}.")
    arrays = {name: x for name, x in given.items() if x is not None}
    mask = arrays.pop("context_mask", None)
    found = {name: _numbers(name, x, call, shapes[name], count) for name, x in arrays.items()}
    if "context" not in found:
        if mask is not None:
            raise ValueError(f"{call} got a context_mask without a context. Pass the tokens, too.")
        return found
    shape = found["context"].shape[:2]
    mask = np.ones(shape, np.bool_) if mask is None else np.asarray(mask)
    if mask.shape != shape or mask.dtype.kind not in "biu" or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"{call} needs a context_mask {list(shape)} of bools, True for tokens that are there, "
            f"got {mask.dtype} {list(mask.shape)}."
        )
    return {**found, "context_mask": mask.astype(np.bool_, copy=False)}


def _numbers(name: str, x: Any, call: str, shape: Shape, count: int | None) -> np.ndarray:
    """The condition x in its dtype; ValueError unless it has this shape and is finite."""
    x = host_numbers(call, name, x)
    if not fits(x.shape[1:], shape) or len(x) != (max(1, len(x)) if count is None else count):
        images = "" if count is None else f" for {count} images"
        raise ValueError(
            f"{call} needs {name} {written(shape)} of numbers{images}, got {x.dtype} {x.shape}."
        )
    x = x.astype(condition_dtype(name, x), copy=False)
    finite = np.isfinite(x)
    if not finite.all():
        row = int(np.argwhere(~finite)[0, 0])
        raise ValueError(f"{call} needs finite {name} in float32; that of image {row} is not.")
    return x
