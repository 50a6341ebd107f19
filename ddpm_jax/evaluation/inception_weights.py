"""The weights of the FID's Inception network: source, verification and names.

They are those of TensorFlow's inception-2015-12-05, as published by the PyTorch port of Heusel et
al. (2017). Nearly every FID in the literature uses them; other weights give incomparable numbers.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ddpm_jax.data.cache import cache_root
from ddpm_jax.data.download import Progress, download_file
from ddpm_jax.evaluation.inception_v3 import IMAGE_SIZE, InceptionV3
from ddpm_jax.evaluation.torch_file import read_torch_file
from ddpm_jax.files import user_path
from ddpm_jax.types import PyTree

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
# The file name ends in the first eight digits of the hash, as PyTorch's hub requires.
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIZE = 95_628_359

# Our names -> theirs, within a convolution; fc has only a kernel and a bias.
TENSORS = {
    "kernel": "conv.weight",
    "scale": "bn.weight",
    "bias": "bn.bias",
    "mean": "bn.running_mean",
    "variance": "bn.running_var",
}
CLASSIFIER = {"kernel": "fc.weight", "bias": "fc.bias"}
# The number of batches BatchNorm was trained on; not part of the function.
COUNTER = ".bn.num_batches_tracked"


def inception_weight_map(paths: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Maps the path of each parameter of `InceptionV3` to its name in the port."""
    return {
        path: CLASSIFIER[path[-1]] if path[0] == "fc" else ".".join((*path[:-1], TENSORS[path[-1]]))
        for path in paths
    }


def load_inception_weights(
    path: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> PyTree:
    """Loads the published weights: variables for `InceptionV3().apply`, float32.

    path       a copy of the published .pth, or a .safetensors file with the same names; by default
               the file in the cache, downloaded once (95,628,359 bytes)
    cache_dir  the cache folder (`ddpm_jax.data.cache.cache_root`)
    progress   called with (bytes so far, size) of a download

    A .pth is unpickled only if its sha256 is the published one, by an unpickler that accepts only
    tensors (`torch_file`). A .safetensors file has no published hash; compare the
    `variables_fingerprint` of its contents.

    Raises ConnectionError, with address, hash and destination, if the file is neither cached nor
    available; FileNotFoundError for a missing `path`; ValueError for a file with another hash, or
    whose tensors are not those of the network.
    """
    if path is None:
        file = cache_root(cache_dir) / "inception" / FILE
        if not file.exists():
            try:
                download_file([URL], file, size=SIZE, sha256=SHA256, progress=progress)
            except ConnectionError as error:
                raise ConnectionError(
                    f"load_inception_weights has no weights and could not download them: {error}. "
                    f"Fetch {URL} on another machine (sha256 {SHA256}), and copy it to {file} or "
                    "pass its path."
                ) from error
    else:
        file = user_path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"load_inception_weights got {file}, which is not a file. Fetch {URL} "
            f"(sha256 {SHA256}), or leave the path out."
        )
    if file.suffix.lower() == ".safetensors":
        tensors = _read_safetensors(file)
        try:
            return inception_variables_from_torch(tensors)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    try:
        tensors = read_torch_file(file, SHA256)
    except ValueError as error:
        raise ValueError(
            f"{file} is not the published file: {error}. Delete it and fetch {URL}; other weights "
            "must be .safetensors files."
        ) from error
    return inception_variables_from_torch(tensors)


def inception_variables_from_torch(state_dict: Mapping[str, Any]) -> PyTree:
    """Reads the port's tensors, by name, as float32 variables of `InceptionV3`.

    Takes anything NumPy can read as an array. Kernels [out, in, h, w] become [h, w, in, out].

    Raises ValueError naming every tensor that is missing, left over (an auxiliary classifier among
    them), of another shape, or not finite.
    """
    call = "inception_variables_from_torch"
    theirs = {key: value for key, value in state_dict.items() if not key.endswith(COUNTER)}
    shapes = inception_shapes()
    names = inception_weight_map(shapes)
    missing = sorted(set(names.values()) - set(theirs))
    unused = sorted(set(theirs) - set(names.values()))
    if missing or unused:
        raise ValueError(
            f"{call} needs exactly the {len(names)} tensors of the FID's Inception-v3: "
            f"{_some(missing)} missing, {_some(unused)} left over. "
            "torchvision's own Inception-v3 is another network."
        )
    params, wrong = {}, []
    for path, name in names.items():
        tensor = np.asarray(theirs[name])
        expected = _their_shape(shapes[path])
        if tensor.shape != expected or not np.issubdtype(tensor.dtype, np.floating):
            wrong.append(f"{name} is {tensor.dtype} {tensor.shape} instead of {expected}")
        elif not np.isfinite(tensor).all():
            wrong.append(f"{name} has NaN or infinity")
        else:
            ours = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
            params[path] = jnp.asarray(ours, jnp.float32)
    if wrong:
        raise ValueError(f"{call}: {_some(wrong)}. Is it the published file?")
    return {"params": traverse_util.unflatten_dict(params)}


def inception_variables_to_torch(variables: PyTree) -> dict[str, np.ndarray]:
    """Writes variables of `InceptionV3` as tensors under the port's names, float32.

    The inverse of `inception_variables_from_torch`; `safetensors.numpy.save_file` stores it.
    """
    flat = traverse_util.flatten_dict(variables["params"])
    tensors = {}
    for path, name in inception_weight_map(flat).items():
        ours = np.asarray(flat[path], np.float32)
        theirs = ours.transpose(3, 2, 0, 1) if ours.ndim == 4 else ours.T
        tensors[name] = np.ascontiguousarray(theirs)
    return tensors


def inception_shapes() -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of every parameter of `InceptionV3`, by path; nothing is computed."""
    return dict(_traced_shapes())


@functools.cache
def _traced_shapes() -> dict[tuple[str, ...], tuple[int, ...]]:
    x = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
    variables = jax.eval_shape(InceptionV3().init, jax.random.key(0), x)
    flat = traverse_util.flatten_dict(variables["params"])
    return {path: np.shape(leaf) for path, leaf in flat.items()}  # type: ignore[arg-type]


def _their_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{len(names)}" + (f" ({shown}{', …' if len(names) > 4 else ''})" if names else "")


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    try:
        return load_file(file)
    except Exception as error:
        raise ValueError(f"{file} could not be read as safetensors: {error}.") from error
