"""A watchdog: ends a process that makes no progress and reports where it hangs.

A device, a collective or a file system that hangs raises nothing; the job would occupy its machine
until somebody notices. The watchdog ends it with an exit code of its own, so that a supervisor can
restart the program: training resumes from its newest checkpoint.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: a temporary failure; trying again may help."""


class Watchdog:
    """Ends the process if it sends no beat for too long; a context manager.

        with Watchdog(1800, folder) as watchdog:
            for step in range(num_steps):
                watchdog.beat(step, "the data")
                ...
                with watchdog.paused():
                    sample()

    It then writes what the process was waiting for, and the Python stacks of all threads, to
    `<folder>/hang-<step>.txt` and to standard error, and calls `end(75)`. Nothing is cleaned up,
    since a hanging thread cannot do so.

    Args:
        timeout: seconds without a beat; 0 for no watchdog.
        folder: where the report goes.
        name: the name of this process among several, part of the report's file name.
        end: ends the process. By default `os._exit`: an exception in this thread would not end it.

    Raises ValueError for a negative timeout.
    """

    def __init__(
        self,
        timeout: float,
        folder: str | Path,
        *,
        name: str = "",
        end: Callable[[int], object] = os._exit,
    ):
        if not 0 <= timeout < threading.TIMEOUT_MAX / 2:
            raise ValueError(
                f"Watchdog needs a timeout in seconds, 0 for no watchdog, got {timeout}."
            )
        self.timeout, self.folder = timeout, Path(folder)
        self._name, self._end = name, end
        self._step, self._waiting_for = 0, "the start"
        self._heard = time.monotonic()
        self._pauses = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        self._heard = time.monotonic()
        if self.timeout:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def beat(self, step: int, waiting_for: str) -> None:
        """Reports progress: the process is at `step` and now waits for `waiting_for`."""
        self._step, self._waiting_for = step, waiting_for
        self._heard = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Suspends the watch for work that may take long, such as compiling and sampling."""
        self._pauses += 1
        try:
            yield
        finally:
            # In this order: otherwise the watchdog could wake between the two.
            self._heard = time.monotonic()
            self._pauses -= 1

    def _watch(self) -> None:
        stderr = _with_descriptor(sys.stderr)
        try:
            while True:
                if stderr is not None:
                    # The second safety net: a timer in C, which exits with 1. It covers a library
                    # that hangs while it holds Python's lock, and a file system on which the report
                    # hangs too.
                    faulthandler.dump_traceback_later(2 * self.timeout, exit=True, file=stderr)
                left = self.timeout - (time.monotonic() - self._heard)
                if left <= 0 and not self._pauses:
                    return self._report_and_exit()
                if self._over.wait(min(max(left, 0.05), self.timeout / 4)):
                    return
        finally:
            if stderr is not None:
                faulthandler.cancel_dump_traceback_later()

    def _report_and_exit(self) -> None:
        name = f"hang-{self._step}-{self._name}" if self._name else f"hang-{self._step}"
        path = self.folder / f"{name}.txt"
        message = (
            f"no progress for {self.timeout:g} s at step {self._step:,}, waiting for "
            f"{self._waiting_for}. Ending with exit code {EXIT_CODE}; the same command "
            "continues from the newest checkpoint."
        )
        try:
            with path.open("w", encoding="utf-8") as file:
                file.write(message + "\n\n")
                file.flush()
                faulthandler.dump_traceback(file)
            message += f" The stacks of all threads are in {path}."
        except OSError as error:
            message += f" {path} could not be written ({error.strerror})."
        # Where nobody reads it, the stream may also be None.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            print(f"\nerror: {message}", file=sys.stderr, flush=True)
            stderr = _with_descriptor(sys.stderr)
            if stderr is not None:
                faulthandler.dump_traceback(stderr)
            sys.stdout.flush()
        self._end(EXIT_CODE)


def _with_descriptor(stream):
    """The stream if it has a file descriptor, which faulthandler writes to; else None."""
    try:
        stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None
    return stream
