"""Saving and restoring train states through Orbax: in the background, atomically, verified.

    <folder>/<step>/            a complete, verified-on-read checkpoint
    <folder>/incoming-<step>/   one being written, removed at the next start
    <folder>/<step>.damaged/    one whose files no longer match its manifest, kept for whoever wants
    to look

A step gets its final name by one rename, after Orbax has finished and the manifest is on the disk,
so a process killed at any instant leaves only whole steps under final names. (Orbax's own
CheckpointManager renames before a manifest could be written, which is why it is not used here.)

With several processes all of them call `save` and `restore`, and see one shared folder; each writes
and reads the parts of the arrays that its devices hold. Process 0 alone lists, names, verifies and
removes, and the others go by its word.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import shutil
import warnings
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ddpm_jax.devices import processes
from ddpm_jax.training.manifest import (
    DamagedCheckpointError,
    check_tree,
    describe_tree,
    verify_manifest,
    write_manifest,
)
from ddpm_jax.types import PyTree


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; those before it are untouched."""


T = TypeVar("T")
INCOMING = "incoming-"


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(tree: PyTree) -> PyTree:
    """The tree with typed keys as the integers behind them."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _as_tree(tree: PyTree) -> PyTree:
    """The same leaves in dictionaries by field name, which every version of Orbax stores alike.

    Optional fields that hold nothing are left out: a state may gain one and still be restored. The
    others are written even so, as the state of an optimiser without memory always was.
    """
    return {
        field.name: getattr(tree, field.name)
        for field in dataclasses.fields(tree)
        if field.default is dataclasses.MISSING or jax.tree.leaves(getattr(tree, field.name))
    }


class Checkpoints:
    """The checkpoints of one run; a context manager that finishes what it is writing.

    Args:
        folder: where they live; made by the first save.
        keep: how many of the newest to keep.
        writable: False to only read: nothing is removed or renamed.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, writable: bool = True):
        if keep < 1:
            raise ValueError(
                f"Checkpoints needs keep >= 1, got {keep}: a run resumes from the newest."
            )
        self.folder = Path(folder).absolute()
        self.keep = keep
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

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, rising."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def save(self, step: int, state: PyTree) -> None:
        """Starts saving `state`; returns once it may be changed, and writes on in the background.

        Waits for the save before it; had that one failed, a warning says so and this one is tried
        all the same. A step that is already saved is left as it is.

        Raises CheckpointWriteError when it fails at once; what fails later, `wait` raises.
        """
        try:
            self.wait()
        except CheckpointWriteError as error:
            warnings.warn(f"{error} Trying again at step {step}.", stacklevel=2)
        if processes.on_leader(lambda: self._make_room(step)):
            return
        tree = _as_tree(_raw(state))
        incoming = self.folder / f"{INCOMING}{step}"
        try:
            self._orbax.save(incoming, args=ocp.args.StandardSave(tree))
        except Exception as error:
            self._sweep(step)
            raise CheckpointWriteError(_failure(self.folder, step, error)) from error
        self._pending = self._thread.submit(self._finish, incoming, step, describe_tree(tree))

    def _make_room(self, step: int) -> bool:
        """Whether the step is saved already; if not, its place is swept."""
        if (self.folder / str(step)).exists():
            return True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointWriteError(_failure(self.folder, step, error)) from error
        self._sweep(step)
        return False

    def _finish(self, incoming: Path, step: int, tree: dict) -> None:
        try:
            # Orbax lets no process past this before all have written and process 0 has committed.
            self._orbax.wait_until_finished()
            if not processes.is_leader():
                return
            write_manifest(incoming, tree, step)
            incoming.rename(self.folder / str(step))
        # A full disk reaches us as whatever TensorStore makes of it, a ValueError as a rule.
        except Exception as error:
            self._sweep(step)
            raise CheckpointWriteError(_failure(self.folder, step, error)) from error
        for old in self.steps()[: -self.keep]:
            # Renamed first: a kill inside the removal must not leave half a step under a final
            # name.
            doomed = self.folder / f"{INCOMING}{old}-old"
            (self.folder / str(old)).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _sweep(self, step: int) -> None:
        """Removes what a failed or killed save of this step left: Orbax's own folders too."""
        if not processes.is_leader():
            return
        for leftover in (f"{INCOMING}{step}", *self.folder.glob(f"{INCOMING}{step}.*")):
            shutil.rmtree(self.folder / leftover, ignore_errors=True)

    def wait(self) -> None:
        """Waits until the save under way is complete; CheckpointWriteError if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def restore(self, like: T, step: int | None = None) -> T | None:
        """Restores the newest intact checkpoint (or that of `step`) into the shape and placement of
        `like`.

        `like` is a state or its ShapeDtypeStructs; leaves with a sharding are put there, on however
        many devices that is. Returns None when there is no checkpoint. A damaged checkpoint is
        passed over with a warning (and, when writable, renamed to `<step>.damaged`) for the newest
        intact one.

        Raises DamagedCheckpointError when every checkpoint is damaged, MismatchedCheckpointError
        for one of another model, FileNotFoundError when `step` has none.
        """
        self.wait()
        chosen = processes.on_leader(lambda: self._choose(like, step))
        return None if chosen is None else self._read(self.folder / str(chosen), like)

    def _choose(self, like: PyTree, step: int | None) -> int | None:
        """The step to restore: verified, of the right tree, damaged newer ones put aside."""
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
                stored = verify_manifest(folder)
            except DamagedCheckpointError as error:
                damaged.append(str(error))
                continue
            check_tree(folder, stored, _as_tree(_raw_like(like)))
            if damaged:
                self._set_aside(damaged, available, candidate)
            return candidate
        if damaged:
            raise DamagedCheckpointError(
                "no intact checkpoint is left:\n  "
                + "\n  ".join(damaged)
                + "\nNothing was changed. Put "
                f"the files back, or start again in another run directory ({self.folder.parent} "
                "is kept)."
            )
        return None

    def _read(self, folder: Path, like: T) -> T:
        target = _raw_like(like)
        try:
            tree = self._orbax.restore(folder, args=ocp.args.StandardRestore(_as_tree(target)))
        except Exception as error:
            raise DamagedCheckpointError(f"{folder} could not be read by Orbax: {error}") from error
        empty = {n: getattr(like, n) for n in like.__dataclass_fields__ if n not in tree}  # type: ignore[attr-defined]
        restored = type(like)(**tree, **empty)
        return jax.tree.map(
            lambda leaf, wanted: (
                jax.random.wrap_key_data(leaf, impl=_key_impl(wanted)) if _is_key(wanted) else leaf
            ),
            restored,
            like,
        )

    def _set_aside(self, damaged: list[str], available: list[int], used: int) -> None:
        kept = []
        for bad in (s for s in available if s > used):
            folder = self.folder / str(bad)
            if self.writable:
                aside = self.folder / f"{bad}.damaged"
                while aside.exists():
                    aside = aside.with_name(aside.name + "-again")
                folder = folder.rename(aside)
            kept.append(str(folder))
        warnings.warn(
            "damaged checkpoint: " + " ".join(damaged) + f" Kept as {', '.join(kept)}; "
            f"going on from step {used}.",
            stacklevel=5,
        )


def _raw_like(like: PyTree) -> PyTree:
    """ShapeDtypeStructs of `like` with keys as integers, placed where `like` is placed."""

    def describe(leaf):
        sharding = getattr(leaf, "sharding", None)
        if _is_key(leaf):
            data = jax.eval_shape(jax.random.key_data, leaf)
            return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=_data_sharding(leaf))
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, like)


def _data_sharding(key):
    return jax.random.key_data(key).sharding if isinstance(key, jax.Array) else key.sharding


def _key_impl(key):
    # A ShapeDtypeStruct does not say which generator its keys are of: JAX's default then.
    return jax.random.key_impl(key) if isinstance(key, jax.Array) else None


def _failure(folder: Path, step: int, error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return (
        f"the checkpoint of step {step} could not be written to {folder} "
        f"({type(error).__name__}: {first}); the ones before it are untouched."
    )
