"""The logs of a run: one JSON line per record, and the same numbers for TensorBoard.

If the disk is full for a while, a warning is given and no record is lost: what cannot be written is
kept in memory and written in order once there is room again.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from tensorboardX.record_writer import masked_crc32c

from ddpm_jax.files import check_regular, write_atomically


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, without a last line cut short by a kill; [] for no file.

    A record is an object; its `kind`, if any, is a string and its `step` an integer. Raises
    ValueError naming file and line for anything else, OSError for a file that is not regular.
    """
    path = Path(path)
    if not path.exists():
        return []
    check_regular(path)
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            break
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise TypeError("a record must be an object")
            if type(record.get("step", 0)) is not int or type(record.get("kind", "")) is not str:
                raise TypeError("its kind must be a string and its step an integer")
        except (ValueError, TypeError, RecursionError) as error:
            if number == len(lines) and isinstance(error, ValueError):
                break
            raise ValueError(
                f"{path}, line {number} is not a record ({error}): {line[:80]!r}"
            ) from error
        records.append(record)
    return records


class Appender:
    """Appends pieces of bytes to a file, each whole or not at all, and never raises OSError.

    A piece that does not fit is removed from the file and kept, with those after it, until a write
    succeeds; warnings mark the beginning and the end. Pieces reach the operating system at once: a
    killed process loses none.

    Args:
        path: the file, created if it does not exist.

    Raises OSError if the file cannot be opened.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = self.path.open("ab", buffering=0)
        self._whole = self._file.tell()
        self._kept: list[bytes] = []
        self._complained = False

    def append(self, piece: bytes, what: str = "a record") -> None:
        """Writes a piece after those kept before it; `what` names it in a warning."""
        self._kept.append(piece)
        try:
            self._write_kept()
        except OSError as error:
            if not self._complained:
                self._complained = True
                warnings.warn(
                    f"{what} could not be written to {self.path} ({error.strerror}). It and "
                    "later ones are kept in memory until there is room.",
                    stacklevel=2,
                )
            return
        if self._complained:
            self._complained = False
            warnings.warn(
                f"{self.path} is written again, up to {what}; nothing is missing.", stacklevel=2
            )

    def close(self) -> None:
        """Tries once more to write what is kept; if that fails, warns of what is lost."""
        try:
            self._write_kept()
        except OSError as error:
            warnings.warn(
                f"the last {len(self._kept):,} records are missing from {self.path} "
                f"({error.strerror}).",
                stacklevel=2,
            )
        self._file.close()

    def _write_kept(self) -> None:
        rest = memoryview(b"".join(self._kept))
        size = len(rest)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            # Half a record would spoil the next one. Truncating the file needs no space.
            os.ftruncate(self._file.fileno(), self._whole)
            raise
        self._whole += size
        self._kept.clear()


class RunLog:
    """Context manager that writes `<folder>/log.jsonl` and scalars to `<folder>/tensorboard/`.

    Opened at the step from which a run resumes, it drops what an earlier, killed process wrote
    beyond that step, so that the log of an interrupted run equals that of an uninterrupted one.

    `on_record(kind, step, values)` is called with every record after it is written.

    Raises OSError if the folder cannot be written at the start; later failures only give warnings.
    """

    def __init__(
        self,
        folder: str | Path,
        resume_step: int = 0,
        on_record: Callable[[str, int, dict[str, float]], object] = lambda *record: None,
    ):
        self.path = Path(folder) / "log.jsonl"
        self._on_record = on_record
        kept = [record for record in read_jsonl(self.path) if record.get("step", 0) <= resume_step]
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._lines = Appender(self.path)
        board = Path(folder) / "tensorboard"
        board.mkdir(exist_ok=True)
        self._events = Appender(board / _events_name(board))
        start = SessionLog(status=SessionLog.START)
        first = resume_step + 1
        self._events.append(
            _event(file_version="brain.Event:2")
            # TensorBoard hides what an earlier process wrote from this step on.
            + _event(step=first, file_version="brain.Event:2")
            + _event(step=first, session_log=start)
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exc_info) -> None:
        self._lines.close()
        self._events.close()

    def write(self, kind: str, step: int, **values: float) -> None:
        """Writes one record of this kind ("train", "heldout", …) at this step."""
        what = f"the record of step {step}"
        record = json.dumps({"kind": kind, "step": step, **values}) + "\n"
        self._lines.append(record.encode(), what)
        scalars = [Summary.Value(tag=f"{kind}/{n}", simple_value=v) for n, v in values.items()]
        self._events.append(
            b"".join(_event(step=step, summary=Summary(value=[scalar])) for scalar in scalars), what
        )
        self._on_record(kind, step, values)


class NoLog:
    """The log of a process that writes none: all but the first of several."""

    def write(self, kind: str, step: int, **values: float) -> None:
        """Writes nothing."""


def _events_name(board: Path) -> str:
    """The name of the next file of events.

    TensorBoard reads the files of a folder in the order of their names, which begin with the time.
    The clock may have been set back since the last one, or the run may have moved to a machine
    whose clock is behind.
    """
    parts = (path.name.split(".") for path in board.glob("events.out.tfevents.*"))
    times = (int(part[3]) for part in parts if part[3].isdecimal())
    begun = max([round(time.time()), *(one + 1 for one in times)])
    return f"events.out.tfevents.{begun}.{socket.gethostname()}.{os.getpid()}"


def _event(**fields: Any) -> bytes:
    """One TensorBoard event as a record of its file: length and bytes, each with its checksum."""
    # tensorboardX's own writer is not used: its thread dies on a full disk, and once its queue of
    # ten entries is full, training blocks forever.
    body = Event(wall_time=time.time(), **fields).SerializeToString()
    length = struct.pack("<Q", len(body))
    check = [struct.pack("<I", masked_crc32c(part)) for part in (length, body)]
    return length + check[0] + body + check[1]
