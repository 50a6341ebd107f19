"""Arrays in .npy and .npz files, their headers believed only as far as the file goes.

An .npy says in its header what shape its array has, and NumPy takes memory for it before it has
seen a byte of the array. An .npz may hold a thousandth of what it says it holds, or of what its
members' headers say. Here the header is read first and held against the size of the file.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from ddpm_jax.files.regular import check_regular

LONGEST_HEADER = 10_000
MOST_SWELLING = 1100
"""No deflated stream is less than a 1,032nd of what it stands for."""


class Header(NamedTuple):
    """What an .npy says of its array, and how many bytes the header itself has."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    size: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: IO[bytes]) -> Header:
    """Reads the header of an .npy and leaves the stream at the first byte of the array.

    Raises ValueError for anything but an array of plain numbers in version 1 or 2 of the format:
    objects, which are pickles, structures and text among it.
    """
    start = _exactly(stream, 8)
    if start[:6] != b"\x93NUMPY":
        raise ValueError("it does not begin as an .npy does; it may be pickled, which is not read")
    if start[6:] not in (b"\1\0", b"\2\0"):
        raise ValueError(f"its .npy version is {(start[6], start[7])}")
    start += _exactly(stream, 2 if start[6] == 1 else 4)
    length = int.from_bytes(start[8:], "little")
    if length > LONGEST_HEADER:
        raise ValueError(f"its .npy header has {length:,} bytes")
    whole = io.BytesIO(start + _exactly(stream, length))
    np.lib.format.read_magic(whole)
    read = np.lib.format.read_array_header_1_0
    read = read if start[6] == 1 else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(whole)
    except Exception as error:  # a literal of Python is parsed, which fails in many ways
        raise ValueError(f"its .npy header cannot be understood: {error}") from None
    if dtype.hasobject:
        raise ValueError(f"it holds {dtype}, a pickle, which is not read")
    if dtype.kind not in "biuf" or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"it holds no array of plain numbers but {dtype} {shape}")
    return Header(shape, fortran, dtype, whole.tell())


def map_npy(path: Path) -> np.ndarray:
    """Maps the array of an .npy file into memory, read-only.

    Raises OSError where there is no regular file; ValueError, which does not name the file, unless
    it is a header of `read_header` and exactly the bytes of its array.
    """
    size = check_regular(path).st_size
    with path.open("rb") as file:
        header = read_header(file)
    if header.size + header.num_bytes != size or not header.num_bytes:
        raise ValueError(
            f"it has {size - header.size:,} bytes after its header, and {header.dtype} "
            f"{list(header.shape)} has {header.num_bytes:,}"
        )
    order = "F" if header.fortran else "C"
    return np.memmap(path, header.dtype, "r", header.size, header.shape, order)


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an .npz; whatever is wrong with it, then or later inside, is a ValueError.

    Raises OSError where there is no regular file; ValueError, which does not name the file, for one
    that is no archive or in which a name is there twice.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            # What lies before an archive Python's reader of archives skips, and NumPy's does not.
            if file.read(4) not in (b"PK\3\4", b"PK\5\6"):
                raise zipfile.BadZipFile("it does not begin as an archive does")
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            # NumPy takes `a` and `a.npy` for one name, and has a rule for which of them is meant.
            if len({name.removesuffix(".npy") for name in names}) < len(names):
                raise ValueError(f"a name is there twice in {sorted(names)[:20]}")
            yield archive
    except ValueError:
        raise
    except OSError as error:
        if error.filename is not None:
            raise
        raise ValueError(f"its archive is damaged: {error}") from error
    except zipfile.BadZipFile as error:
        raise ValueError(f"{error}; a truncated file, or one that is a pickle?") from error
    except Exception as error:  # bad streams, encryption, versions and methods unknown to Python
        raise ValueError(f"its archive is damaged: {error}") from error


def array_names(archive: zipfile.ZipFile) -> list[str]:
    """The names of an archive's arrays, without .npy."""
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


@contextmanager
def open_array(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[IO[bytes], Header]]:
    """Opens one array of `open_archive`'s: a stream at its first byte, and its header.

    Raises ValueError where the header and the member's sizes cannot be true together, and for
    another compression than NumPy writes, some of which take memory by what they claim.
    """
    about = archive.getinfo(f"{name}.npy")
    if about.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by method {about.compress_type}")
    if about.file_size > MOST_SWELLING * (about.compress_size + 1):
        raise ValueError(f"{name} claims {about.file_size:,} bytes in {about.compress_size:,}")
    with archive.open(about) as stream:
        header = read_header(stream)
        if header.size + header.num_bytes != about.file_size:
            raise ValueError(
                f"{name} has {about.file_size - header.size:,} bytes after its header, and "
                f"{header.dtype} {list(header.shape)} has {header.num_bytes:,}"
            )
        yield stream, header


def read_arrays(path: Path, most: int, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Reads arrays of an .npz, by default all, that have at most so many bytes together.

    Names that are not there are left out. Raises OSError where there is no regular file;
    ValueError, which does not name the file, for anything else that is wrong.
    """
    arrays, left = {}, most
    with open_archive(path) as archive:
        present = array_names(archive)
        if names is None and (not present or len(present) < len(archive.namelist())):
            raise ValueError(f"it holds something else than arrays: {archive.namelist()[:20]}")
        for name in present if names is None else [n for n in names if n in present]:
            with open_array(archive, name) as (stream, header):
                left -= header.num_bytes
                if left < 0:
                    raise ValueError(f"its arrays have more than {most:,} bytes, with {name}")
                content = bytearray(_exactly(stream, header.num_bytes))
                # To the end, where the archive keeps its check sum.
                stream.read(1)
            flat = np.frombuffer(content, header.dtype)
            arrays[name] = flat.reshape(header.shape, order="F" if header.fortran else "C")
    return arrays


def _exactly(stream: IO[bytes], num_bytes: int) -> bytes:
    content = stream.read(num_bytes)
    while len(content) < num_bytes and (more := stream.read(num_bytes - len(content))):
        content += more
    if len(content) < num_bytes:
        raise ValueError("it ends too early")
    return content
