"""The published Inception weights, read without PyTorch from its legacy file format.

The file is five pickles (magic number, protocol, system, tensors, keys of the storages) followed by
the storages themselves: the number of values as int64, then the values. A pickle can call any
function, so nothing is unpickled before the sha256 of the whole file has matched; even then the
unpickler knows only the names that tensors need.
"""

from __future__ import annotations

import collections
import hashlib
import io
import pickle
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.files import read_regular

MAX_BYTES = 1 << 28


class _Tensor(NamedTuple):
    """A strided view of a storage (dtype, key), in values."""

    storage: tuple[np.dtype, str]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_NAMES = {
    "collections.OrderedDict": collections.OrderedDict,
    "torch._utils._rebuild_tensor_v2": lambda *arguments: _Tensor(*arguments[:4]),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.LongStorage": np.dtype("<i8"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a file of tensors")
        return _NAMES[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> tuple[np.dtype, str]:
        _, dtype, key, *_ = pid  # then the device and the number of values
        return dtype, key


def read_torch_file(path: Path, sha256: str) -> dict[str, np.ndarray]:
    """Reads the tensors, by name, of the file with this sha256; ValueError for any other file."""
    content = read_regular(path, MAX_BYTES)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"it has sha256 {found}, not {sha256}, so it was not unpickled")
    stream = io.BytesIO(content)
    _, _, _, tensors, keys = (_Unpickler(stream).load() for _ in range(5))
    dtypes = {key: dtype for dtype, key in (tensor.storage for tensor in tensors.values())}
    values = {}
    for key in keys:
        (count,) = struct.unpack("<q", stream.read(8))
        values[key] = np.frombuffer(stream.read(count * dtypes[key].itemsize), dtypes[key])
    return {
        name: np.lib.stride_tricks.as_strided(
            values[tensor.storage[1]][tensor.offset :],
            tensor.shape,
            [stride * tensor.storage[0].itemsize for stride in tensor.strides],
        ).copy()
        for name, tensor in tensors.items()
    }
