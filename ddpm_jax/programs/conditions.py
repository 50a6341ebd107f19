"""Conditions of images other than the class: read from files, checked, and assigned in turn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data import ImageDataset
from ddpm_jax.data.cache import MEMORY_BYTES
from ddpm_jax.data.conditions import CONDITIONS, Shape, checked_conditions, fits, written
from ddpm_jax.files import map_npy, read_arrays, user_path
from ddpm_jax.forward.checks import check_kind


def read_conditions(
    files: Mapping[str, Path | None], shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    """Reads the conditions that the network takes; see `conditions_for`.

    Args:
        files: for each condition, "cond", "context" or "concat", an .npy of it, an .npz that holds
            it by its name (and maybe `context_mask`), or None.
        shapes: the shape per image of the conditions that the network takes.

    Raises ValueError that names the option, for a file that cannot be used or does not fit.
    """
    found: dict[str, Any] = {}
    for name, path in files.items():
        if path is None:
            continue
        call = f"--{name} {path}"
        try:
            if path.suffix.lower() == ".npz":
                arrays = read_arrays(user_path(path), MEMORY_BYTES, (name, f"{name}_mask"))
                if name not in arrays:
                    raise ValueError(f"it has no array `{name}`")
            else:
                arrays = {name: map_npy(user_path(path))}
        except ValueError as error:
            raise ValueError(f"{call} cannot be used: {error}.") from error
        found.update(conditions_for(shapes, arrays, call))
    return found


def conditions_for(
    shapes: Mapping[str, Shape], given: Mapping[str, Any], call: str
) -> dict[str, np.ndarray]:
    """The conditions as the network takes them: cond [M, D], context [M, L, D], …

    Raises ValueError for conditions that it does not take, of another shape, or not finite.
    """
    check_kind(call, "conditions", given, Mapping, "arrays by name")
    for name in given.keys() & set(CONDITIONS) - {"context_mask"}:
        if name not in shapes and given[name] is not None:
            raise ValueError(f"{call}: this run's network takes no {name}. Leave it out.")
    return checked_conditions(given, call, shapes)


def check_data(shapes: Mapping[str, Shape], data: ImageDataset) -> None:
    """Raises ValueError unless the data have conditions of these shapes."""
    for name, shape in shapes.items():
        found = data.conditions.get(name)
        if found is None or not fits(found.shape[1:], shape):
            have = "none" if found is None else str(list(found.shape))
            raise ValueError(
                f"{data.name} needs {name} {written(shape)}, on which this run's network is "
                f"conditioned, and has {have}."
            )


def in_turn(conditions: Mapping[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    """The conditions of images number [n], which use the rows in turn."""
    return {name: x[images % len(x)] for name, x in conditions.items()}
