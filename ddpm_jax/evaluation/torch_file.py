"""Tensors of a PyTorch checkpoint, read without PyTorch and without running what is in it.

A checkpoint holds a pickle, and a pickle is a program: it may name any function installed and call
it. Here it is read by an unpickler that knows five names and no other, and for each of them returns
a stand-in of this module which does nothing but keep its arguments, and has no attributes that
could be set. Nothing is imported and nothing of the file is run: a hostile file can waste time, and
no more. Sizes and offsets that do not fit what is in the file are refused before memory is taken
for them.

Both layouts are read: the zip archive that torch.save writes since version 1.6, and the sequence of
pickles followed by raw storages that it wrote before.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mapping(dict):
    """Stands in for OrderedDict; what else was attached to it (its version) is dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Marker(NamedTuple):
    """A storage class that the pickle names; not callable, so it cannot be made to do anything."""

    name: str


class _Rebuild:
    """Stands in for `torch._utils._rebuild_tensor_v2`.

    An object without slots, where a function would do: a pickle may set attributes of what it has
    named, a function's default arguments among them.
    """

    __slots__ = ()

    def __call__(self, storage, offset, shape, strides, requires_grad=False, hooks=None) -> _Tensor:
        if not isinstance(storage, _Storage) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("a tensor is made of something that is no storage")
        if not isinstance(strides, tuple) or len(shape) != len(strides):
            raise pickle.UnpicklingError("a tensor has another number of axes than of strides")
        for value in (offset, *shape, *strides):
            if type(value) is not int or value < 0:
                raise pickle.UnpicklingError("a tensor has sizes that are no whole numbers ≥ 0")
        return _Tensor(storage, offset, shape, strides)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Mapping,
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(),
    **{("torch", name): _Marker(name) for name in _DTYPES},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Returns this module's stand-in for a name, or refuses."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which no file of plain tensors needs"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        """Keeps where a storage is: ("storage", class, key, device, number of values, ...)."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("it refers to something that is no storage")
        _, kind, key, _, numel, *view = pid
        if not isinstance(kind, _Marker) or not isinstance(key, str) or type(numel) is not int:
            raise pickle.UnpicklingError("it describes a storage in another way than PyTorch does")
        if numel < 0 or any(part is not None for part in view):
            raise pickle.UnpicklingError("it has a storage of negative size, or a view of one")
        return _Storage(_DTYPES[kind.name], key, numel)


def read_torch_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a checkpoint that is one mapping of names to float32 or int64 tensors.

    Returns them as arrays of the machine's byte order, copied. Nothing in the file is executed.

    Raises FileNotFoundError for a missing file; ValueError, naming the file, where it is truncated
    or no checkpoint, holds anything but such tensors, or names any function besides those few.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
        if zipfile.is_zipfile(io.BytesIO(content)):
            tensors, storage = _zipped(content)
        else:
            tensors, storage = _legacy(content)
        return {name: _array(tensor, storage) for name, tensor in tensors.items()}
    except FileNotFoundError:
        raise
    except Exception as error:  # unpicklers raise nearly anything at damaged bytes
        raise ValueError(
            f"{file} could not be read as a PyTorch checkpoint of plain tensors: {error}. "
            "Nothing in it was run. Fetch it again, or convert it to .safetensors where it is "
            "trusted."
        ) from error


Storages = Callable[[_Storage], np.ndarray]


def _mapping(loaded: Any) -> dict[str, _Tensor]:
    if not isinstance(loaded, dict) or not loaded:
        raise ValueError(f"it holds a {type(loaded).__name__} in place of a mapping of tensors")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            named = repr(name) if isinstance(name, str) else f"under a {type(name).__name__}"
            raise ValueError(f"its entry {named} is no tensor")
    return loaded


def _zipped(content: bytes) -> tuple[dict[str, _Tensor], Storages]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ValueError("the archive has no data.pkl")
    root = pickles[0].split("/")[0]
    order = f"{root}/byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise ValueError("its numbers are not little-endian")

    def storage(about: _Storage) -> np.ndarray:
        name = f"{root}/data/{about.key}"
        # PyTorch stores and never deflates, so a small file cannot stand for a huge one.
        if archive.getinfo(name).file_size != about.numel * about.dtype.itemsize:
            raise ValueError(f"{name} has another size than its tensors say")
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        return np.frombuffer(archive.read(name), about.dtype)

    if archive.getinfo(pickles[0]).file_size > len(content):
        raise ValueError("data.pkl is larger than the file it is in")
    return _mapping(_Unpickler(io.BytesIO(archive.read(pickles[0]))).load()), storage


def _legacy(content: bytes) -> tuple[dict[str, _Tensor], Storages]:
    stream = io.BytesIO(content)
    if _Unpickler(stream).load() != _LEGACY_MAGIC or _Unpickler(stream).load() != _LEGACY_PROTOCOL:
        raise ValueError("it begins like no checkpoint")
    about = _Unpickler(stream).load()
    if not isinstance(about, dict) or about.get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    tensors = _mapping(_Unpickler(stream).load())
    keys = _Unpickler(stream).load()
    dtypes = {t.storage.key: t.storage.dtype for t in tensors.values()}
    if not isinstance(keys, list) or not all(key in dtypes for key in keys):
        raise ValueError("its storages are not those of its tensors")
    found: dict[str, np.ndarray] = {}
    for key in keys:
        (numel,) = struct.unpack("<q", stream.read(8))
        if not 0 <= numel * dtypes[key].itemsize <= len(content) - stream.tell():
            raise ValueError(f"it ends within storage {key}")
        found[key] = np.frombuffer(content, dtypes[key], numel, stream.tell())
        stream.seek(numel * dtypes[key].itemsize, os.SEEK_CUR)

    def storage(about: _Storage) -> np.ndarray:
        if found[about.key].size != about.numel or found[about.key].dtype != about.dtype:
            raise ValueError(f"storage {about.key} has another size than its tensors say")
        return found[about.key]

    return tensors, storage


def _array(tensor: _Tensor, storage: Storages) -> np.ndarray:
    values = storage(tensor.storage)
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((size - 1) * stride for size, stride in steps)
    count = int(np.prod(tensor.shape, dtype=object)) if tensor.shape else 1
    if 0 in tensor.shape or last >= values.size or count > values.size:
        raise ValueError(f"a tensor {tensor.shape} reaches past its storage of {values.size}")
    strides = [stride * values.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(
        values[tensor.offset :], tensor.shape, strides, writeable=False
    )
    return view.astype(view.dtype.newbyteorder("="), copy=True)
