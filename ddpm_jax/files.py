"""Atomic writes, and reads of files that may be damaged or made to do harm.

The readers are NumPy's and the standard library's, with limits: nothing in a file is executed, no
more memory is taken than the caller allows, and only regular files are opened, so that no read
blocks. Invalid content raises ValueError, which does not name the file; what cannot be opened
raises OSError, which does.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import stat
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ddpm_jax.types import describe

MAX_EXPANSION = 1100
"""Deflate expands a stream by a factor of 1,032 at most."""
MAX_JSON_BYTES = 1 << 24
"""The manifest of a checkpoint of a thousand arrays takes a hundredth of it."""
MAX_HEADER_BYTES = 1 << 14
"""Of an .npy; NumPy itself refuses headers of more than 10,000 bytes."""


def write_atomically(path: Path, content: bytes | str | Callable[[IO[bytes]], object]) -> None:
    """Writes a file in one step: no reader, and no kill, ever sees half of it.

    content  bytes, text (stored as UTF-8), or a function that writes to the open file

    The folder is made if needed. The file gets the permissions that any new file gets.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic only within a file system.
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with draft.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            sync(file)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def sync(file: IO[Any]) -> None:
    """Flushes an open file to the disk, if its file system has that (some of FUSE have not)."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def write_json(path: Path, values: Any, **options: Any) -> None:
    """Writes JSON as UTF-8, in one step; `options` are those of json.dumps."""
    options = {"indent": 2, "ensure_ascii": False} | options
    write_atomically(path, json.dumps(values, **options) + "\n")


def user_path(path: str | os.PathLike[str], call: str = "ddpm_jax") -> Path:
    """The path with a leading ~ expanded; that of an unknown user is left as it is.

    Raises TypeError, in the name of the call, for anything but a str or os.PathLike.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{call} needs a path, a str or os.PathLike, got {describe(path)}.")
    return Path(os.path.expanduser(path))


def check_regular(path: Path) -> os.stat_result:
    """Returns the status of a regular file, links followed, without opening it.

    Raises OSError, naming the path, for anything else: a pipe may block and a device never end.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "device or socket")
        raise OSError(
            f"{path} is not a regular file but a {kind}. Name a file, or move the {kind} elsewhere."
        )
    return status


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Reads a regular file; ValueError if it is larger than `max_bytes`."""
    size = check_regular(path).st_size
    with path.open("rb") as file:
        content = file.read(min(size, max_bytes) + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it is larger than the {max_bytes:,} bytes allowed for such a file")
    return content


def number_of(name: str) -> int | None:
    """The number whose name this is, as `str` writes it; None for 0009 and other names."""
    return int(name) if name.isdecimal() and str(int(name)) == name else None


def sha256_of(path: Path) -> str:
    """The sha256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def unchanged(*paths: Path) -> Iterator[None]:
    """Raises ValueError at the end of the block if one of the files was replaced or written in it.

    For what is read more than once, such as weights and their digest, which must be of one file.
    """

    def versions() -> list[tuple[int, ...]]:
        found = map(Path.stat, paths)
        return [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in found]

    before = versions()
    yield
    for path, then, now in zip(paths, before, versions(), strict=True):
        if then != now:
            raise ValueError(f"{path} was replaced while it was read. Read it again.")


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Reads a file that holds one JSON object, by the rules of `parse_json_object`."""
    return parse_json_object(read_regular(path, max_bytes))


def parse_json_object(content: bytes | str) -> dict[str, Any]:
    """Parses one JSON object in the strict sense; ValueError says what is wrong.

    Python's own parser also accepts NaN, numbers that overflow to infinity, duplicate names and
    half surrogate pairs, which other readers of the same file would understand differently.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        values = json.loads(text, object_pairs_hook=_unique)
        # Fails for exactly those other three.
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"not a JSON object but a {type(values).__name__}")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(a for a, b in zip(names, names[1:], strict=False) if a == b)
        raise ValueError(f"the name {twice[:80]!r} occurs twice")
    return found


class Header(NamedTuple):
    """What an .npy says about its array, and how many bytes the header itself takes."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    size: int


def _load(path: Path) -> Any:
    """What NumPy loads from a file, without its advice to allow pickles in the error."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise ValueError("neither .npy nor .npz, or a pickle, which is not read") from error


def map_npy(path: Path) -> np.ndarray:
    """Maps the array of an .npy file into memory, read-only.

    NumPy checks the header against the size of the file and allocates nothing. Raises ValueError
    unless the file holds exactly one array of plain numbers that is not empty.
    """
    size = check_regular(path).st_size
    try:
        array = _load(path)
    except Exception as error:  # a header is a Python literal, whose parser fails in many ways
        raise ValueError(f"not an .npy file: {error}") from error
    if not isinstance(array, np.memmap) or array.dtype.kind not in "biuf":
        raise ValueError("not an .npy file of plain numbers")
    if not array.nbytes or array.offset + array.nbytes != size:
        raise ValueError(f"it has {size:,} bytes, and its header says {array.nbytes:,} of array")
    return array


@contextmanager
def open_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens an .npz; whatever is wrong with it, now or while it is read, becomes a ValueError."""
    check_regular(path)
    try:
        with _load(path) as loaded:
            if not isinstance(loaded, np.lib.npyio.NpzFile) or loaded.zip is None:
                raise ValueError("not an .npz archive")
            # NumPy takes `a` and `a.npy` for one name, and reads either.
            names = [name.removesuffix(".npy") for name in loaded.zip.namelist()]
            if len(set(names)) < len(names):
                raise ValueError(f"a name occurs twice in {sorted(names)[:20]}")
            yield loaded.zip
    except ValueError:
        raise
    except Exception as error:  # bad streams, encryption, methods and versions unknown to Python
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"its archive is damaged: {error}") from error


