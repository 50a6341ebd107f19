"""Checkpoint folders whose names Orbax and TensorStore misread, and recovery of lost steps.

Orbax expands `[`, `*` and `?` in a folder's name when it collects what each process wrote,
TensorStore reads `\\` as `/`, and neither takes names that are not UTF-8. A step written under such
a name looked complete and could not be read. Here they are given the folder by its file descriptor,
`/proc/self/fd/N`, which means the same folder and has none of these characters.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from ddpm_jax.training.manifest import list_files_again

PARTS = "ocdbt.process_"
MERGED = "manifest.ocdbt"
_DESCRIPTORS = Path("/proc/self/fd")


class UnusableFolderError(OSError):
    """Orbax cannot write below a folder of this name on this system."""


def is_misread(folder: Path) -> bool:
    """Whether Orbax or TensorStore would take the folder's name for something else."""
    if os.name == "nt":
        return re.search(r"[*?\[\]]", str(folder)) is not None
    return re.search(r"[*?\[\]:\\\ud800-\udfff]", str(folder)) is not None  # surrogates: no UTF-8


class OrbaxFolder:
    """Names a folder, which must exist when it is used, so that Orbax takes it literally."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._descriptor: int | None = None

    def __truediv__(self, name: str) -> Path:
        """The path below the folder that Orbax is given.

        Raises UnusableFolderError where the name would be misread and the system has no file
        descriptors by name.
        """
        if not is_misread(self.folder):
            return self.folder / name
        if not _DESCRIPTORS.is_dir():
            raise UnusableFolderError(
                f"checkpoints cannot be kept in {self.folder} on this system: a path with any of "
                "* ? [ ] \\ : in it, or that is not UTF-8, is misread by Orbax. Choose another "
                "folder."
            )
        if self._descriptor is not None and not self._current(self._descriptor):
            self.close()
        if self._descriptor is None:
            self._descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        return _DESCRIPTORS / str(self._descriptor) / name

    def _current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.folder))
        except OSError:
            return False

    def close(self) -> None:
        """Closes the descriptor."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def merge_step(place: OrbaxFolder, step: int) -> bool:
    """Completes a step whose arrays were written and never collected; whether there was one to do.

    Steps written under a misread name by earlier versions of this package are of this kind. The
    arrays' files stay as they are; the index that Orbax reads is added, and the manifest lists it.
    Raises OSError where the folder cannot be written, ValueError where the arrays are not there.
    """
    folder = place.folder / str(step)
    if (folder / MERGED).exists() or not (folder / "_METADATA").exists():
        return False
    parts = [path.name for path in folder.iterdir() if path.name.startswith(PARTS)]
    # Where TensorStore read `\` as `/`, the arrays went to another folder, under Orbax's own name.
    strayed = Path(str(place.folder).replace("\\", "/")) / f"incoming-{step}.orbax-checkpoint-tmp"
    if not parts and "\\" in str(place.folder) and strayed.is_dir():
        for part in strayed.iterdir():
            if part.name.startswith(PARTS):
                shutil.copytree(part, folder / part.name, dirs_exist_ok=True)
                parts.append(part.name)
    if not parts:
        return False
    _merge(place / str(step), parts)
    list_files_again(folder)
    return True


def _merge(folder: Path, parts: list[str]) -> None:
    import tensorstore as ts

    context = ts.Context()  # of its own for each, TensorStore would not copy by reference

    def store(path: Path):
        base = {"driver": "file", "path": f"{path}/"}
        return ts.KvStore.open({"driver": "ocdbt", "base": base}, context=context).result()

    # One transaction: a kill leaves either no index or a whole one.
    transaction = ts.Transaction(atomic=True)
    whole = store(folder).with_transaction(transaction)
    for part in parts:
        store(folder / part).experimental_copy_range_to(whole).result()
    transaction.commit_sync()
