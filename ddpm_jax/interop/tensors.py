"""Files of named tensors: safetensors read and written, NumPy archives read, pickles refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.files import parse_json_object, read_arrays, user_path, write_atomically
from ddpm_jax.forward.checks import check_finite, check_floating_dtype, check_kind, host_numbers
from ddpm_jax.types import describe

FLOAT32 = np.dtype(np.float32)
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
MAX_EXPANSION = 64
"""Largest ratio of the arrays of an .npz to its size: weights hardly compress."""


def refuse_pickle(path: Path) -> None:
    """Raises ValueError for a file whose name says that it is a pickle."""
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"{path} is a pickle, and reading a pickle may run any program hidden in it. Only "
            ".safetensors is read. A revision that has one may exist; or let whoever trusts the "
            "file load it with its own library and save it with safe_serialization=True."
        )


def read_safetensors(path: str | Path, dtypes: Sequence[str] = ("F32",)) -> dict[str, np.ndarray]:
    """Reads every tensor of a .safetensors file, by name, as NumPy arrays of the file's dtypes.

    `dtypes` are those that are read, by their names in safetensors: float32 alone by default.
    Raises ValueError for a pickle, for a file that is cut short or no safetensors at all, for a
    tensor of another dtype, and for one with a NaN or an infinity; FileNotFoundError where there is
    no file.
    """
    from safetensors import SafetensorError, safe_open

    path = user_path(path, "read_safetensors")
    check_kind("read_safetensors", "dtypes", dtypes, tuple, 'such as ("F32",)')
    refuse_pickle(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Name a .safetensors file.")
    tensors = {}
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():
                # Asked for first: NumPy has no bfloat16 to read it into.
                dtype = file.get_slice(name).get_dtype()
                if dtype not in dtypes:
                    raise ValueError(
                        f"{path}: {name} has dtype {dtype}, and only {' or '.join(dtypes)} is "
                        "read. Take the float32 file of that model: weights rounded to another "
                        "dtype are another model's."
                    )
                tensors[name] = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as safetensors ({error}); it has {path.stat().st_size:,} "
            "bytes. It was cut short or is something else: fetch it again."
        ) from error
    _check_names(path)
    return _finite(path, tensors)


def write_safetensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], dtype: np.dtype = FLOAT32
) -> None:
    """Writes arrays by name, as `dtype`, atomically: a reader never sees half a file.

    Raises TypeError unless the tensors are real numbers by name and the dtype is a floating one,
    ValueError for a value that is not finite in this dtype.
    """
    from safetensors.numpy import save

    call = "write_safetensors"
    path = user_path(path, call)
    check_names(call, "tensors", tensors)
    check_floating_dtype(call, dtype)
    ordered = {}
    for name in sorted(tensors):
        with np.errstate(over="ignore"):
            ordered[name] = np.ascontiguousarray(host_numbers(call, name, tensors[name]), dtype)
        check_finite(call, **{name: ordered[name]})
    # Other readers require this entry: the axes are in PyTorch's order.
    entries = {"format": "pt"}
    write_atomically(path, save(ordered, metadata=entries))


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Reads every array of an .npz archive, by name; the floating ones must be float32.

    Raises ValueError for a damaged archive, a pickled array, or another floating dtype.
    """
    path = user_path(path, "read_npz")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Name an .npz file.")
    try:
        arrays = read_arrays(path, MAX_EXPANSION * path.stat().st_size)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as an .npz archive of plain arrays ({error}). It was cut "
            "short, is something else, or holds pickled objects, which are not read."
        ) from error
    for name, array in arrays.items():
        if array.dtype.kind == "f" and array.dtype != np.float32:
            raise ValueError(f"{path}: {name} has dtype {array.dtype}, and only float32 is read.")
    return _finite(path, arrays)


def check_names(call: str, name: str, values: Any) -> None:
    """Raises TypeError unless the values are a mapping with string keys."""
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise TypeError(f"{call} needs {name}, values by name, got {describe(values)}.")


def numbers_in(pattern: str, names: Iterable[str]) -> list[int]:
    """The numbers that the first group of the pattern matches at the beginning of the names."""
    matches = (re.match(pattern, name) for name in names)
    return sorted({int(match[1]) for match in matches if match})


def _check_names(path: Path) -> None:
    """Raises ValueError for a header in which a name is there twice, which safetensors forbids.

    Its readers do not look: one takes the first, another the last.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            parse_json_object(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path} has a header of safetensors that is {error}.") from error


def _finite(path: Path, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    bad = sorted(name for name, tensor in tensors.items() if not np.isfinite(tensor).all())
    if bad:
        raise ValueError(f"{path} has NaN or infinite values in {bad}: these weights are broken.")
    return tensors
