"""Reading files that may be gzipped, with one name for all the ways they can be damaged."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, cast

DAMAGE = (OSError, EOFError, zlib.error)
"""What reading a damaged gzip stream raises: a bad header or CRC, an early end, bad codes."""


def open_plain_or_gzip(file: Path) -> BinaryIO:
    """Opens `file` for reading, decompressing it if its first two bytes are gzip's."""
    with open(file, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(file, "rb")) if zipped else open(file, "rb")
