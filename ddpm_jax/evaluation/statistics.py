"""Moments of a data set's features, cached on disk under a key of all they depend on.

An entry is `<name>.npz` with mu [D], sigma [D, D] and count, readable by other tools, and
`<name>.json` with the key and the sha256 of the `.npz`. Both are written atomically, the JSON last,
so an entry that a killed run left unfinished is not used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpm_jax import files
from ddpm_jax.evaluation.metrics import Moments, check_moments
from ddpm_jax.forward.checks import check_flag, check_function, check_kind, check_whole
from ddpm_jax.types import describe

VERSION = 1
"""Increased when equal inputs would give other moments, so that old entries are recomputed."""
MAX_BYTES = 1 << 30
"""Limit of mu and sigma together, enough for 11,585 features; Inception has 2,048."""
_TYPES = {"data": str, "split": str, "count": int, "features": str, "output": str, "version": int}


@dataclasses.dataclass(frozen=True)
class StatisticsKey:
    """Everything that the moments depend on.

    Attributes:
        data: fingerprint of the images (`ImageDataset.fingerprint`, `ImageSet.fingerprint()`).
        split: which of them, as in "train".
        count: how many.
        features: fingerprint of the feature function: network, weights, resize, precision
            (`FeatureExtractor.fingerprint`).
        output: which of its features, as in "pool" or "spatial".
        version: of this module's computation.
    """

    data: str
    split: str
    count: int
    features: str
    output: str
    version: int = VERSION

    def __post_init__(self) -> None:
        for name, kind in _TYPES.items():
            if type(value := getattr(self, name)) is not kind:
                raise TypeError(
                    f"StatisticsKey needs {name}, {kind.__name__}, got {describe(value)}."
                )
        if min(self.count, self.version) < 1:
            raise ValueError(
                f"StatisticsKey needs count ≥ 1 and version ≥ 1, got {self.count}, {self.version}."
            )

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the attributes."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def save_statistics(path: str | os.PathLike[str], moments: Moments, key: StatisticsKey) -> None:
    """Writes moments to `path`, an .npz, and their key to the .json of the same name.

    Raises ValueError for another ending, or if the moments' count is not the key's.
    """
    file = _checked_path("save_statistics", path)
    check_moments("save_statistics", "moments", moments)
    check_kind("save_statistics", "key", key, StatisticsKey, "evaluation.StatisticsKey")
    if moments.count != key.count:
        raise ValueError(
            f"save_statistics got moments of {moments.count} images and a key that says "
            f"{key.count}. Make the key of what was measured."
        )
    content = io.BytesIO()
    np.savez(content, mu=moments.mean, sigma=moments.covariance, count=np.int64(moments.count))
    about = {
        "key": dataclasses.asdict(key),
        "fingerprint": key.fingerprint,
        "sha256": hashlib.sha256(content.getbuffer()).hexdigest(),
    }
    files.write_atomically(file, content.getvalue())
    files.write_json(file.with_suffix(".json"), about)


def load_statistics(path: str | os.PathLike[str], key: StatisticsKey | None = None) -> Moments:
    """Loads what `save_statistics` wrote, and checks it against the key if one is given.

    Raises FileNotFoundError if either file is missing; ValueError, naming the file and what
    differs, for a damaged entry or another key.
    """
    file = _checked_path("load_statistics", path)
    if key is not None:
        check_kind("load_statistics", "key", key, StatisticsKey, "evaluation.StatisticsKey")
    if not file.is_file():
        raise FileNotFoundError(f"load_statistics got {file}, which is no file.")
    described = file.with_suffix(".json")
    if not described.is_file():
        raise FileNotFoundError(
            f"load_statistics found {file} without {described.name}, which says what it "
            "describes. Read files of other tools with read_reference_statistics."
        )
    try:
        about = files.read_json_object(described)
        found = StatisticsKey(**about["key"])
        if about["fingerprint"] != found.fingerprint:
            raise ValueError("its fingerprint is not that of its key")
        if files.sha256_of(file) != about["sha256"]:
            raise ValueError(f"{file.name} has changed since it was written")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{described} is damaged: {error}. Delete both files.") from error
    if key is not None and found != key:
        asked, is_of = dataclasses.asdict(key), about["key"]
        differs = ", ".join(
            f"{name} {is_of[name]!r}, not {asked[name]!r}"
            for name in asked
            if is_of[name] != asked[name]
        )
        raise ValueError(f"{file} has {differs}. Delete it, or pass its own key.")
    return _read(file, "mu", "sigma", found.count)


def cached_statistics(
    folder: str | os.PathLike[str], key: StatisticsKey, compute: Callable[[], Moments]
) -> Moments:
    """Loads the entry of `key` from a folder, or computes and stores it.

    Warns if a damaged entry is recomputed, and if the folder cannot be written. Raises what
    `compute` raises.
    """
    call = "cached_statistics"
    check_kind(call, "key", key, StatisticsKey, "evaluation.StatisticsKey")
    check_function(call, "compute", compute, "() -> Moments")
    path = files.user_path(folder, call) / f"{key.output}-{key.fingerprint[:24]}.npz"
    if path.is_file():
        try:
            return load_statistics(path, key)
        except (ValueError, OSError) as error:
            warnings.warn(f"{error} The statistics are computed anew.", stacklevel=2)
    moments = compute()
    check_moments(call, "moments from compute()", moments)
    try:
        save_statistics(path, moments, key)
    except OSError as error:
        warnings.warn(f"{path} could not be written ({error}).", stacklevel=2)
    return moments


def read_reference_statistics(
    path: str | os.PathLike[str], *, count: int | None = None, spatial: bool = False
) -> Moments:
    """Reads a public `.npz` of mu [D] and sigma [D, D], as ports of the FID exchange them.

    count    number of images; such files do not contain it, so it must come from the publisher
    spatial  reads mu_s and sigma_s, where OpenAI's reference batches keep those of sFID

    The file does not say which images, network and resize it was made with; the caller must know.
    Raises FileNotFoundError; ValueError, naming the file, for a damaged one, or one without such
    arrays.
    """
    file = _checked_path("read_reference_statistics", path)
    check_flag("read_reference_statistics", "spatial", spatial)
    if count is not None:
        count = check_whole("read_reference_statistics", "count", count)
    if not file.is_file():
        raise FileNotFoundError(f"read_reference_statistics got {file}, which is no file.")
    names = ("mu_s", "sigma_s") if spatial else ("mu", "sigma")
    return _read(file, *names, count)


def _read(file: Path, mean_name: str, covariance_name: str, count: int | None) -> Moments:
    try:
        with files.open_npz(file) as archive:
            names = files.array_names(archive)
        if not {mean_name, covariance_name} <= set(names):
            raise ValueError(f"it has {names}, not {mean_name} and {covariance_name}")
        arrays = files.read_arrays(file, MAX_BYTES, (mean_name, covariance_name, "count"))
        mean = np.asarray(arrays[mean_name], np.float64)
        covariance = np.asarray(arrays[covariance_name], np.float64)
        stored = _whole(arrays["count"]) if "count" in arrays else None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file} could not be read as statistics: {error}. Fetch it again, or compute it from "
            "the images."
        ) from error
    if mean.ndim != 1 or covariance.shape != (mean.size, mean.size) or mean.size == 0:
        raise ValueError(
            f"{file} has {mean_name} {mean.shape} and {covariance_name} {covariance.shape} in "
            "place of [D] and [D, D]."
        )
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise ValueError(f"{file} has NaN or infinity in it. Fetch it again.")
    if np.abs(covariance - covariance.T).max() > 1e-6 * max(np.abs(covariance).max(), 1e-300):
        raise ValueError(f"{file} has a {covariance_name} that is not symmetric. Fetch it again.")
    if stored is not None and count is not None and stored != count:
        raise ValueError(f"{file} is of {stored} images, not {count}.")
    number = stored if stored is not None else count
    if number is None:
        raise ValueError(
            f"{file} does not say how many images it is of. Pass count=, as its publisher gives it."
        )
    return Moments(mean, covariance, number)


def _whole(count: np.ndarray) -> int:
    if count.shape != () or count.dtype.kind not in "iu" or count < 1:
        raise ValueError(f"its count is {count.dtype} {count.tolist()}, not a whole number")
    return int(count)


def _checked_path(caller: str, path: str | os.PathLike[str]) -> Path:
    file = files.user_path(path, caller)
    if file.suffix != ".npz":
        raise ValueError(f"{caller} needs a path that ends in .npz, got {file}.")
    return file
