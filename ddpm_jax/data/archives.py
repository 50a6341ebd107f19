"""The members of a tar archive, read from a stream in order, without extracting anything.

Of tarfile only the reader of one header is used. Its archives take memory for whatever an extension
of a header claims to be, and call themselves for every extension in a row: a small file could end
the program. Here no more is read at once than a file may have that is asked for.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MOST_MEMBERS = 1000
EXTENSION_BYTES = 1 << 16  # times, owners, long names
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *_LONG_NAMES)
_RENAMING = re.compile(rb"(?:path|hdrcharset|GNU\.sparse[^=]*)=")
_RESIZING = re.compile(rb" size=(\d{1,20})\n")


class Member(NamedTuple):
    """A member: its name, its size, and whether it is a file with nothing strange about it.

    An extension that gives it another name or size, or holes, is strange: the files this reader is
    for need none.
    """

    name: str
    size: int
    plain: bool


def tar_members(stream: BinaryIO, largest: int) -> Iterator[tuple[Member, Part]]:
    """Yields the members, each with its content, to be read before the next is asked for.

    Raises tarfile.HeaderError or EOFError for a damaged archive; ValueError for a member larger
    than `largest`, or too many of them.
    """
    strange, resized = False, None
    for _ in range(MOST_MEMBERS):
        block = stream.read(tarfile.BLOCKSIZE)
        if not any(block):
            return
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        extension = header.type in _EXTENSIONS
        size = header.size if extension or resized is None else resized
        if not 0 <= size <= (EXTENSION_BYTES if extension else largest):
            raise ValueError(f"member {header.name!r} claims {size:,} bytes")
        if extension:
            content = read_exactly(stream, _padded(size))
            strange |= header.type in _LONG_NAMES or _RENAMING.search(content) is not None
            if match := _RESIZING.search(content):
                strange, resized = True, int(match[1])
            continue
        # Links, folders and devices have no content, whatever size they say.
        if header.type in tarfile.SUPPORTED_TYPES and not header.isreg():
            size = 0
        part = Part(stream, size)
        plain = header.isreg() and header.type != tarfile.GNUTYPE_SPARSE and not strange
        yield Member(header.name, size, plain), part
        part.skip()
        read_exactly(stream, _padded(size) - size)
        strange, resized = False, None
    raise ValueError(f"it has more than {MOST_MEMBERS:,} members")


def read_exactly(stream: BinaryIO, size: int) -> bytes:
    """Reads so many bytes; EOFError where there are fewer."""
    content = stream.read(size)
    if len(content) != size:
        raise EOFError("it ends within a file")
    return content


class Part:
    """The next bytes of a stream."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int) -> bytes:
        """Reads so many bytes, or as many as are left; EOFError where the stream ends before."""
        content = read_exactly(self._stream, min(size, self._left))
        self._left -= len(content)
        return content

    def skip(self) -> None:
        """Reads on to the end."""
        while self._left:
            self.read(1 << 20)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
