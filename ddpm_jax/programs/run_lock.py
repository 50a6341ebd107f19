"""One writer per run directory, on any file system and operating system.

The kernel's lock (`flock`; on Windows `msvcrt.locking`) ends with its process. Some file systems
have none (Lustre by default, some of NFS and FUSE); there a file that names host and process, made
by one atomic call, stands in its place. What a killed process leaves of it is taken over on the
same host, where it can be seen that the process is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import uuid
import warnings
from pathlib import Path
from typing import IO

from ddpm_jax.files import parse_json_object, write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # everywhere else
    msvcrt = None

HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)


class InUseError(RuntimeError):
    """The lock is another process's, which the message names."""


class RunLock:
    """The lock of a folder, held from `acquire` to `release` or the end of the process."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._open: IO[str] | None = None
        self._content = ""
        self._guarding = False

    @property
    def _file(self) -> Path:
        return self._folder / ".lock"

    @property
    def _guard(self) -> Path:
        return self._folder / ".lock-holder"

    def acquire(self) -> None:
        """Takes the lock; InUseError where it is held, OSError where the folder cannot be used."""
        lock = self._file.open("a+", encoding="utf-8")
        try:
            _lock(lock)
        except OSError as error:
            if error.errno in HELD:
                holder = _holder(lock)
                lock.close()
                raise InUseError(f"process {holder}") from error
            try:
                self._take_guard()
            except BaseException:
                lock.close()
                raise
            warnings.warn(
                f"the file system of {self._file.parent} has no locks ({error.strerror}); "
                f"{self._guard.name} in it guards the folder instead.",
                stacklevel=4,
            )
        lock.seek(0)
        lock.truncate()
        # The second line tells this lock from one that another process makes under this name later.
        self._content = f"{os.getpid()} on {socket.gethostname()}\n{uuid.uuid4().hex}\n"
        lock.write(self._content)
        lock.flush()
        self._open = lock

    def folder(self) -> Path | None:
        """Where the folder is now; None if it is gone, or its lock is another's.

        A folder may be moved while it is locked, and another take its name. Where a moved one is
        can be known on Linux alone.
        """
        if self._open is None:
            return self._folder
        files = [self._file]
        with contextlib.suppress(OSError):
            files.append(Path(os.readlink(f"/proc/self/fd/{self._open.fileno()}")))
        for file in files:
            with contextlib.suppress(OSError, ValueError):
                if file.name == ".lock" and file.read_text(encoding="utf-8") == self._content:
                    self._folder = file.parent
                    return self._folder
        return None

    def release(self) -> None:
        """Gives the lock up."""
        self._guarding &= self.folder() is not None
        if self._open is not None:
            self._open.close()
            self._open = None
        if self._guarding:
            self._guard.unlink(missing_ok=True)
            self._guarding = False

    def _take_guard(self) -> None:
        own = {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid())}
        draft = self._guard.with_name(f"{self._guard.name}.{uuid.uuid4().hex[:8]}")
        write_json(draft, own)
        try:
            for _ in range(10):
                try:
                    _place(draft, self._guard)
                    self._guarding = True
                    return
                except FileExistsError:
                    self._remove_if_left()
        finally:
            draft.unlink(missing_ok=True)
        raise InUseError("another process, which began at the same moment")

    def _remove_if_left(self) -> None:
        """Removes the guard of a process that is gone; InUseError where it may be alive."""
        try:
            seen = self._guard.read_bytes()
            guard = parse_json_object(seen)
            host, pid, began = guard["host"], guard["pid"], guard["began"]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError) as error:
            raise InUseError(
                f"a process that {self._guard} does not name ({error}); remove that file if there "
                "is none"
            ) from error
        if host != socket.gethostname():
            raise InUseError(
                f"process {pid} on {host}, or was when that was killed; remove {self._guard} if it "
                "is gone"
            )
        if type(pid) is not int or _is_alive(pid, began):
            raise InUseError(f"process {pid} on {host}")
        aside = self._guard.with_name(f"{self._guard.name}.{uuid.uuid4().hex[:8]}")
        try:
            os.rename(self._guard, aside)
        except FileNotFoundError:
            return
        # Another process may have replaced it since it was read: then it is that one's.
        if aside.read_bytes() != seen:
            os.replace(aside, self._guard)
            raise InUseError("another process, which began at the same moment")
        aside.unlink()


def _place(draft: Path, path: Path) -> None:
    """Gives a file its name; FileExistsError where there is one already."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links either
        path.open("x", encoding="utf-8").close()
        os.replace(draft, path)


def _lock(file: IO[str]) -> None:
    """Locks an open file, or raises OSError at once."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        # Far behind the text, which a locked byte would keep from being read.
        file.seek(1 << 30)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _holder(file: IO[str]) -> str:
    try:
        file.seek(0)
        return file.readline().strip() or "unknown"
    except (OSError, ValueError):
        return "unknown"


def _began(pid: int) -> str | None:
    """When a process began, in its system's own terms; None where that cannot be known."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {after_name.split()[19]}"
    except (OSError, IndexError):
        return None


def _is_alive(pid: int, began: str | None) -> bool:
    now = _began(pid)
    if began is not None and now is not None:
        return began == now
    if os.name == "nt":
        return True  # there `os.kill` with signal 0 would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
