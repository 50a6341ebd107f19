"""Paths given as options: local or in a bucket, readable in reports, with ~ expanded."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any, TypeVar

from ddpm_jax.files import user_path
from ddpm_jax.programs.buckets import find_address, localized

C = TypeVar("C", bound=Any)
NAMES_OR_FILES = ("labels", "mask")
"""Text options that may name a file."""


def local_path(path: str | Path, option: str) -> Path:
    """The path with a leading ~ expanded; errors name the `option`.

    An address such as gs://BUCKET/KEY becomes the local path that stands for it (`buckets`). If the
    option names something to read, its content is fetched there.

    Raises ValueError for an address that no bucket can have and for a name that is not UTF-8, which
    config.json could not hold. Raises BucketError for a bucket that cannot be read.
    """
    flag = f"--{option.replace('_', '-')}"
    user_path(path, flag)  # refuses other types
    text = os.fspath(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        remedy = "Rename the folder, or reach it by a link with another name."
        with contextlib.suppress(UnicodeError):
            os.fsencode(text).decode("utf-8")
            remedy = (
                f"Its name is, but Python reads names as {sys.getfilesystemencoding()} here: set "
                "PYTHONUTF8=1 or LC_ALL=C.UTF-8."
            )
        raise ValueError(
            f"{flag} {ascii(text)} is not UTF-8, and config.json and reports could not name it. "
            f"{remedy}"
        ) from error
    if "\0" in text:
        raise ValueError(f"{flag} {ascii(text)} contains a NUL, which no path may.")
    address = find_address(text)
    return user_path(text) if address is None else localized(address, option, flag)


def with_local_paths(config: C, prefix: str = "") -> C:
    """The configuration with `local_path` applied to every path, and to text that may be one."""
    changes = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        # From Python a path may be text.
        if isinstance(value, Path) or (isinstance(value, str) and "Path" in str(f.type)):
            changes[f.name] = local_path(value, prefix + f.name)
        elif f.name in NAMES_OR_FILES and isinstance(value, str):
            changes[f.name] = str(local_path(value, prefix + f.name))
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            changes[f.name] = with_local_paths(value, f"{prefix}{f.name}.")
    return dataclasses.replace(config, **changes)
