"""What a run writes as it goes: one JSON line a record, and the same numbers for TensorBoard.

A disk that is full for a while costs a warning, and no record: what cannot be written is kept in
memory, and follows in order as soon as there is room again.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
import warnings
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from tensorboardX.record_writer import masked_crc32c

from ddpm_jax.files import check_regular, write_atomically


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, [] when there is none; a last line cut short by a kill is
    left out.

    A record is an object with a text `kind` and a whole number `step`, where it has them. Raises
    ValueError naming file and line for anything else, OSError for what is no regular file.
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
                raise TypeError("a record is an object")
            if type(record.get("step", 0)) is not int or type(record.get("kind", "")) is not str:
                raise TypeError("its kind is no text, or its step no whole number")
        except (ValueError, TypeError, RecursionError) as error:
            if number == len(lines) and isinstance(error, ValueError):
                break
            raise ValueError(
                f"{path}, line {number} is no record ({error}): {line[:80]!r}"
            ) from error
        records.append(record)
    return records


class Appender:
    """Appends pieces of bytes to a file, each whole or not at all, and never raises OSError.

    A piece that does not fit is cut off the file again and kept, with those after it, until one
    write succeeds; a warning says when that begins and when it is over. Pieces reach the operating
    system at once: a killed process loses none.

    Args:
        path: the file, made if it is not there.

    Raises OSError when the file cannot be opened.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = self.path.open("ab", buffering=0)
        self._whole = self._file.tell()
        self._kept: list[bytes] = []
        self._complained = False

    def append(self, piece: bytes, what: str = "a record") -> None:
        """Writes a piece, and those kept before it; `what` it is goes into the warning."""
        self._kept.append(piece)
        try:
            self._write_kept()
        except OSError as error:
            if not self._complained:
                self._complained = True
                warnings.warn(
                    f"{what} could not be written to {self.path} ({error.strerror}). It is kept in "
                    "memory, with what follows, until there is room.",
                    stacklevel=2,
                )
            return
        if self._complained:
            self._complained = False
            warnings.warn(
                f"{self.path} can be written again, up to {what}; nothing is missing.", stacklevel=2
            )

    def close(self) -> None:
        """Tries once more to write what is kept; a warning says what is lost otherwise."""
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
            # Half a record would be in the way of the next one. Cutting it off takes no room.
            os.ftruncate(self._file.fileno(), self._whole)
            raise
        self._whole += size
        self._kept.clear()


class RunLog:
    """Appends records to `<folder>/log.jsonl` and scalars to `<folder>/tensorboard/`; a context
    manager.

    Opened at the step a run resumes from, it drops what an earlier, killed process wrote beyond
    that step, so that the log of an interrupted run reads as that of an uninterrupted one.

    Raises OSError when the folder cannot be written at the start; later that is only warned of.
    """

    def __init__(self, folder: str | Path, resume_step: int = 0):
        self.path = Path(folder) / "log.jsonl"
        kept = [record for record in read_jsonl(self.path) if record.get("step", 0) <= resume_step]
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._lines = Appender(self.path)
        board = Path(folder) / "tensorboard"
        board.mkdir(exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names, by second.
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._events = Appender(board / name)
        start = SessionLog(status=SessionLog.START)
        first = resume_step + 1
        self._events.append(
            _event(file_version="brain.Event:2")
            # What an earlier process wrote from here on is not shown.
            + _event(step=first, file_version="brain.Event:2")
            + _event(step=first, session_log=start)
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exc_info) -> None:
        self._lines.close()
        self._events.close()

    def has(self, kind: str, step: int) -> bool:
        """Whether there is a record of this kind at this step."""
        return any(r["kind"] == kind and r["step"] == step for r in read_jsonl(self.path))

    def write(self, kind: str, step: int, **values: float) -> None:
        """Writes one record of this kind ("train", "heldout", …) at this step."""
        what = f"the record of step {step}"
        record = json.dumps({"kind": kind, "step": step, **values}) + "\n"
        self._lines.append(record.encode(), what)
        scalars = [Summary.Value(tag=f"{kind}/{n}", simple_value=v) for n, v in values.items()]
        self._events.append(
            b"".join(_event(step=step, summary=Summary(value=[scalar])) for scalar in scalars), what
        )


class NoLog:
    """The log of a process that does not write one: not the first of several."""

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *exc_info) -> None:
        pass

    def has(self, kind: str, step: int) -> bool:
        """There is no record."""
        return False

    def write(self, kind: str, step: int, **values: float) -> None:
        """Writes nothing."""


def _event(**fields: Any) -> bytes:
    """One TensorBoard event as a record of its file: length and bytes, each with its check sum."""
    # tensorboardX's own writer is not used: its thread dies on a full disk, and the queue to it,
    # of ten places, then holds up training for good.
    body = Event(wall_time=time.time(), **fields).SerializeToString()
    length = struct.pack("<Q", len(body))
    check = [struct.pack("<I", masked_crc32c(part)) for part in (length, body)]
    return length + check[0] + body + check[1]
