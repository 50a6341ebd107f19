"""What an unfinished entry of the cache has decoded, found again by the next writer.

While an entry is written, the file `rows` beside its images gets one record per image: a digest of
its source, notes, and the crc32 of its pixels. A failed or killed writer leaves both files behind.
"""

from __future__ import annotations

import math
import os
import shutil
import struct
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm_jax.files import MAX_HEADER_BYTES, read_header

STALE_SECONDS = 86400.0  # partial entries and files untouched for this long are of a dead run
KEPT_SECONDS = 7 * STALE_SECONDS  # those of a run that failed are kept this long for the next one
_RECORD = struct.Struct("<16sBI")


def record_of(pixels: np.ndarray, digest: bytes, notes: int) -> bytes:
    """The record of one image; a digest of zeros stands for an image that could not be decoded."""
    return _RECORD.pack(digest, notes, zlib.crc32(pixels.data))


class Row(NamedTuple):
    """One decoded image of an unfinished entry: its pixels [H, W, C], and notes for the user."""

    pixels: np.ndarray
    notes: int


def unfinished_rows(
    root: Path, shape: tuple[int, ...], digests: set[bytes]
) -> tuple[dict[bytes, Row], list[Path]]:
    """Finds images that unfinished writers have decoded, by the digests of their sources.

    shape    [N, H, W, C]; only images [H, W, C] are found

    Also returns the folders of failed writers (not of running ones) that have any of them.
    """
    found: dict[bytes, Row] = {}
    failed = []
    for folder in sorted((*root.glob(".*.kept"), *root.glob(".*.partial"))):
        before = len(found)
        try:
            records = _records(folder)
            with open(folder / "images.npy", "rb") as file:
                header = read_header(file.read(MAX_HEADER_BYTES))
                size = file.seek(0, os.SEEK_END) - header.size
            count = min(size // math.prod(shape[1:]), len(records) // _RECORD.size)
            if header.shape[1:] != tuple(shape[1:]) or not count:
                continue
            stored = (count, *shape[1:])
            images = np.memmap(folder / "images.npy", np.uint8, "r", header.size, stored)
        except (OSError, ValueError):
            continue
        whole = records[: count * _RECORD.size]
        for pixels, (digest, notes, crc) in zip(images, _RECORD.iter_unpack(whole), strict=True):
            if digest in digests and digest not in found and zlib.crc32(pixels.data) == crc:
                found[digest] = Row(pixels, notes)
        if len(found) > before and folder.suffix == ".kept":
            failed.append(folder)
    return found, failed


def num_rows(folder: Path) -> int:
    """How many decoded images an unfinished entry has; those that failed have digests of zeros."""
    try:
        return sum(any(digest) for digest, _, _ in _RECORD.iter_unpack(_records(folder)))
    except OSError:
        return 0


def remove_stale(root: Path) -> None:
    """Removes the remains of entries and downloads whose process died or failed long ago.

    A live process writes to its own every few seconds: a download that stalls for half a minute
    has failed.
    """
    for ending, limit in ("partial", STALE_SECONDS), ("old", STALE_SECONDS), ("kept", KEPT_SECONDS):
        # Names with a writer's 32 digits alone: a .venv.old of the user's may lie there, too.
        for left in root.glob(f".*.{'[0-9a-f]' * 32}.{ending}"):
            try:
                inside = left.iterdir() if left.is_dir() else ()
                ages = [time.time() - file.stat().st_mtime for file in (left, *inside)]
                if min(ages) <= limit:
                    continue
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()
            except OSError:
                continue


def _records(folder: Path) -> bytes:
    """The records of an unfinished entry, without a last one that was cut short."""
    content = (folder / "rows").read_bytes()
    return content[: len(content) // _RECORD.size * _RECORD.size]