def array_names(archive: zipfile.ZipFile) -> list[str]:
    """The names of an archive's arrays, without .npy."""
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


@contextmanager
def open_array(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[IO[bytes], Header]]:
    """Opens one array of an .npz: a stream at its first byte, and its header.

    Raises ValueError unless it is an array of plain numbers whose header fits the member's size.
    """
    member = archive.getinfo(f"{name}.npy")
    # NumPy writes these two; the decoders of others allocate what the stream claims.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by method {member.compress_type}")
    with archive.open(member) as stream:
        header = read_header(stream.read(MAX_HEADER_BYTES))
    num_bytes = math.prod(header.shape) * header.dtype.itemsize
    if header.size + num_bytes != member.file_size:
        raise ValueError(
            f"{name} has {member.file_size - header.size:,} bytes after its header, which says "
            f"{header.dtype} {list(header.shape)}, {num_bytes:,} bytes"
        )
    # Opened again, since newer versions of Python skip the check sum of a stream that was rewound.
    with archive.open(member) as stream:
        stream.read(header.size)
        yield stream, header


def read_arrays(
    path: Path, max_bytes: int, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Reads the named arrays of an .npz, by default all of them; absent names are left out.

    Raises ValueError if together they have more than `max_bytes`, or if it holds anything but
    arrays and no names are given.
    """
    arrays, left = {}, max_bytes
    with open_npz(path) as archive:
        present = array_names(archive)
        if names is None and (not present or len(present) < len(archive.namelist())):
            raise ValueError(f"it holds other things than arrays: {archive.namelist()[:20]}")
        for name in present if names is None else [n for n in names if n in present]:
            with open_array(archive, name) as (stream, header):
                num_bytes = math.prod(header.shape) * header.dtype.itemsize
                left -= num_bytes
                if left < 0:
                    raise ValueError(f"its arrays have more than {max_bytes:,} bytes, with {name}")
                content = bytearray(read_exactly(stream, num_bytes))
            flat = np.frombuffer(content, header.dtype)
            arrays[name] = flat.reshape(header.shape, order="F" if header.fortran else "C")
    return arrays


def read_exactly(stream: IO[bytes], num_bytes: int) -> bytes:
    """Reads so many bytes; ValueError where the stream ends before."""
    content = stream.read(num_bytes)
    if len(content) != num_bytes:
        raise ValueError(f"it ends {num_bytes - len(content):,} bytes too early")
    return content


def read_header(content: bytes) -> Header:
    """Parses the header at the beginning of an .npy."""
    stream, versions = io.BytesIO(content), np.lib.format
    readers = {(1, 0): versions.read_array_header_1_0, (2, 0): versions.read_array_header_2_0}
    try:
        shape, fortran, dtype = readers[versions.read_magic(stream)](stream)
    except Exception as error:  # a Python literal is parsed, which fails in many ways
        raise ValueError(f"not an .npy header, or a pickle: {error!r}") from None
    if dtype.hasobject:
        raise ValueError(f"it holds {dtype}, a pickle, which is not read")
    if dtype.kind not in "biuf" or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"it holds {dtype} {shape}, not an array of plain numbers")
    return Header(shape, fortran, dtype, stream.tell())
