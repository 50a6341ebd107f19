"""A trained model as a folder of two files, and those that come with the package.

config.json            as in a run directory, with `weights`: the step, and the sha256 of the file
weights.safetensors    the averaged parameters, float32 or float16, named by their place in the tree

Every program that accepts a run directory also accepts such a folder, and the name of a model: a
model of the package, or `hub:OWNER/NAME@REVISION`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from flax import traverse_util

import ddpm_jax
from ddpm_jax.files import sha256_of, unchanged, write_json
from ddpm_jax.interop.hub import fetch_files
from ddpm_jax.interop.tensors import read_safetensors, write_safetensors
from ddpm_jax.programs.buckets import about_in, shown, taken_in
from ddpm_jax.programs.outputs import claim
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.types import PyTree

PRETRAINED = Path(ddpm_jax.__file__).parent / "pretrained"
WEIGHTS = "weights.safetensors"
SHEET = "samples.png"
HUB = "hub:"
WeightsDtype = Literal["float32", "float16"]


def pretrained_names() -> list[str]:
    """The names of the trained models that come with the package."""
    return sorted(path.parent.name for path in PRETRAINED.glob(f"*/{WEIGHTS}"))


class NamedModel(NamedTuple):
    """A model's name in results, its folder, and the default folder for results."""

    name: str
    folder: Path
    results: Path


def is_model_name(source: str | Path) -> bool:
    """Whether this is the name of a model, and not an existing folder."""
    text = str(source)
    return (text in pretrained_names() or text.startswith(HUB)) and not Path(text).exists()


def find_model(name: str) -> NamedModel:
    """The model of this name, fetched from the hub if necessary.

    Raises ValueError for an unknown name, and the errors of `fetch_files`.
    """
    if name.startswith(HUB):
        repository, _, revision = name.removeprefix(HUB).partition("@")
        fetched = fetch_files(repository, revision or None, choose_weights)
        pinned = f"{HUB}{repository}@{fetched.commit}"
        results = f"hub-{repository.replace('/', '-')}-{fetched.commit[:8]}"
        return NamedModel(pinned, fetched.folder, Path("runs") / results)
    names = pretrained_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"--pretrained knows {', '.join(names)} and {HUB}OWNER/NAME@REVISION, got {name!r}."
            f"{meant} Use --run-dir for your own run."
        )
    results = Path("runs") / f"pretrained-{name}"
    return NamedModel(f"pretrained {name}", PRETRAINED / name, results)


def choose_weights(names: Iterable[str], where: str) -> list[str]:
    """The files to fetch from a repository on the hub; ValueError if it holds no model of ours."""
    present = set(names)
    if "config.json" in present and WEIGHTS in present:
        return ["config.json", WEIGHTS, *({SHEET} & present)]
    remedy = f"It has {sorted(present)[:8] or 'no files'}."
    if any(name.endswith("scheduler_config.json") for name in present):
        remedy = (
            "It is a pipeline of diffusers. Import it with ddpm-jax convert from-diffusers "
            "--download OWNER/NAME."
        )
    raise ValueError(f"{where} has no config.json and {WEIGHTS} of this package. {remedy}")


def has_weights(folder: Path) -> bool:
    """Whether the folder holds weights, and is no run directory with checkpoints."""
    return (folder / WEIGHTS).is_file() and not (folder / "checkpoints").exists()


def check_weights_folder(folder: Path, names: Sequence[str] = ("config.json", WEIGHTS)) -> None:
    """Raises RunDirectoryError for a folder in which files of these names are not such weights'.

    Says so if they are, since they will be replaced.
    """
    taken = taken_in(folder, ("checkpoints", *names))
    if "checkpoints" in taken:
        raise RunDirectoryError(f"{shown(folder)} is a run directory. Choose another with --out.")
    claim(folder, taken, ours=isinstance(about_in(folder).get("weights"), dict))


def save_weights(
    folder: Path, params: PyTree, config: dict[str, Any], dtype: WeightsDtype = "float32"
) -> list[Path]:
    """Writes parameters and the contents of config.json into a folder; returns the two files."""
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(jax.device_get(params), sep="/"))
    path = folder / WEIGHTS
    # First without the file's sha256: after a kill the folder is known to be ours, and refused.
    write_json(folder / "config.json", config)
    write_safetensors(path, flat, dtype=np.dtype(dtype))
    about = {**config["weights"], "dtype": dtype, "sha256": sha256_of(path)}
    write_json(folder / "config.json", {**config, "weights": about})
    return [folder / "config.json", path]


def read_weights(folder: Path, about: Any, like: PyTree) -> tuple[PyTree, int, str]:
    """The parameters of a folder, its training step, and the sha256 of its file.

    `about` is what config.json says of the weights, `like` has the shapes and the placement that
    the model wants. Raises ValueError for a file that was changed or belongs to another network.
    """
    path = folder / WEIGHTS
    if not isinstance(about, dict) or type(about.get("step")) is not int:
        raise ValueError(
            f"{folder / 'config.json'} does not describe {WEIGHTS} beside it: weights.step and "
            "weights.sha256 are missing. Export the run again (ddpm-jax convert to-weights)."
        )
    with unchanged(path):
        found = sha256_of(path)
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
    return traverse_util.unflatten_dict(placed, sep="/"), about["step"], found
