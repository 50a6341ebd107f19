"""Data sets by name, as `--data.name` accepts them: functions `(split) -> ImageDataset`.

A new data set takes a file with its loader, a line in `DATA_SETS`, and a row in
tests/contracts/test_data_contract.py.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from ddpm_jax.data.arrays import load_arrays
from ddpm_jax.data.cifar10 import load_cifar10
from ddpm_jax.data.cifar100 import load_cifar100
from ddpm_jax.data.dataset import ImageDataset, make_dataset, split_dataset
from ddpm_jax.data.digits import load_digits
from ddpm_jax.data.fashion_mnist import load_fashion_mnist
from ddpm_jax.data.folder import load_folder
from ddpm_jax.data.hugging_face import load_hugging_face
from ddpm_jax.data.mnist import load_mnist
from ddpm_jax.data.streamed import Stream
from ddpm_jax.data.svhn import load_svhn
from ddpm_jax.data.tfds import load_tfds
from ddpm_jax.forward.checks import check_kind, check_text
from ddpm_jax.types import SPATIAL_AXES

Split = Literal["train", "heldout"]
DataSet = Callable[[Split], ImageDataset | None]
"""None for a held-out split that there is not."""


PASSED = "python:data"
"""The name of data that were passed to `train` as a function."""


class DataOptions(NamedTuple):
    """The options of loaders; each uses those that concern it.

    path        local file or folder; None for the default places
    cache_dir   where decoded images are kept
    download    whether the data may be fetched
    resolution  size of the images: 64 or "48x64"
    holdout     share of the images that is held out, where there is no held-out split
    labels      "auto", "none", or a file or column of labels
    channels    "auto", 1 or 3, where both are possible
    spatial_rank  1 if arrays are signals, 2 if they are images, 3 if they are volumes
    stream      "auto", "always" or "never": whether images are decoded when they are used
    """

    path: Path | None = None
    cache_dir: Path | None = None
    download: bool = False
    resolution: int | str | None = None
    holdout: float = 0.1
    labels: str = "auto"
    channels: Literal["auto", 1, 3] = "auto"
    spatial_rank: Literal[1, 2, 3] = 2
    stream: Stream = "auto"

    def only(self, *names: str) -> dict[str, Any]:
        """These options as keyword arguments."""
        return {name: getattr(self, name) for name in names}


def _official(split: Split) -> Any:
    return "test" if split == "heldout" else "train"


FILES = ("path", "cache_dir", "download")
STORED = ("resolution", "channels", "labels", "holdout", "cache_dir", "stream")

DATA_SETS: dict[str, Callable[[Split, DataOptions], ImageDataset]] = {
    "digits": lambda split, o: load_digits(split),
    "cifar10": lambda split, o: load_cifar10(_official(split), **o.only(*FILES)),
    "cifar100": lambda split, o: load_cifar100(_official(split), **o.only(*FILES)),
    # Networks that halve the size need 32.
    "mnist": lambda split, o: load_mnist(_official(split), pad_to=32, **o.only(*FILES)),
    "fashion_mnist": lambda split, o: load_fashion_mnist(
        _official(split), pad_to=32, **o.only(*FILES)
    ),
    "svhn": lambda split, o: load_svhn(_official(split), **o.only(*FILES)),
    "folder": lambda split, o: load_folder(
        _given(o.path, "folder", "--data.path FOLDER"),
        _given(o.resolution, "folder", "--data.resolution PIXELS"),
        split=split,
        **o.only("holdout", "channels", "labels", "cache_dir", "stream"),
    ),
    "arrays": lambda split, o: load_arrays(
        split,
        path=_given(o.path, "arrays", "--data.path FILE.npy or FILE.npz"),
        **o.only("holdout", "spatial_rank"),
    ),
}
PREFIXES: dict[str, Callable[[str, Split, DataOptions], ImageDataset]] = {
    "tfds": lambda name, split, o: load_tfds(name, split, **o.only("path", *STORED)),
    "hf": lambda name, split, o: load_hugging_face(name, split, **o.only("download", *STORED)),
}


def known_names() -> list[str]:
    """What `--data.name` accepts, for lists and errors."""
    return [*DATA_SETS, "tfds:NAME", "hf:NAME_OR_FOLDER", "package.module:function"]


def is_function(name: str) -> bool:
    """Whether a name is that of a function of the user's, `package.module:function`."""
    return ":" in name and name.partition(":")[0] not in PREFIXES


