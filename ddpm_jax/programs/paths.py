"""Paths given as options: local, readable in reports, with ~ expanded."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, TypeVar

from ddpm_jax.files import user_path

C = TypeVar("C", bound=Any)
NAMES_OR_FILES = ("labels", "mask")
"""Options of text that may name a file."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def local_path(path: str | Path, option: str) -> Path:
    """The path with a leading ~ expanded; `option` is named where it is refused.

    Raises ValueError for an address such as gs://…, which is no local path, and for names that are
    not UTF-8, which config.json could not hold.
    """
    text = os.fspath(path)
    flag = f"--{option.replace('_', '-')}"
    scheme = _SCHEME.match(text)
    if scheme:
        raise ValueError(
            f"{flag} {text} is an address ({scheme[1]}://), not a local path. Mount it or copy "
            "it to a local folder, and name that one."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{flag} {ascii(text)} is not UTF-8, and config.json and reports could not name it. "
            "Rename the folder, or reach it by a link with another name."
        ) from error
    if "\0" in text:
        raise ValueError(f"{flag} {ascii(text)} has a NUL in it, as no path may.")
    return user_path(text)


def with_local_paths(config: C, prefix: str = "") -> C:
    """The configuration with `local_path` of every path in it, and of text that may be one."""
    changes = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if isinstance(value, Path):
            changes[f.name] = local_path(value, prefix + f.name)
        elif f.name in NAMES_OR_FILES and isinstance(value, str):
            changes[f.name] = str(local_path(value, prefix + f.name))
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            changes[f.name] = with_local_paths(value, f"{prefix}{f.name}.")
    return dataclasses.replace(config, **changes)
