"""Reading tar and gzip files within limits, without extracting anything to disk."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, cast

MAX_MEMBERS = 1000
MAX_READ = 1 << 25
"""Bytes that are read at once, unless an archive is known to have larger files."""
DAMAGE = (OSError, EOFError, zlib.error, tarfile.TarError, RecursionError)
"""What damaged streams raise: bad headers, check sums or codes, early ends, headers in headers."""


def open_plain_or_gzip(file: Path) -> BinaryIO:
    """Opens `file` for reading, decompressing it if its first two bytes are gzip's."""
    with open(file, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(file, "rb")) if zipped else open(file, "rb")


class _Limited(io.RawIOBase):
    """A stream that refuses large reads: tarfile reads headers of any size that they claim."""

    def __init__(self, stream: BinaryIO, max_bytes: int) -> None:
        self._stream, self._max_bytes = stream, max_bytes

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._max_bytes:
            raise ValueError(f"a header claims {size:,} bytes")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def read_members(
    stream: BinaryIO, names: Collection[str], max_bytes: int = MAX_READ
) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of the members of a tar archive that have these names.

    Reads the stream to its end, where gzip keeps its check sum. No member, wanted or not, may have
    more than `max_bytes`. Raises one of `DAMAGE`, or
    ValueError for a name that occurs twice or is not a regular file, and for anything too large.
    """
    found = set()
    with tarfile.open(fileobj=cast(BinaryIO, _Limited(stream, max_bytes)), mode="r:") as archive:
        for count, member in enumerate(archive):
            if count == MAX_MEMBERS or not 0 <= member.size <= max_bytes:
                raise ValueError(f"{member.name!r}, member {count}, claims {member.size:,} bytes")
            name = member.name.removeprefix("./")
            if name not in names:
                continue
            if name in found:
                raise ValueError(f"{name!r} occurs twice")
            if not member.isreg():
                raise ValueError(f"{name!r} is not a regular file")
            found.add(name)
            content = archive.extractfile(member)
            assert content is not None  # of a regular file
            yield name, content.read(member.size)
    for _ in range(128):
        if not stream.read(1 << 20):
            return
    raise ValueError("it goes on after the end of the archive")
