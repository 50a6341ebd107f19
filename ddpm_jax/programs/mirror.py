"""A run directory in a bucket: the run writes locally, and a thread uploads complete files.

Object stores have neither rename nor locks. They are replaced as follows:

- A checkpoint is complete once it has a manifest, which lists the sha256 of its files. The manifest
  is uploaded last. When a checkpoint is removed, its manifest is deleted first.
- One process writes: the holder of a file made by a conditional put (`bucket_lock`).
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from ddpm_jax.devices import processes
from ddpm_jax.files import number_of, read_json_object, write_json
from ddpm_jax.programs import bucket_lock, buckets
from ddpm_jax.programs.bucket_files import Bucket, BucketError, Files
from ddpm_jax.programs.config import ReportConfig
from ddpm_jax.programs.console import say
from ddpm_jax.programs.run_directory import RunDirectory, RunDirectoryError
from ddpm_jax.training import DamagedCheckpointError, StopRequest
from ddpm_jax.training.checkpoints import INCOMING, complete_steps, set_aside, superseded
from ddpm_jax.training.manifest import NAME, verify_manifest

POLL_SECONDS = 1.0
LOG_SECONDS = 60.0
"""Interval between uploads of the log while there is no new checkpoint."""
FLUSH_SECONDS = 25.0
"""Time limit of the last upload of a stopped run: clouds end a machine 30 s after SIGTERM."""
NEEDED = re.compile(r"(tensorboard/|samples/)?[^./][^/]*")
"""Files that a resumed run needs besides its checkpoints."""
ABOUT = ".bucket.json"


@contextlib.contextmanager
def mirrored(directory: RunDirectory, report: ReportConfig, stop: StopRequest) -> Iterator[None]:
    """Keeps an acquired run directory in the bucket whose address it stands for, if any.

    On entry, the bucket's newest checkpoint is in the directory. The exit waits until everything is
    uploaded, but after a stop at most `FLUSH_SECONDS`. Every process of a run must call this.

    Raises RunDirectoryError if another process holds the run, BucketError if the bucket cannot be
    used, UnsentError if a finished run could not be uploaded.
    """
    address = buckets.address_of(directory.root)
    if address is None:
        yield
        return
    mirror = Mirror(address, directory.root, report, stop) if processes.is_leader() else None
    alone = processes.num_processes() == 1
    try:
        with stop.at_once() if alone else contextlib.nullcontext():
            owner = processes.on_leader(lambda: mirror.start() if mirror else "")
        processes.everywhere(lambda: _check_shared(directory.root, owner))
        yield
    except BaseException:
        if mirror is not None:
            with contextlib.suppress(BucketError, RunDirectoryError):
                mirror.close(hurry=True)
        raise
    if mirror is not None:
        mirror.close()


def _check_shared(root: Path, owner: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        if read_json_object(root / ABOUT).get("owner") == owner:
            return
    raise RunDirectoryError(
        f"this process does not share the folder {root} with process 0, but each process writes "
        "its part of a checkpoint there. Set DDPM_JAX_CACHE to a folder that all processes share."
    )


class Mirror:
    """One run directory and its bucket; all methods but `start` and `close` run in threads."""

    def __init__(self, address: str, root: Path, report: ReportConfig, stop: StopRequest):
        self.address, self.root, self._stop = address, root, stop
        buckets.written[root] = None  # not pushed again when the program ends
        self._keep = report.checkpoint_keep, report.keep_every
        self._bucket = Bucket(address)
        self._up: set[int] = set()
        self._damaged: set[int] = set()
        # Local checkpoints by their manifests' states, and whether they are intact.
        self._verified: dict[tuple[int, tuple[int, int]], bool] = {}
        self._sent: dict[str, tuple[int, int]] = {}
        self._logs_due = 0.0
        self._failed: BucketError | None = None
        self._lost: RunDirectoryError | None = None
        self._ending, self._ended = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock: bucket_lock.Lock | None = None

    def start(self) -> str:
        """Takes the lock, fetches the files that this folder lacks, and begins to upload.

        Returns the name under which this folder owns the lock.
        """
        known = {}
        with contextlib.suppress(OSError, ValueError):
            known = read_json_object(self.root / ABOUT)
        # This folder is locked: any process that held the bucket in its name has ended.
        owner = known.get("owner") or uuid.uuid4().hex
        lock = bucket_lock.Lock(self._bucket, owner)
        lock.acquire()
        self._lock = lock
        if known.get("run") != lock.run:
            self._set_aside()
        write_json(self.root / ABOUT, {"run": lock.run, "owner": owner})
        self._run(self._renew)
        self._pull()
        self._run(self._push_all)
        return owner

    def _run(self, work: Callable[[], None]) -> None:
        # Daemons, so that an upload that takes too long cannot keep the process alive.
        self._threads.append(threading.Thread(target=work, daemon=True, name=work.__name__))
        self._threads[-1].start()

    def close(self, *, hurry: bool = False) -> None:
        """Uploads the remaining files, releases the lock, and says up to which step the bucket is.

        Raises UnsentError if files are missing although there was no hurry and no stop, and
        RunDirectoryError if another process took the run over.
        """
        self._ending.set()
        end = math.inf
        for thread in self._threads[1:]:
            thread.join(2.0)
            if thread.is_alive():
                say(f"uploading to {self.address} …")
            while thread.is_alive() and time.monotonic() < end:
                thread.join(0.2)
                if end == math.inf and (hurry or self._stop.signal):
                    end = time.monotonic() + FLUSH_SECONDS
        pushing = any(thread.is_alive() for thread in self._threads[1:])
        self._ended.set()
        if self._lost is not None:
            raise self._lost
        if self._lock is not None and not pushing:
            for renewing in self._threads[:1]:
                renewing.join(5.0)  # it must not renew the lock after its release
            with contextlib.suppress(BucketError):
                self._lock.release()
        newest = max(self._up - self._damaged, default=None)
        has = "no checkpoint" if newest is None else f"everything up to step {newest:,}"
        if self._failed is None and not pushing:
            buckets.written[self.root] = buckets.states_in(self.root)
            if len(self._threads) > 1:
                say(f"{self.address} has {has}")
            return
        reason = str(self._failed or f"Its time limit is {FLUSH_SECONDS:g} s.")
        message = (
            f"the last upload is not complete. {reason} {self.address} has {has}; the remaining "
            f"files are kept in {self.root}. The same command on this machine uploads it."
        )
        if not hurry and self._stop.signal is None:
            raise buckets.UnsentError(message)
        say(f"warning: {message}")

    def _set_aside(self) -> None:
        """Moves aside the files of an earlier run, which was removed from the bucket."""
        left = [path for path in self.root.iterdir() if not path.name.startswith(".")]
        if left:
            aside = self.root / f".earlier-{uuid.uuid4().hex[:8]}"
            aside.mkdir()
            for path in left:
                path.rename(aside / path.name)
            warnings.warn(
                f"{self.root} held another run than {self.address}; it was moved to {aside}.",
                stacklevel=2,
            )

    def _pull(self) -> None:
        files = self._bucket.files()
        committed = buckets.committed_steps(files)
        self._up = set(committed)
        # The remains of uploads and removals that a kill cut short.
        parts = {n: number_of(n.split("/")[1]) for n in files if n.startswith("checkpoints/")}
        self._bucket.remove([n for n, step in parts.items() if step not in (None, *self._up)])
        # A damaged one here is no reason to leave an intact one in the bucket.
        local = reversed(complete_steps(self.root / "checkpoints"))
        mine = next((step for step in local if self._is_intact(step)), -1)
        newer = [step for step in committed if step > mine]
        needed = [name for name in files if NEEDED.fullmatch(name)]
        if needed and (newer or not (self.root / "config.json").exists()):
            say(
                f"fetching {self.address}: its logs" + (f" and step {newer[-1]:,}" if newer else "")
            )
            # Before the checkpoint: once the checkpoint is here, the next start fetches no logs.
            self._bucket.get({name: self.root / name for name in needed})
            self._sent = {name: _state(self.root / name) for name in needed}
        any(self._pull_step(step, files) for step in reversed(newer))
        for name, path in self._small().items():
            # Below the first level, files with the same name and size have the same content.
            if "/" in name and files.get(name, {}).get("size") == path.stat().st_size:
                self._sent[name] = _state(path)

    def _pull_step(self, step: int, files: Files) -> bool:
        prefix, draft = f"checkpoints/{step}/", self.root / "checkpoints" / f"{INCOMING}{step}"
        shutil.rmtree(draft, ignore_errors=True)
        names = [name for name in files if name.startswith(prefix)]
        self._bucket.get({name: draft / name.removeprefix(prefix) for name in names})
        try:
            verify_manifest(draft, step)
        except DamagedCheckpointError as error:
            shutil.rmtree(draft, ignore_errors=True)
            self._damaged.add(step)
            warnings.warn(f"damaged checkpoint in {self.address}: {error}", stacklevel=2)
            return False
        if (place := draft.with_name(str(step))).exists():
            say(f"{place} is damaged, and the bucket has it; kept as {set_aside(place)}")
        draft.rename(place)
        return True

    def _is_intact(self, step: int) -> bool:
        """Whether a local checkpoint has the content that was written; FileNotFoundError if gone.

        A damaged one must not be uploaded, where it would supersede intact ones.
        """
        folder = self.root / "checkpoints" / str(step)
        known = step, _state(folder / NAME)
        if known not in self._verified:
            try:
                verify_manifest(folder, step)
                self._verified[known] = True
            except DamagedCheckpointError as error:
                if not folder.exists():
                    raise FileNotFoundError(f"{folder} was removed") from error
                self._verified[known] = False
                warnings.warn(f"damaged checkpoint, not uploaded: {error}", stacklevel=2)
        return self._verified[known]

    def _renew(self) -> None:
        """Renews the lock; if it is lost, training stops."""
        assert self._lock is not None
        while not self._ended.wait(bucket_lock.LEASE / 3):
            try:
                self._lock.renew()
            except RunDirectoryError as error:
                return self._give_up(error)
            except BucketError:
                pass  # renewed again later; the upload reports such errors

    def _give_up(self, error: RunDirectoryError) -> None:
        self._lost = error
        self._stop.signal = self._stop.signal or signal.SIGTERM

    def _push_all(self) -> None:
        tries = 0
        while not self._ending.wait(min(60.0, POLL_SECONDS * 2**tries) if tries else POLL_SECONDS):
            tries = 0 if self._try_to_push(first=not tries) else min(tries + 1, 6)
        for pause in (0, 1, 3):
            time.sleep(pause)
            self._logs_due = 0.0
            if self._try_to_push(first=False):
                return

    def _try_to_push(self, first: bool) -> bool:
        try:
            self._push()
            self._failed = None
            return True
        except FileNotFoundError as error:  # training has removed it meanwhile: not all is up
            self._failed = BucketError(f"A file went away while it was uploaded: {error}.")
        except RunDirectoryError as error:
            self._give_up(error)
        except BucketError as error:
            self._failed = error
            if first:
                say(f"warning: {error} Training goes on, and uploads are tried again.")
        except Exception as error:  # noqa: BLE001 - a thread's error must not be lost
            self._failed = BucketError(f"{type(error).__name__}: {error}")
        return False

    def _push(self) -> None:
        """Uploads what the bucket lacks, newest checkpoint first, and removes old checkpoints."""
        intact = self._up - self._damaged  # a damaged one supersedes no other
        local = [step for step in complete_steps(self.root / "checkpoints") if step not in intact]
        if self._lost is not None:
            return
        new = []
        for step in local:
            with contextlib.suppress(FileNotFoundError):  # training removes it
                new += [step] * self._is_intact(step)
        if new or time.monotonic() >= self._logs_due:
            # It may have been suspended, or without network, for longer than the lock lasts.
            assert self._lock is not None
            self._lock.check()
            # Before the manifest: a run that continues from a checkpoint needs the log up to it.
            self._push_small()
            self._logs_due = time.monotonic() + LOG_SECONDS
        # Newest first. Checkpoints that would be removed at once are not uploaded.
        gone = superseded(sorted({*new, *intact}), *self._keep)
        for step in reversed([step for step in new if step not in gone]):
            # One that training removes meanwhile, or that lacks its manifest, stops no other.
            with contextlib.suppress(FileNotFoundError):
                self._push_step(step)
        for step in superseded(sorted(self._up - self._damaged), *self._keep):
            prefix = f"checkpoints/{step}/"
            names = self._bucket.files(prefix.rstrip("/"))
            self._bucket.remove([f"{prefix}{NAME}"])
            self._bucket.remove([name for name in names if name != f"{prefix}{NAME}"])
            self._up.discard(step)

    def _small(self) -> dict[str, Path]:
        """All files of the run except checkpoints; sizes and times show which ones changed."""
        tops = [path for path in self.root.iterdir() if path.name != "checkpoints"]
        paths = [path for top in tops for path in (top, *top.rglob("*"))]
        named = {path.relative_to(self.root).as_posix(): path for path in paths if path.is_file()}
        return {name: path for name, path in named.items() if not buckets.is_hidden(name)}

    def _push_small(self) -> None:
        found = self._small()
        states = {name: _state(path) for name, path in found.items()}
        changed = {n: p for n, p in found.items() if states[n] != self._sent.get(n)}
        if changed:
            self._bucket.put(changed)
            self._sent |= {name: states[name] for name in changed}

    def _push_step(self, step: int) -> None:
        prefix, folder = f"checkpoints/{step}/", self.root / "checkpoints" / str(step)
        names = list(read_json_object(folder / NAME)["files"])
        if step in self._damaged:
            self._bucket.remove([f"{prefix}{NAME}"])
        try:
            self._bucket.put({prefix + name: folder / name for name in names})
            self._bucket.put({prefix + NAME: folder / NAME})
        except FileNotFoundError:
            self._bucket.remove(list(self._bucket.files(prefix.rstrip("/"))))
            raise
        self._up.add(step)
        self._damaged.discard(step)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