def check_name(name: str) -> None:
    """Raises ValueError, with the known names and the nearest, for what cannot be a data set."""
    check_text("load_named", "name (--data.name)", name)
    kind, colon, rest = name.partition(":")
    if not colon and name in DATA_SETS:
        return
    if kind in PREFIXES and rest:
        return
    if colon and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", kind) and rest.isidentifier():
        return
    near = difflib.get_close_matches(kind, [*DATA_SETS, *PREFIXES], n=1)
    meant = f" Did you mean {near[0]}{':NAME' * (near[0] in PREFIXES)}?" if near else ""
    raise ValueError(
        f"--data.name {name!r} is not a data set.{meant} Known: {', '.join(known_names())}."
    )


def load_named(name: str, split: Split, options: DataOptions | None = None) -> ImageDataset:
    """Loads the split "train" or "heldout" of the data set of this name.

    The held-out split of an official data set is its test set; that of others the share `holdout`.
    A function `package.module:function` of the user's is imported, from the current folder too, and
    called with the split.

    Raises ValueError for an unknown name, or a function that cannot be found; TypeError for one
    that returns no data set; and what the loader raises.
    """
    check_name(name)
    options = DataOptions() if options is None else options
    check_kind("load_named", "options", options, DataOptions, "data.DataOptions")
    if name in DATA_SETS:
        return DATA_SETS[name](split, options)
    kind, _, rest = name.partition(":")
    if kind in PREFIXES:
        return PREFIXES[kind](rest, split, options)
    return load_from(_imported(kind, rest, name), split, name)


def load_from(function: DataSet, split: Split, name: str) -> ImageDataset:
    """Calls a data set of the user's and checks what it returns, as `make_dataset` does.

    None for the split "heldout" means that nothing is held out.
    """
    dataset = function(split)
    if dataset is None and split == "heldout":
        train = load_from(function, "train", name)
        return split_dataset(train, slice(0, 0), f"{name}/heldout")
    if not isinstance(dataset, ImageDataset):
        raise TypeError(
            f"the data set {name} needs to return an ImageDataset for the split {split!r}, got "
            f"{type(dataset).__name__}. Make one with ddpm_jax.data.make_dataset."
        )
    if not len(dataset.images) and split == "heldout":
        return dataset
    rank = dataset.spatial_rank
    return make_dataset(
        dataset.images,
        dataset.labels if dataset.num_classes is not None else None,
        dataset.num_classes,
        dataset.name,
        fingerprint=dataset.fingerprint,
        class_names=dataset.class_names,
        spatial_rank=rank if rank in SPATIAL_AXES else 2,
        **dataset.conditions,
    )


def _imported(module: str, function: str, name: str) -> DataSet:
    # The command `ddpm-jax`, unlike `python -m`, does not have it in its path.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    if name == PASSED:
        raise ValueError(
            "the data of this run were passed from Python, as train(config, data=...). Pass them "
            "again, or name a function that returns them: --data.name package.module:function."
        )
    try:
        found: Any = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        # What the user's own module lacks is an error of that module.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"--data.name {name}: there is no module {error.name} in the current folder or among "
            "the installed packages."
        ) from error
    if not callable(found):
        raise ValueError(
            f"--data.name {name}: the module {module} has no function {function}. It needs one of "
            "the split that returns an ImageDataset."
        )
    return cast(DataSet, found)


def _given(value: Any, name: str, option: str) -> Any:
    if value is None:
        raise ValueError(f"--data.name {name} needs {option}.")
    return value
