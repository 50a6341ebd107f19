"""A list of what a checkpoint holds, so that damage to it is seen: every file's size and sha256,
every leaf's shape.

Orbax commits a step atomically, but does not notice a flipped bit in an array's bytes; the manifest
does. It is written before the step gets its final name, so a step under its final name always has
one.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.types import PyTree

NAME = "manifest.json"


class DamagedCheckpointError(RuntimeError):
    """A checkpoint's files are not what was written."""


class MismatchedCheckpointError(ValueError):
    """A checkpoint is intact, but of another model or optimiser than the one it is restored
    into."""


def describe_tree(tree: PyTree) -> dict[str, list[Any]]:
    """Path of every leaf → [dtype, shape]."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): [str(leaf.dtype), list(np.shape(leaf))] for path, leaf in leaves
    }


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _digest_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, tree: dict[str, list[Any]], step: int) -> None:
    """Writes the manifest of a finished folder and flushes it to the disk."""
    files = {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    with (folder / NAME).open("w") as file:
        body = {"step": step, "tree": tree, "files": files}
        json.dump({"sha256": _digest_of(body), **body}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def verify_manifest(folder: Path) -> dict[str, list[Any]]:
    """Checks every file against the manifest and returns the tree's description.

    Raises DamagedCheckpointError naming the first file that is missing, of another size, or of
    other content.
    """
    path = folder / NAME
    try:
        manifest = json.loads(path.read_text())
        tree, files = dict(manifest["tree"]), dict(manifest["files"])
        intact = manifest.pop("sha256") == _digest_of(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{path} cannot be read ({error!r}).") from error
    if not intact:
        raise DamagedCheckpointError(f"{path} does not have the content that was written.")
    for name, wanted in files.items():
        file = folder / name
        try:
            if file.stat().st_size != wanted["bytes"]:
                raise DamagedCheckpointError(
                    f"{file} has {file.stat().st_size} bytes, {wanted['bytes']} were written."
                )
            if _digest(file)["sha256"] != wanted["sha256"]:
                raise DamagedCheckpointError(f"{file} does not have the content that was written.")
        except OSError as error:
            raise DamagedCheckpointError(f"{file} cannot be read ({error!r}).") from error
    return tree


def check_tree(folder: Path, stored: dict[str, list[Any]], wanted: PyTree) -> None:
    """Raises MismatchedCheckpointError, naming leaves, unless the stored tree is the wanted one.

    Checked before Orbax reads anything: it would cast a leaf of another dtype without a word.
    """
    expected = describe_tree(wanted)
    problems = [
        f"{name}: stored {stored.get(name, 'nothing')}, wanted {expected.get(name, 'nothing')}"
        for name in sorted({*stored, *expected})
        if stored.get(name) != expected.get(name)
    ]
    if problems:
        shown = "\n  ".join(problems[:5]) + (
            f"\n  … and {len(problems) - 5} more" if len(problems) > 5 else ""
        )
        raise MismatchedCheckpointError(
            f"the checkpoint {folder} does not fit this model and optimiser:\n  {shown}\n"
            "Use the configuration it was trained with, or another run directory. Nothing was "
            "changed."
        )
