"""The lock of a run in a bucket: one writer, without the kernel's file locks.

The lock is a file `.lock/N.json` made by a conditional put, which succeeds for only one process.
Its holder renews the file. A process that finds it unchanged for `LEASE` seconds, by its own clock,
makes N + 1; the holder of N stops if it still runs. N only grows, so a suspended process cannot
mistake a later lock for its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from typing import Any

from ddpm_jax.files import parse_json_object
from ddpm_jax.programs.bucket_files import Bucket, BucketError
from ddpm_jax.programs.console import say
from ddpm_jax.programs.run_directory import RunDirectoryError

LEASE = 60.0
"""Seconds without a renewal after which a lock is taken over."""


class Lock:
    """The lock of a run in a bucket, held from `acquire` to `release` or `LEASE` after the end."""

    def __init__(self, bucket: Bucket, owner: str):
        self._bucket, self._owner, self._number, self._beats = bucket, owner, 0, 0
        self.run = uuid.uuid4().hex
        """Identifies the run in the bucket; it changes if the run's files were removed."""

    def acquire(self) -> None:
        """Takes the lock; waits `LEASE` seconds first if another process seems to hold it.

        Raises RunDirectoryError if that process renews the lock meanwhile.
        """
        while True:
            numbers = self._numbers()
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                if numbers:
                    seen = self._bucket.read(_name(numbers[-1]))
                    about = _parsed(seen)
                    if not about.get("free") and about.get("owner") != self._owner:
                        self._outlast(numbers[-1], seen, about)
                    self.run = about.get("run", self.run)
                self._number = numbers[-1] + 1 if numbers else 1
                self._bucket.create(_name(self._number), self._content())
                break
        try:
            self._bucket.create(_name(self._number), self._content())
        except FileExistsError:
            self._bucket.remove([_name(number) for number in numbers])
            return
        raise BucketError(
            f"{self._bucket.address}: its file system has no conditional put, so two processes "
            "could write one run. Use a local --run-dir, and copy it when the run has ended."
        )

    def _outlast(self, number: int, seen: bytes, about: dict[str, Any]) -> None:
        """Waits until the lock is surely abandoned; RunDirectoryError as soon as it is renewed."""
        who = f"process {about.get('pid', '?')} on {about.get('host', '?')}"
        say(f"{self._bucket.address} was last used by {who}; waiting {LEASE:g} s to see if it runs")
        end = time.monotonic() + LEASE
        expired = False
        while not expired:
            expired = time.monotonic() >= end  # before the read that decides
            time.sleep(min(1.0, LEASE / 10))
            now = self._bucket.read(_name(number))
            if now != seen and not _parsed(now).get("free"):
                raise RunDirectoryError(
                    f"the run directory {self._bucket.address} is in use by {who}. Wait for it, "
                    "stop it (it saves on SIGTERM), or choose another with --run-dir."
                )
            if now != seen:
                return

    def check(self) -> None:
        """Raises RunDirectoryError if another process has taken the lock."""
        newest = self._numbers()[-1:]
        if newest != [self._number]:
            raise RunDirectoryError(
                f"{self._bucket.address} was not renewed for {LEASE:g} s, and another process has "
                "taken it over. This process has stopped."
            )

    def renew(self) -> None:
        """Renews the lock; RunDirectoryError if another process has taken it."""
        self.check()
        self._beats += 1
        self._bucket.write(_name(self._number), self._content())

    def release(self) -> None:
        """Marks the lock as free."""
        self._bucket.write(_name(self._number), self._content(free=True))

    def _numbers(self) -> list[int]:
        names = (name.removeprefix(".lock/") for name in self._bucket.files(".lock"))
        stems = (name.removesuffix(".json") for name in names)
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def _content(self, **more: Any) -> bytes:
        about = {"run": self.run, "owner": self._owner, "host": socket.gethostname()}
        return json.dumps({**about, "pid": os.getpid(), "beat": self._beats, **more}).encode()


def _name(number: int) -> str:
    return f".lock/{number:08d}.json"


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        return parse_json_object(content)
    except ValueError:
        return {}
