"""One writer per folder: with the kernel's lock, without it, and without fcntl."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import warnings

import pytest

from ddpm_jax.programs import run_lock
from ddpm_jax.programs.run_directory import RunDirectory, RunDirectoryError
from ddpm_jax.programs.run_lock import InUseError, RunLock

NO_LOCKS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL, errno.EIO]


@pytest.fixture
def no_locks(monkeypatch):
    """Makes flock fail with a code."""

    def fail_with(code):
        def flock(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(run_lock.fcntl, "flock", flock)

    return fail_with


def begin(folder):
    lock = RunLock(folder)
    lock.acquire()
    return lock


@pytest.mark.parametrize("code", NO_LOCKS)
def test_without_locks_a_file_guards_the_folder_and_a_warning_says_so(tmp_path, no_locks, code):
    no_locks(code)
    directory = RunDirectory(tmp_path / "run")
    with pytest.warns(UserWarning, match="has no locks .*guards the folder instead"):
        directory.acquire()
    with pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()} on "):
        RunDirectory(tmp_path / "run").acquire()
    directory.release()
    with pytest.warns(UserWarning, match="has no locks"):
        directory.acquire()
    directory.release()
    assert os.listdir(tmp_path / "run") == [".lock"]


def test_a_folder_that_is_moved_is_followed(tmp_path):
    """Also when another run has its name by now: neither writes into the other's folder."""
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    first.acquire()
    assert first.follow() == tmp_path / "run"
    (tmp_path / "run").rename(tmp_path / "old [1]")
    second.acquire()
    with pytest.warns(UserWarning, match=r"was moved to .*old \[1\]; the run goes on there"):
        assert first.follow() == tmp_path / "old [1]"
    assert first.checkpoints == tmp_path / "old [1]" / "checkpoints"
    assert second.follow() == tmp_path / "run"
    with pytest.raises(RunDirectoryError, match="in use by process"):
        RunDirectory(tmp_path / "old [1]").acquire()
    first.release()
    second.release()


@pytest.mark.parametrize("then", ["removed", "replaced", "lock removed and taken"])
def test_a_folder_that_is_lost_is_not_written(tmp_path, then):
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    first.acquire()
    if then == "lock removed and taken":
        (tmp_path / "run" / ".lock").unlink()
    else:
        shutil.rmtree(tmp_path / "run")
    if then != "removed":
        second.acquire()
    with pytest.raises(RunDirectoryError, match="moved, removed or taken over"):
        first.follow()
    first.release()
    assert second.follow() == tmp_path / "run"
    second.release()


@pytest.mark.parametrize("descriptors", [True, False])
def test_where_a_moved_folder_cannot_be_found_it_is_not_written(tmp_path, monkeypatch, descriptors):
    lock = begin(tmp_path)
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    if not descriptors:
        monkeypatch.setattr(run_lock.os, "readlink", no_link)
    assert lock.folder() == (moved if descriptors else None)
    moved.rename(tmp_path)
    assert lock.folder() == tmp_path
    lock.release()


def no_link(path):
    raise FileNotFoundError(path)


@pytest.mark.parametrize("code", run_lock.HELD)
def test_a_lock_that_is_held_is_not_mistaken_for_none(tmp_path, no_locks, code):
    (tmp_path / ".lock").write_text("77 on there\n")
    no_locks(code)
    with pytest.raises(InUseError, match="process 77 on there"):
        begin(tmp_path)
    assert os.listdir(tmp_path) == [".lock"]


def write_guard(folder, **changes):
    own = {"host": socket.gethostname(), "pid": os.getpid(), "began": run_lock._began(os.getpid())}
    (folder / ".lock-holder").write_text(json.dumps({**own, **changes}))


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("left", ["process is gone", "its number is another's now", "no start"])
def test_what_a_killed_process_left_is_taken_over(tmp_path, no_locks, left):
    no_locks(errno.ENOSYS)
    if left == "its number is another's now":
        write_guard(tmp_path, began="an earlier boot 17")
    else:
        began = {} if left == "process is gone" else {"began": None}
        write_guard(tmp_path, pid=ended_process(), **began)
    with pytest.warns(UserWarning, match="has no locks"):
        lock = begin(tmp_path)
    assert json.loads((tmp_path / ".lock-holder").read_text())["pid"] == os.getpid()
    lock.release()
    assert os.listdir(tmp_path) == [".lock"]


@pytest.mark.parametrize("what", ["another host", "alive", "no JSON", "other fields", "empty"])
def test_a_guard_whose_process_may_be_alive_is_left(tmp_path, no_locks, what):
    no_locks(errno.ENOSYS)
    write_guard(tmp_path)
    if what == "another host":
        write_guard(tmp_path, host="elsewhere")
    elif what != "alive":
        content = {"no JSON": "{", "other fields": "{}", "empty": ""}[what]
        (tmp_path / ".lock-holder").write_text(content)
    before = (tmp_path / ".lock-holder").read_bytes()
    with pytest.raises(InUseError):
        begin(tmp_path)
    assert (tmp_path / ".lock-holder").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == [".lock", ".lock-holder"]


def test_without_hard_links_the_guard_is_made_all_the_same(tmp_path, no_locks, monkeypatch):
    no_locks(errno.ENOSYS)

    def link(*_):
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", link)
    with pytest.warns(UserWarning, match="has no locks"):
        lock = begin(tmp_path)
    with pytest.raises(InUseError):
        begin(tmp_path)
    lock.release()


class Msvcrt:
    """Windows' locks, as far as they are used: of bytes, exclusive, lost with the file."""

    LK_NBLCK = 2

    def __init__(self):
        self.held = set()

    def locking(self, descriptor, mode, count):
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if place in self.held:
            raise OSError(errno.EACCES, "Permission denied")
        self.held.add(place)


def test_windows_has_its_own_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "fcntl", None)
    monkeypatch.setattr(run_lock, "msvcrt", Msvcrt())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lock = begin(tmp_path)
        with pytest.raises(InUseError, match=f"process {os.getpid()} on"):
            begin(tmp_path)
        lock.release()


def test_without_fcntl_the_programs_can_be_imported():
    code = (
        "import sys\n"
        "sys.modules['fcntl'] = None\n"
        "import ddpm_jax.programs.sample, ddpm_jax.programs.train\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
