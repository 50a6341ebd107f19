"""JSON in the strict sense: one object, each name once, finite numbers, text that can be encoded.

Python's own reader takes more (NaN, names twice, half of a surrogate pair), and raises
RecursionError where lists are nested deeply enough. What it takes beyond the format is refused
here: two readers of such a file would understand different things.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from ddpm_jax.files.regular import read_regular

LARGEST = 1 << 24
"""Bytes; the manifest of a checkpoint of a thousand arrays has a hundredth of it."""
DEEPEST = 64
_HALF = re.compile("[\ud800-\udfff]")


def read_json_object(path: Path, most: int = LARGEST) -> dict[str, Any]:
    """The object in a file of UTF-8.

    Raises OSError where there is no regular file, ValueError, which does not name the file, for
    whatever is in it that is no such object.
    """
    return parse_json_object(read_regular(path, most))


def parse_json_object(content: bytes | str) -> dict[str, Any]:
    """The object that the text is; ValueError, saying what is wrong, for anything else."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        values = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"not JSON: nested deeper than {DEEPEST} levels") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"not a JSON object but a {type(values).__name__}")
    _check(values)
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the name {twice[:80]!r} is there twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _check(values: dict[str, Any]) -> None:
    # A list and no recursion, whose depth the file would choose.
    pending: list[tuple[Any, int]] = [(values, 1)]
    while pending:
        value, depth = pending.pop()
        if depth > DEEPEST:
            raise ValueError(f"not JSON: nested deeper than {DEEPEST} levels")
        if isinstance(value, dict):
            pending += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list):
            pending += [(inner, depth + 1) for inner in value]
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("not JSON: it has a number beyond all floating-point numbers")
        elif isinstance(value, str) and _HALF.search(value):
            raise ValueError(f"not JSON: {value[:80]!r} has half of a surrogate pair in it")
