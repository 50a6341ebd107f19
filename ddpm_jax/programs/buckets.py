"""Folders and files in buckets, such as gs://BUCKET/KEY, and their local copies.

All programs work on local files. An address in place of a path becomes a path in the cache:

    <cache>/buckets/write/gs/BUCKET/KEY             for results (run_dir, out)
    <cache>/buckets/read/gs/BUCKET/KEY/@ID/NAME     a copy of files to read

`address_of` is the inverse. A program's results are uploaded when it ends (`push_outputs`), those
of training while it runs (`mirror`). ID identifies the content of all files, so a copy is complete,
never changes, and is fetched once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ddpm_jax.data.cache import cache_root
from ddpm_jax.data.download import progress_bar
from ddpm_jax.devices import processes
from ddpm_jax.files import number_of, parse_json_object, read_json_object
from ddpm_jax.programs.bucket_files import Bucket, BucketError, Files

EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
NO_BUCKETS = ("file", "local", "http", "https", "data")
"""Schemes of fsspec that cannot hold a folder, or whose folders need no copy."""
KEPT_SECONDS = 7 * 86400.0
"""Seconds for which a copy of an earlier content is kept after its last use."""
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
States = dict[Path, tuple[int, int, int]]
written: dict[Path, States | None] = {}
"""Local folders that stand for addresses, and what need not be pushed; None for nothing to push."""


class UnsentError(BucketError):
    """The results are complete, but exist only on this machine."""


def find_address(path: str | os.PathLike[str]) -> str | None:
    """The address in a string or path (`Path` turns // into /), or None if it is not one."""
    found = _ADDRESS.fullmatch(os.fspath(path))
    return f"{found[1]}://{found[2].rstrip('/')}" if found else None


def check_address(address: str, flag: str) -> None:
    """Raises ValueError unless there is a file system for the address; contacts no server."""
    import fsspec

    scheme, _, rest = address.partition("://")
    if scheme in NO_BUCKETS:
        raise ValueError(
            f"{flag} {address} is an address ({scheme}://), neither a local path nor a bucket. "
            "Mount it or copy it to a local folder, and name that one."
        )
    if not rest or ".." in rest.split("/"):
        raise ValueError(f"{flag} {address} names no folder of a bucket. Write gs://BUCKET/FOLDER.")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        remedy = f"pip install {extra}fs (extra [{extra}])" if extra else str(error)
        raise ValueError(
            f"{flag} {address} needs a package that is not installed: {remedy}."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{flag} {address} is an address ({scheme}://) that fsspec does not know. Use gs:// or "
            "s3://, or copy it to a local folder and name that one."
        ) from error


def localized(address: str, option: str, flag: str) -> Path:
    """The local path that stands for the address in this option; files to read are fetched.

    `init_from` stays an address: it is fetched when a run begins, but not when the run is resumed.
    """
    check_address(address, flag)
    last = option.rpartition(".")[2]
    if last == "cache_dir":
        raise ValueError(
            f"{flag} {address}: caches are local, because they are mapped into memory. Leave "
            f"{flag} out, or name a local folder."
        )
    if last == "init_from":
        return Path(address)
    if last not in ("run_dir", "out"):
        return fetch(address)
    path = _place("write", address)
    written.setdefault(path, states_in(path))
    return path


def address_of(path: Path) -> str | None:
    """The address that a path in the cache stands for, or None."""
    path = Path(path).absolute()
    for area in ("write", "read"):
        root = _root() / area
        if root in path.parents:
            scheme, *parts = path.relative_to(root).parts
            if area == "read":
                parts = itertools.takewhile(lambda part: not part.startswith("@"), parts)
            return f"{scheme}://{'/'.join(parts)}"
    return None


def shown(path: Path) -> str:
    """A path as written in config.json and messages: its address, if it has one."""
    return address_of(path) or find_address(path) or str(path)


def _root() -> Path:
    return cache_root().absolute() / "buckets"


def _place(area: str, address: str) -> Path:
    scheme, _, rest = address.partition("://")
    return _root() / area / scheme / rest


def _identity(info: dict[str, Any]) -> list[str]:
    """Values that change with a file: its size, and the server's tag or time."""
    tags = ("ETag", "etag", "md5Hash", "generation", "mtime", "created")
    return [str(info.get("size")), *(str(info[tag]) for tag in tags if tag in info)]


def fetch(address: str, choose: Callable[[Files], Files] = lambda files: files) -> Path:
    """A local copy of the files at an address, or of a choice of them.

    Raises BucketError if there are no files, they cannot be read, or the disk has no room for them.
    """
    bucket = Bucket(address)
    for attempt in range(3):
        try:
            return _fetch(bucket, choose(bucket.files()))
        except FileNotFoundError as error:  # training removed it after it was listed
            if attempt == 2:
                raise BucketError(f"{address} changes while it is read: {error}") from error
    raise AssertionError


def _fetch(bucket: Bucket, files: Files) -> Path:
    from ddpm_jax.programs.console import quantity, say  # which imports this module

    if not files:
        raise BucketError(f"{bucket.address} holds no files, or does not exist.")
    what = json.dumps({name: _identity(files[name]) for name in sorted(files)})
    place = _place("read", bucket.address)
    whole = place / f"@{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    result = whole / place.name
    if result.exists():
        os.utime(whole)
        return result
    partial = whole.with_name(f".{whole.name}.partial")
    draft = partial / place.name
    missing = {n: draft / n if n else draft for n in files if not (draft / n).is_file()}
    size = sum(int(files[name]["size"]) for name in missing)
    partial.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(partial).free
    if free < size:
        raise BucketError(
            f"{bucket.address} has {size:,} bytes, and {partial} has room for {free:,}. Set "
            "DDPM_JAX_CACHE to a folder on another disk."
        )
    say(f"fetching {bucket.address}: {len(missing):,} files, {quantity(size, 'B')}")
    names, done = list(missing), 0
    with progress_bar(None, place.name, size, unit="B") as report:
        for first in range(0, len(names), 64):
            some = names[first : first + 64]
            bucket.get({name: missing[name] for name in some})
            for name in some:
                if (got := missing[name].stat().st_size) != int(files[name]["size"]):
                    raise BucketError(f"{name} of {bucket.address} arrived with {got:,} bytes")
                done += got
            report(done, size)
    for old in place.glob("@*"):
        if time.time() - old.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    try:
        os.rename(partial, whole)
    except OSError:
        if not result.exists():  # else another process was faster
            raise
    return result


def committed_steps(files: Files) -> list[int]:
    """The steps of a run's complete checkpoints (those with a manifest), ascending."""
    found = (re.fullmatch(r"checkpoints/([^/]+)/manifest\.json", name) for name in files)
    steps = (number_of(match[1]) for match in found if match)
    return sorted(step for step in steps if step is not None)


def fetch_run(address: str, step: int | None = None, *, all_steps: bool = False) -> Path:
    """A local copy of the files needed to read a run: config.json, and a checkpoint or the weights.

    A damaged newest checkpoint is skipped with a warning. Raises BucketError if there is no
    checkpoint of `step`, or the run cannot be read.
    """
    from ddpm_jax.training.manifest import DamagedCheckpointError, verify_manifest

    def choose(files: Files, wanted: list[int]) -> Files:
        folders = tuple(f"checkpoints/{s}/" for s in wanted)
        return {n: i for n, i in files.items() if n == "config.json" or n.startswith(folders)}

    steps = committed_steps(files := Bucket(address).files())
    if not steps:
        weights = {n: files[n] for n in ("config.json", "weights.safetensors") if n in files}
        visible = {name: info for name, info in files.items() if not is_hidden(name)}
        return fetch(address, lambda _: weights if len(weights) == 2 else visible)
    if step is not None and step not in steps:
        raise BucketError(f"{address} has no checkpoint of step {step}; it has {steps}.")
    if all_steps:
        return fetch(address, lambda files: choose(files, committed_steps(files)))
    if step is not None:
        return fetch(address, functools.partial(choose, wanted=[step]))
    for newest in reversed(steps):
        path = fetch(address, functools.partial(choose, wanted=[newest]))
        try:
            verify_manifest(path / "checkpoints" / str(newest), newest)
            return path
        except DamagedCheckpointError as error:
            warnings.warn(f"damaged checkpoint in {address}: {error}", stacklevel=2)
    raise BucketError(f"{address} has no intact checkpoint; it has {steps}.")


def is_hidden(name: str) -> bool:
    """Whether a file or one of its folders has a name that begins with a dot."""
    return any(part.startswith(".") for part in name.split("/"))


def readable_run(path: Path, step: int | None = None, sigma_rel: float | None = None) -> Path:
    """A local run: the path itself, or `fetch_run` of the address that it is or stands for.

    An average of width `sigma_rel` needs every checkpoint.
    """
    address = address_of(path) or find_address(path)
    return path if address is None else fetch_run(address, step, all_steps=sigma_rel is not None)


def check_fetched(path: Path | None) -> None:
    """Raises ValueError if a stored configuration names data in a bucket."""
    if path is not None and (address := find_address(path)) is not None:
        raise ValueError(
            f"the data are at {address}, and a stored configuration must not decide what is "
            f"fetched. Name them: --data.path {address}."
        )


def files_behind(folder: Path) -> Files:
    """The files in the bucket that an output folder stands for; {} for a local folder."""
    address = address_of(folder)
    return {} if address is None else Bucket(address).files()


def taken_in(folder: Path, names: Iterable[str]) -> list[str]:
    """Which of these files and folders are in an output folder, or in the bucket behind it."""
    tops = {name.partition("/")[0] for name in files_behind(folder)}
    return [name for name in names if name in tops or (folder / name).exists()]


def about_in(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The JSON object of this name in an output folder, or in the bucket behind it; else {}."""
    path, address = folder / name, address_of(folder)
    with contextlib.suppress(OSError, ValueError):
        if address is None or path.exists():
            return read_json_object(path)
        return parse_json_object(Bucket(address).read(path.name))
    return {}


def states_in(root: Path) -> States:
    """Inode, size and time of every file in a folder, or of a file: what tells which are new.

    Times alone do not: a clock may be set back, and a file system's may lag.
    """
    found = {}
    for path in [root, *root.rglob("*")]:
        with contextlib.suppress(OSError):  # it may go away, or be a link to nothing
            if path.is_file():
                status = path.stat()
                found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def push_outputs() -> None:
    """Uploads the results of this process whose run_dir or out is an address.

    Raises UnsentError if the upload fails; the local files are kept.
    """
    from ddpm_jax.programs.console import say

    for root, before in list(written.items()) if processes.is_leader() else ():
        if before is None:
            continue
        now, sources = states_in(root), {}
        for path, state in now.items():
            name = path.relative_to(root).as_posix() if path != root else ""
            nearest = next(folder for folder in (path, *path.parents) if folder in written)
            if nearest == root and before.get(path) != state and not is_hidden(name):
                sources[name] = path
        address = address_of(root)
        if sources and address is not None:
            try:
                bucket = Bucket(address)
                # Files that describe others come after them, a checkpoint's manifest last.
                rank = {n: n.endswith(".json") + n.endswith("manifest.json") for n in sources}
                for turn in range(3):
                    bucket.put({n: path for n, path in sources.items() if rank[n] == turn})
            except BucketError as error:
                raise UnsentError(f"{error} The results are kept in {root}; copy them.") from error
            say(f"pushed {len(sources)} files to {address}")
        written[root] = now
