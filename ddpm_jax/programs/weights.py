"""A trained model as a folder of two files, and those that come with the package.

config.json        as in a run directory, with `weights`: the step, and the sha256 of the file
weights.safetensors    the averaged parameters, float32 or float16, named by their place in the tree

Every program that takes a run directory takes such a folder, too.
"""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import traverse_util

import ddpm_jax
from ddpm_jax.files import write_json
from ddpm_jax.interop.tensors import read_safetensors, write_safetensors
from ddpm_jax.types import PyTree

PRETRAINED = Path(ddpm_jax.__file__).parent / "pretrained"
WEIGHTS = "weights.safetensors"
WeightsDtype = Literal["float32", "float16"]


def pretrained_names() -> list[str]:
    """The names of the trained models that come with the package."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{WEIGHTS}"))


def pretrained_folder(name: str) -> Path:
    """The folder of a trained model that comes with the package; ValueError for another name."""
    names = pretrained_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"--pretrained knows {', '.join(names)}, got {name!r}.{meant} A run of your own is "
            "named by --run-dir."
        )
    return PRETRAINED / name


def has_weights(folder: Path) -> bool:
    """Whether the folder holds weights, and is no run directory with checkpoints."""
    return (folder / WEIGHTS).is_file() and not (folder / "checkpoints").exists()


def save_weights(
    folder: Path, params: PyTree, config: dict[str, Any], dtype: WeightsDtype = "float32"
) -> list[Path]:
    """Writes parameters and the contents of config.json into a folder; returns the two files."""
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(jax.device_get(params), sep="/"))
    path = folder / WEIGHTS
    write_safetensors(path, flat, dtype=np.dtype(dtype))
    about = {**config["weights"], "dtype": dtype, "sha256": _sha256(path)}
    write_json(folder / "config.json", {**config, "weights": about})
    return [folder / "config.json", path]


def read_weights(folder: Path, about: dict[str, Any], like: PyTree) -> tuple[PyTree, int, str]:
    """The parameters of a folder, its training step, and the sha256 of its file.

    `about` is what config.json says of the weights, `like` has the shapes and the placement that
    the model wants. Raises ValueError for a file that was changed or belongs to another network.
    """
    path = folder / WEIGHTS
    found = _sha256(path)
    if about.get("sha256") != found:
        raise ValueError(
            f"{path} is not the file that config.json describes (sha256 {found}, there "
            f"{about.get('sha256')}). It was damaged or replaced: fetch it again."
        )
    flat = read_safetensors(path, dtypes=("F32", "F16"))
    wanted: dict[str, Any] = dict(traverse_util.flatten_dict(like, sep="/"))
    wrong = sorted(flat.keys() ^ wanted.keys())
    wrong += [name for name in wanted if name in flat and flat[name].shape != wanted[name].shape]
    if wrong:
        raise ValueError(
            f"{path} does not fit the network of its config.json: {', '.join(wrong[:5])} differ. "
            "The two files belong to different models."
        )
    placed = {
        name: jax.device_put(flat[name].astype(np.float32), leaf.sharding)
        for name, leaf in wanted.items()
    }
    return traverse_util.unflatten_dict(placed, sep="/"), int(about["step"]), found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
