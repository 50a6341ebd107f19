"""Saving and restoring train states through Orbax: in the background, atomically, verified.

    <folder>/<step>/            a complete checkpoint, verified when it is read
    <folder>/incoming-<step>/   one being written, removed at the next start
    <folder>/<step>.damaged/    one whose files do not match its manifest, kept for inspection

A step gets its final name by a single rename, after Orbax has finished, has found every array in
what it wrote, and the manifest is on the disk. So a process killed at any instant leaves only
complete steps under final names. Older checkpoints are removed only after the rename. (Orbax's own
CheckpointManager renames before a manifest could be written, so it is not used here.)

With several processes, all of them call `save` and `restore` and share one folder; each writes and
reads the parts of the arrays that its devices hold. Only process 0 lists, renames, verifies and
removes; the others follow its decisions.
"""

from __future__ import annotations

import concurrent.futures
import shutil
import warnings
from pathlib import Path
from typing import TypeVar

import numpy as np
import orbax.checkpoint as ocp

from ddpm_jax.devices import processes
from ddpm_jax.files import number_of, user_path
from ddpm_jax.forward.checks import check_flag, check_whole
from ddpm_jax.training.manifest import (
    NAME,
    DamagedCheckpointError,
    check_tree,
    describe_tree,
    verify_manifest,
    write_manifest,
)
from ddpm_jax.training.orbax_folder import OrbaxFolder, merge_step
from ddpm_jax.training.stored_state import from_stored, stored_shapes, stored_tree
from ddpm_jax.types import PyTree


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; earlier ones are untouched."""


T = TypeVar("T")
INCOMING = "incoming-"


class Checkpoints:
    """The checkpoints of one run; a context manager that completes the save in progress.

    Args:
        folder: where they are stored; made by the first save.
        keep: number of newest checkpoints to keep.
        keep_every: also keep every step that is a multiple of this permanently; 0 for none.
        writable: False for reading only: nothing is removed or renamed.
    """

    def __init__(
        self, folder: str | Path, *, keep: int = 3, keep_every: int = 0, writable: bool = True
    ):
        call = "Checkpoints"
        self.keep = check_whole(call, "keep", keep, remedy="A run resumes from the newest.")
        self.keep_every = check_whole(call, "keep_every", keep_every, least=0)
        check_flag(call, "writable", writable)
        self.folder = user_path(folder, call).absolute()
        self._place = OrbaxFolder(self.folder)
        self.writable = writable
        self._orbax = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None
        if writable and processes.is_leader() and self.folder.is_dir():
            for leftover in self.folder.glob(f"{INCOMING}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exc_info) -> None:
        try:
            if exc_info[0] is None:
                self.wait()
        finally:
            self._thread.shutdown(wait=True)
            self._orbax.close()
            self._place.close()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in ascending order."""
        return steps_in(self.folder)

    def move_to(self, folder: Path) -> None:
        """Goes on in the place to which the folder was moved; every process must call this."""
        try:
            self.wait()
        except CheckpointWriteError as error:
            warnings.warn(f"{error} The folder is now {folder}.", stacklevel=2)
        self._place.close()
        self.folder = folder.absolute()
        self._place = OrbaxFolder(self.folder)

    def try_folder(self) -> None:
        """Saves, reads back and removes a tiny checkpoint; every process of a run must call this.

        Raises CheckpointWriteError if that fails, before there is anything to lose.
        """
        name, tree = f"{INCOMING}trial", {"x": np.arange(3)}
        processes.on_leader(lambda: self._make_room(name))
        try:
            self._orbax.save(self._place / name, args=ocp.args.StandardSave(tree))
            self._orbax.wait_until_finished()
            back = self._orbax.restore(self._place / name, args=ocp.args.StandardRestore(tree))
            if not np.array_equal(back["x"], tree["x"]):
                raise ValueError(f"{tree['x']} was read back as {back['x']}")
        except Exception as error:
            raise CheckpointWriteError(
                f"{self.folder} cannot hold checkpoints: a tiny one could not be written and read "
                f"back ({_first_line(error)}). Choose another folder with --run-dir."
            ) from error
        finally:
            self._sweep(name)

    def save(self, step: int, state: PyTree) -> None:
        """Starts saving `state` and returns once it may be changed; writes in the background.

        Waits for the previous save first. If that one failed, warns and saves this step all the
        same. A step that is already saved is left unchanged.

        Raises CheckpointWriteError if the save fails at once; `wait` raises later failures.
        """
        try:
            self.wait()
        except CheckpointWriteError as error:
            warnings.warn(f"{error} Trying again at step {step}.", stacklevel=2)
        if processes.on_leader((self.folder / str(step) / NAME).exists):
            return
        processes.on_leader(lambda: self._make_room(f"{INCOMING}{step}"))
        tree = stored_tree(state)
        try:
            self._orbax.save(self._place / f"{INCOMING}{step}", args=ocp.args.StandardSave(tree))
        except Exception as error:
            self._sweep(f"{INCOMING}{step}")
            raise CheckpointWriteError(_failure(self.folder, step, error)) from error
        self._pending = self._thread.submit(self._finish, step, describe_tree(tree))

    def _make_room(self, name: str) -> None:
        """Makes the folder, and removes what an earlier attempt left under this name."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointWriteError(
                f"{self.folder} cannot be made ({error.strerror}). Choose another with --run-dir."
            ) from error
        self._sweep(name)

    def _finish(self, step: int, tree: dict) -> None:
        incoming = self.folder / f"{INCOMING}{step}"
        try:
            # No process passes this point before all have written and process 0 has committed.
            self._orbax.wait_until_finished()
            if not processes.is_leader():
                return
            self._check_readable(f"{INCOMING}{step}", tree)
            write_manifest(incoming, tree, step)
            if (place := self.folder / str(step)).exists():
                set_aside(place)  # it has no manifest: `save` saw to that
            incoming.rename(place)
        # TensorStore reports a full disk as various exceptions, usually a ValueError.
        except Exception as error:
            self._sweep(incoming.name)
            raise CheckpointWriteError(_failure(self.folder, step, error)) from error
        # A newer one, or one without a manifest, is not of this run.
        ours = [saved for saved in complete_steps(self.folder) if saved <= step]
        for old in superseded(ours, self.keep, self.keep_every):
            # Rename first: a kill during the removal must not leave half a step under a final name.
            doomed = self.folder / f"{INCOMING}{old}-old"
            try:
                (self.folder / str(old)).rename(doomed)
            except OSError as error:
                # The new checkpoint is complete all the same, so training goes on.
                warnings.warn(
                    f"the checkpoint of step {old} in {self.folder} is no longer needed and could "
                    f"not be removed ({error.strerror}).",
                    stacklevel=2,
                )
            shutil.rmtree(doomed, ignore_errors=True)

    def _check_readable(self, name: str, tree: dict) -> None:
        """Raises ValueError unless Orbax finds all of the tree's arrays in what it wrote."""
        # If Orbax cannot collect the arrays of its processes, it only logs that.
        found = self._orbax.metadata(self._place / name)
        found = getattr(found, "item_metadata", found)
        arrays = None if found is None else getattr(found, "tree", found)
        # Compared without names: Orbax has its own names for fields of tuples.
        stored = [] if arrays is None else sorted(describe_tree(arrays).values())
        if stored != sorted(tree.values()):
            raise ValueError(
                f"Orbax reported no error, but finds only {len(stored)} of the {len(tree)} arrays "
                "that it wrote"
            )

    def _sweep(self, name: str) -> None:
        """Removes what a failed or killed save left under this name, and Orbax's own folders."""
        if not processes.is_leader():
            return
        for leftover in (name, *self.folder.glob(f"{name}.*")):
            shutil.rmtree(self.folder / leftover, ignore_errors=True)

    def wait(self) -> None:
        """Waits until the current save is complete; CheckpointWriteError if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def restore(self, like: T, step: int | None = None) -> T | None:
        """Restores the newest intact checkpoint, or that of `step`, into the structure of `like`.

        `like` is a state or its ShapeDtypeStructs; leaves with a sharding are placed accordingly,
        on any number of devices. Returns None if there is no checkpoint. A damaged checkpoint is
        skipped with a warning (and, if writable, renamed to `<step>.damaged`).

        Raises DamagedCheckpointError if every checkpoint is damaged, MismatchedCheckpointError for
        a checkpoint of another model, FileNotFoundError if `step` has none.
        """
        self.wait()
        listed = self.steps()
        try:
            return self._restore(like, step)
        except DamagedCheckpointError:
            # Training may have removed what is read here, for newer ones that are there now.
            changed = step is None and not self.writable and self.steps() != listed
            if not changed or processes.num_processes() > 1:
                raise
        return self.restore(like)

    def _restore(self, like: T, step: int | None) -> T | None:
        chosen = processes.on_leader(lambda: self._choose(like, step))
        if chosen is None:
            return None
        try:
            tree = self._orbax.restore(
                self._place / str(chosen), args=ocp.args.StandardRestore(stored_shapes(like))
            )
        except Exception as error:
            folder = self.folder / str(chosen)
            raise DamagedCheckpointError(f"{folder} could not be read by Orbax: {error}") from error
        return from_stored(tree, like)

    def _choose(self, like: PyTree, step: int | None) -> int | None:
        """The step to restore, verified and of the right structure.

        Moves damaged newer steps aside.
        """
        available = self.steps()
        if step is not None:
            if step not in available:
                raise FileNotFoundError(
                    f"{self.folder} has no checkpoint of step {step}; it has {available or 'none'}."
                )
            available = [step]
        damaged: list[str] = []
        for candidate in reversed(available):
            folder = self.folder / str(candidate)
            try:
                stored = verify_manifest(folder, candidate)
                self._complete(candidate)
            except DamagedCheckpointError as error:
                damaged.append(str(error))
                continue
            check_tree(folder, stored, stored_shapes(like))
            if damaged:
                self._set_aside(damaged, available, candidate)
            return candidate
        if damaged:
            raise DamagedCheckpointError(
                "no intact checkpoint is left:\n  "
                + "\n  ".join(damaged)
                + "\nNothing was changed. "
                "Restore the files from a copy, or start again in another run directory "
                f"({self.folder.parent} is kept)."
            )
        return None

    def _complete(self, step: int) -> None:
        """Adds the index that is missing if the path contains special characters such as `[`."""
        folder = self.folder / str(step)
        try:
            if merge_step(self._place, step):
                warnings.warn(
                    f"{folder} had no index of its arrays, because of special characters in the "
                    "path. The index was added; nothing is lost.",
                    stacklevel=2,
                )
        except Exception as error:
            raise DamagedCheckpointError(
                f"{folder} has no index of its arrays, and none could be added "
                f"({_first_line(error)})."
            ) from error

    def _set_aside(self, damaged: list[str], available: list[int], used: int) -> None:
        kept = []
        for bad in (s for s in available if s > used):
            folder = self.folder / str(bad)
            if self.writable:
                folder = set_aside(folder)
            kept.append(str(folder))
        warnings.warn(
            "damaged checkpoint: " + " ".join(damaged) + f" Kept as {', '.join(kept)}; "
            f"continuing from step {used}.",
            stacklevel=5,
        )


def steps_in(folder: Path) -> list[int]:
    """The steps that have a checkpoint in a folder, ascending; none if there is no folder."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(step for path in paths if (step := number_of(path.name)) is not None)


def complete_steps(folder: Path) -> list[int]:
    """Those of `steps_in` that have a manifest, as every step has that was written to its end."""
    return [step for step in steps_in(folder) if (folder / str(step) / NAME).is_file()]


def set_aside(folder: Path) -> Path:
    """Renames a damaged step's folder, so that its name is free; returns the new name."""
    aside = folder.with_name(f"{folder.name}.damaged")
    while aside.exists():
        aside = aside.with_name(aside.name + "-again")
    return folder.rename(aside)


def superseded(steps: list[int], keep: int, keep_every: int) -> list[int]:
    """The steps to remove, of ascending steps: neither among the newest nor kept permanently."""
    return [step for step in steps[:-keep] if not keep_every or step % keep_every]


def _failure(folder: Path, step: int, error: Exception) -> str:
    return (
        f"the checkpoint of step {step} could not be written to {folder} "
        f"({_first_line(error)}); the ones before it are untouched."
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
