"""Whether a PNG has all the rows that its header says.

Pillow raises for a file that is cut off, but where the compressed stream ends early by itself, it
leaves the rows that are missing black, without a word.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

_VALUES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by the header's type of colour
# First column and row of each pass of an interlaced image, and the steps between them.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
_PASSES = (*_PASSES, (0, 1, 1, 2))


def check_rows(opened: Any, source: Path | bytes) -> None:
    """Raises ValueError where an image, opened from `source`, is a PNG with rows missing.

    The stream is looked through only where the last rows are black or transparent throughout: else
    they were there, and those before them too.
    """
    width, height = opened.size
    last = (opened.crop((0, y, width, y + 1)) for y in range(max(0, height - 2), height))
    if opened.format != "PNG" or all(row.getbbox() is not None for row in last):
        return
    content = source if isinstance(source, bytes) else source.read_bytes()
    _, _, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    bits = depth * _VALUES[colour]
    needed = 0
    for x, y, step_x, step_y in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        needed += max(0, rows) * (1 + -(-columns * bits // 8)) if columns > 0 else 0
    if (held := _inflated(content, needed)) < needed:
        raise ValueError(f"it has {held:,} bytes of pixels, and its header says {needed:,}")


def _inflated(content: bytes, most: int) -> int:
    """How many bytes the stream of pixels has, counted up to `most`."""
    stream, at, found = zlib.decompressobj(), 8, 0
    while at + 8 <= len(content) and found < most and not stream.eof:
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        piece = content[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        while piece and found < most and not stream.eof:
            found += len(stream.decompress(piece, 1 << 20))
            piece = stream.unconsumed_tail
        at += 12 + length
    # What was held back, as the last piece gave more than was asked for at once.
    while found < most and not stream.eof and (more := stream.decompress(b"", 1 << 20)):
        found += len(more)
    return found
