"""The manifest of a checkpoint: size and sha256 of every file, dtype and shape of every leaf.

Orbax commits a step atomically, but does not notice a flipped bit in an array's bytes; the manifest
does. It is written before the step gets its final name, so a step under its final name always has
one.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.files import check_regular, read_json_object, sha256_of, write_atomically
from ddpm_jax.types import PyTree

NAME = "manifest.json"
FREE_BYTES = 1 << 30
MAX_EXPANSION = 1000
"""Largest ratio of array bytes to file bytes accepted, beyond `FREE_BYTES`. Trained weights hardly
compress, and fill at least a quarter of a state whose other moments are zeros."""


class DamagedCheckpointError(RuntimeError):
    """A checkpoint's files differ from what was written."""


class MismatchedCheckpointError(ValueError):
    """A checkpoint is intact, but belongs to another model or optimiser."""


def describe_tree(tree: PyTree) -> dict[str, list[Any]]:
    """Maps the path of every leaf to [dtype, shape]."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): [str(leaf.dtype), list(np.shape(leaf))] for path, leaf in leaves
    }


def _digest_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Maps the name of every file in the folder, except the manifest, to its size and sha256."""
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / NAME
    }


def write_manifest(folder: Path, tree: dict[str, list[Any]], step: int) -> None:
    """Writes the manifest of a finished folder."""
    body = {"step": step, "tree": tree, "files": describe_files(folder)}
    # It ends with its last brace, so that one cut short by a byte is no JSON.
    content = json.dumps({"sha256": _digest_of(body), **body}, indent=1)
    write_atomically(folder / NAME, content)


def list_files_again(folder: Path) -> None:
    """Rewrites the manifest for the folder's present files, after files were added on purpose."""
    manifest = read_json_object(folder / NAME)
    write_manifest(folder, manifest["tree"], manifest["step"])


def verify_manifest(folder: Path, step: int | None = None) -> dict[str, list[Any]]:
    """Checks every file against the manifest and returns the tree's description.

    Raises DamagedCheckpointError naming the first file that is missing or has another size or
    content, and for the folder of another step than `step`: a run that went on from there would
    find the names of its later steps taken.
    """
    path = folder / NAME
    try:
        manifest = read_json_object(path)
        tree, files, stored_step = (manifest[name] for name in ("tree", "files", "step"))
        if not isinstance(tree, dict) or not isinstance(files, dict):
            raise TypeError("its tree and files are lists, not by name")
        intact = manifest.pop("sha256") == _digest_of(manifest)
        sizes = {name: _listed_size(folder, name, wanted) for name, wanted in files.items()}
        _check_backed(tree, sum(sizes.values()))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:  # a loop of links
        raise DamagedCheckpointError(f"{path} cannot be read ({error!r}).") from error
    if not intact:
        raise DamagedCheckpointError(f"{path} does not have the content that was written.")
    if step is not None and step != stored_step:
        raise DamagedCheckpointError(
            f"{folder} is the checkpoint of step {stored_step} under another name: rename it back."
        )
    for name, wanted in files.items():
        file = folder / name
        try:
            if (size := check_regular(file).st_size) != sizes[name]:
                raise DamagedCheckpointError(
                    f"{file} has {size} bytes, {sizes[name]} were written."
                )
            if sha256_of(file) != wanted["sha256"]:
                raise DamagedCheckpointError(f"{file} does not have the content that was written.")
        except OSError as error:
            raise DamagedCheckpointError(f"{file} cannot be read ({error!r}).") from error
    return tree


def _listed_size(folder: Path, name: str, wanted: dict[str, Any]) -> int:
    """The listed size of a file; ValueError if the name lies outside the folder."""
    file, root = folder / name, folder.resolve()
    if type(wanted["bytes"]) is not int or type(wanted["sha256"]) is not str:
        raise ValueError(f"{name!r} has size {wanted['bytes']!r}, digest {wanted['sha256']!r}")
    if Path(name).is_absolute() or ".." in Path(name).parts or root not in file.resolve().parents:
        raise ValueError(f"{name!r} is outside the folder")
    return wanted["bytes"]


def _check_backed(tree: dict[str, list[Any]], num_bytes: int) -> None:
    """Raises ValueError for arrays too large to be stored in files of `num_bytes`.

    Orbax allocates an array before it reads its bytes, and fills missing ones with zeros.
    """
    claimed = 0
    for name, (dtype, shape) in tree.items():
        if type(dtype) is not str or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{name!r} is listed as {dtype!r} {shape!r}")
        claimed += 8 * math.prod(shape)
    if claimed > FREE_BYTES + MAX_EXPANSION * num_bytes:
        raise ValueError(f"it lists {claimed:,} bytes of arrays for {num_bytes:,} bytes of files")


def check_tree(folder: Path, stored: dict[str, list[Any]], wanted: PyTree) -> None:
    """Raises MismatchedCheckpointError, naming leaves, unless the stored tree is the wanted one.

    Checked before Orbax reads anything: it would silently cast a leaf of another dtype.
    """
    expected = describe_tree(wanted)
    problems = [
        f"{name}: stored {stored.get(name, 'nothing')}, wanted {expected.get(name, 'nothing')}"
        for name in sorted({*stored, *expected})
        if stored.get(name) != expected.get(name)
    ]
    key = "['key']"
    if problems and all(name.startswith(key) for name in problems):
        raise MismatchedCheckpointError(
            f"the checkpoint {folder} has a random key of another generator ({problems[0]}): the "
            "run was made with JAX_DEFAULT_PRNG_IMPL=rbg or unsafe_rbg, whose noise depends on the "
            "batch. Training cannot continue with that noise. The weights can be sampled, and a "
            "new run can start from them (--init-from). Nothing was changed."
        )
    if problems:
        shown = "\n  ".join(problems[:5]) + (
            f"\n  … and {len(problems) - 5} more" if len(problems) > 5 else ""
        )
        raise MismatchedCheckpointError(
            f"the checkpoint {folder} does not fit this model and optimiser:\n  {shown}\n"
            "Use the configuration it was trained with, or another run directory. Nothing was "
            "changed."
        )
