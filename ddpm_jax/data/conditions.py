"""What images are conditioned on besides a class: a vector each, or tokens each.

cond          float32 [N, D], a vector per image
context       float32 [N, L, D], L tokens per image, in no order of their own
context_mask  bool [N, L], False for tokens that are not there; an image may have none
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax.forward.checks import host_numbers

CONDITIONS = {"cond": np.float32, "context": np.float32, "context_mask": np.bool_}
"""The conditions by name, with their dtypes."""
AXES = {"cond": ("N", "D"), "context": ("N", "L", "D")}


def checked_conditions(
    given: Mapping[str, Any], call: str, count: int | None = None
) -> dict[str, np.ndarray]:
    """Returns the conditions that are not None, in their dtypes, and a mask for every context.

    Args:
        given: finite numbers cond [N, D] and context [N, L, D]; context_mask [N, L] of bools or of
            0 and 1, or None for all tokens.
        call: the name of the caller in errors.
        count: N; None for any number.

    Raises TypeError for what is no array of numbers, ValueError for anything else.
    """
    unknown = sorted(given.keys() - CONDITIONS.keys())
    if unknown:
        raise ValueError(f"{call} knows the conditions {', '.join(CONDITIONS)}, got {unknown}.")
    arrays = {name: x for name, x in given.items() if x is not None}
    for name in arrays:
        numbers = name in AXES
        arrays[name] = (
            host_numbers(call, name, arrays[name]) if numbers else np.asarray(arrays[name])
        )
    found = {name: _numbers(name, arrays[name], call, count) for name in AXES if name in arrays}
    mask = arrays.get("context_mask")
    if "context" not in found:
        if mask is not None:
            raise ValueError(f"{call} got a context_mask without a context. Pass the tokens, too.")
        return found
    shape = found["context"].shape[:2]
    if mask is None:
        mask = np.ones(shape, np.bool_)
    if mask.shape != shape or mask.dtype.kind not in "biu" or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"{call} needs a context_mask {list(shape)} of bools, True for tokens that are there, "
            f"got {mask.dtype} {list(mask.shape)}."
        )
    return {**found, "context_mask": mask.astype(np.bool_, copy=False)}


def _numbers(name: str, x: np.ndarray, call: str, count: int | None) -> np.ndarray:
    """The condition x as float32; ValueError unless it has its axes and is finite."""
    axes = AXES[name]
    wrong = x.ndim != len(axes) or 0 in x.shape[1:]
    if wrong or len(x) != (max(1, len(x)) if count is None else count):
        images = "" if count is None else f" for {count} images"
        raise ValueError(
            f"{call} needs {name} [{', '.join(axes)}] of numbers{images}, got {x.dtype} {x.shape}."
        )
    x = x.astype(np.float32, copy=False)
    finite = np.isfinite(x)
    if not finite.all():
        row = int(np.argwhere(~finite)[0, 0])
        raise ValueError(f"{call} needs finite {name} in float32; that of image {row} is not.")
    return x
