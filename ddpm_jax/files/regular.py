"""Regular files: not a pipe that never answers, nor a device that never ends."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def check_regular(path: Path) -> os.stat_result:
    """Returns what the system says of a regular file, links followed, before it is opened.

    Raises OSError naming the file where it is none, or cannot be looked at.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError(f"{path} is no regular file but a {_kind(about.st_mode)}; remove it.")
    return about


def read_regular(path: Path, most: int) -> bytes:
    """Reads a regular file of at most so many bytes.

    Raises OSError naming the file where it is none or cannot be read, ValueError for a larger one.
    """
    check_regular(path)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than the {most:,} bytes that such a file may have")
    return content


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "folder"
    return "pipe" if stat.S_ISFIFO(mode) else "device or socket"
