"""Tensors of a PyTorch checkpoint, read without PyTorch and without running what is in it.

A checkpoint holds a pickle, and a pickle is a program: it may name any function installed and call
it. Here `torch_pickle` carries it out, which can do nothing but describe tensors. Sizes and offsets
that do not fit what is in the file are refused before memory is taken for them.

Both layouts are read: the zip archive that torch.save writes since version 1.6, and the sequence of
pickles followed by raw storages that it wrote before.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.evaluation.torch_pickle import Storage, Tensor, run
from ddpm_jax.files import check_regular

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
SHARING = 2
"""Times its size that a file's tensors may have together; more where tensors share storages."""


def read_torch_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a checkpoint that is one mapping of names to float32 or int64 tensors.

    Returns them as arrays of the machine's byte order, copied. Nothing in the file is executed.

    Raises FileNotFoundError for a missing file; ValueError, naming the file, where it is truncated
    or no checkpoint, holds anything but such tensors, or names any function besides those few.
    """
    file = Path(path)
    try:
        check_regular(file)
        content = file.read_bytes()
        if zipfile.is_zipfile(io.BytesIO(content)):
            tensors, storage = _zipped(content)
        else:
            tensors, storage = _legacy(content)
        arrays, left = {}, SHARING * len(content)
        for name, tensor in tensors.items():
            view = _view(tensor, storage)
            left -= view.nbytes
            if left < 0:
                raise ValueError(f"its tensors have more than {SHARING} times the file's size")
            arrays[name] = view.astype(view.dtype.newbyteorder("="), copy=True)
        return arrays
    except FileNotFoundError:
        raise
    except Exception as error:  # archives and instructions fail in many ways at damaged bytes
        raise ValueError(
            f"{file} could not be read as a PyTorch checkpoint of plain tensors: {error}. "
            "Nothing in it was run. Fetch it again, or convert it to .safetensors where it is "
            "trusted."
        ) from error


Storages = Callable[[Storage], np.ndarray]


def _mapping(loaded: Any) -> dict[str, Tensor]:
    if not isinstance(loaded, dict) or not loaded:
        raise ValueError(f"it holds a {type(loaded).__name__} in place of a mapping of tensors")
    for name, tensor in loaded.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"its entry {name!r} is no tensor")
    return loaded


def _zipped(content: bytes) -> tuple[dict[str, Tensor], Storages]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ValueError("the archive has no data.pkl, or several")
    root = pickles[0].split("/")[0]

    def read(name: str) -> bytes:
        # PyTorch stores and never deflates, so a small file cannot stand for a huge one.
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        return archive.read(name)

    order = f"{root}/byteorder"
    if order in archive.namelist() and read(order) != b"little":
        raise ValueError("its numbers are not little-endian")

    held: dict[str, bytes] = {}

    def storage(about: Storage) -> np.ndarray:
        name = f"{root}/data/{about.key}"
        if archive.getinfo(name).file_size != about.numel * about.dtype.itemsize:
            raise ValueError(f"{name} has another size than its tensors say")
        if name not in held:
            # Members may overlap, each being most of the file.
            if sum(map(len, held.values())) + archive.getinfo(name).file_size > len(content):
                raise ValueError("its storages have more bytes than the file")
            held[name] = read(name)
        return np.frombuffer(held[name], about.dtype)

    return _mapping(run(io.BytesIO(read(pickles[0])))), storage


def _legacy(content: bytes) -> tuple[dict[str, Tensor], Storages]:
    stream = io.BytesIO(content)
    if [run(stream), run(stream)] != [_LEGACY_MAGIC, _LEGACY_PROTOCOL]:
        raise ValueError("it begins like no checkpoint")
    about = run(stream)
    if not isinstance(about, dict) or about.get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    tensors = _mapping(run(stream))
    keys = run(stream)
    dtypes = {t.storage.key: t.storage.dtype for t in tensors.values()}
    # Asked for its type first: a tuple's hash may never be found out.
    if type(keys) is not list or not all(type(key) is str and key in dtypes for key in keys):
        raise ValueError("its storages are not those of its tensors")
    found: dict[str, np.ndarray] = {}
    for key in keys:
        (numel,) = struct.unpack("<q", stream.read(8))
        if not 0 <= numel * dtypes[key].itemsize <= len(content) - stream.tell():
            raise ValueError(f"it ends within storage {key}")
        found[key] = np.frombuffer(content, dtypes[key], numel, stream.tell())
        stream.seek(numel * dtypes[key].itemsize, os.SEEK_CUR)

    def storage(about: Storage) -> np.ndarray:
        if found[about.key].size != about.numel or found[about.key].dtype != about.dtype:
            raise ValueError(f"storage {about.key} has another size than its tensors say")
        return found[about.key]

    return tensors, storage


def _view(tensor: Tensor, storage: Storages) -> np.ndarray:
    values = storage(tensor.storage)
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((size - 1) * stride for size, stride in steps)
    count = int(np.prod(tensor.shape, dtype=object)) if tensor.shape else 1
    if 0 in tensor.shape or last >= values.size or count > values.size:
        raise ValueError(f"a tensor {tensor.shape} reaches past its storage of {values.size}")
    strides = [stride * values.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(
        values[tensor.offset :], tensor.shape, strides, writeable=False
    )
