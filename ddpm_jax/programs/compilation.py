"""Compiling in the background, so that a stop need not wait, and the cache of compiled programs."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import platform
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import jax

from ddpm_jax.data.cache import cache_root
from ddpm_jax.devices import processes
from ddpm_jax.programs.console import is_program
from ddpm_jax.training import StopRequest

T = TypeVar("T")
THREAD = "compile"


def is_compiling() -> bool:
    """Whether a thread of `in_background` is still inside the compiler."""
    return any(thread.name.startswith(THREAD) for thread in threading.enumerate())


class CompilationStopped(KeyboardInterrupt):
    """A signal arrived while something was being compiled.

    The compiler cannot be interrupted: it continues in a background thread, and the interpreter
    waits for it at exit. A program that has nothing else to do may use `os._exit`.
    """


def in_background(compile_: Callable[[], T]) -> Callable[[StopRequest], T]:
    """Starts `compile_()` in another thread; the returned function waits for its result.

    It raises what `compile_` raised, and CompilationStopped as soon as the given stop is requested;
    of several processes none does, so that none leaves the others waiting, and they stop after the
    first step.
    """
    executor = ThreadPoolExecutor(1, THREAD)
    future = executor.submit(compile_)
    # Its thread then ends with its work. The interpreter waits for that: it would abort otherwise.
    executor.shutdown(wait=False)

    def result(stop: StopRequest) -> T:
        while not future.done():
            wait([future], timeout=0.1)
            if processes.num_processes() == 1 and stop() and not future.done():
                raise CompilationStopped(
                    "stopped while compiling; nothing was lost, the same command goes on"
                )
        return future.result()

    return result


MAX_KEPT_BYTES = 2**30
"""Size limit of the cache; the least recently used programs are removed first."""


def keep_compiled_programs() -> None:
    """Keeps JAX's compiled programs in the user's cache folder, for the next start.

    Call this before JAX compiles. It does nothing outside of a program (`run_program`), if the user
    has set JAX's own options (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE), or if other
    users may write to the folder: they could run code as the user.
    """
    if not is_program() or jax.config.jax_compilation_cache_dir:  # pyright: ignore
        return
    # Programs are compiled for one CPU model, and machines may share a home folder.
    folder = cache_root() / "compiled" / hashlib.sha256(_cpu().encode()).hexdigest()[:12]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
        own = not hasattr(os, "getuid") or about.st_uid == os.getuid()
        if not own or (os.name == "posix" and about.st_mode & 0o022):
            return
        _remove_oldest(folder)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Small programs, too: compiling one takes 14 ms, reading it 2.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def forget_damaged_program(warning: str) -> bool:
    """Removes the programs that a warning of JAX names as unreadable; False for other warnings.

    A kill can leave a truncated file. JAX then compiles again, but does not replace the file.
    """
    named = re.search(r"reading persistent compilation cache entry for '([\w<>.-]+)'", warning)
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore
    if named is None or not folder:
        return False
    with contextlib.suppress(OSError):
        for path in Path(folder).glob(f"{glob.escape(named[1])}-*"):
            path.unlink(missing_ok=True)
    return True


def _cpu() -> str:
    """A text that identifies the CPU model."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        told = [line for line in lines if line.split(":")[0].strip() in ("model name", "flags")]
        if told:
            return "\n".join(sorted(set(told)))
    return f"{platform.machine()} {platform.processor()}"


def _remove_oldest(folder: Path) -> None:
    """Removes the least recently used files until at most MAX_KEPT_BYTES are left."""
    files = [(path, path.stat()) for path in folder.iterdir() if path.is_file()]
    total = sum(about.st_size for _, about in files)
    for path, about in sorted(files, key=lambda file: max(file[1].st_atime, file[1].st_mtime)):
        if total <= MAX_KEPT_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= about.st_size
