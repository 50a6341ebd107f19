"""Configurations as values of JSON: what config.json holds, and how it is read back."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ddpm_jax.forward.checks import check_kind
from ddpm_jax.programs.buckets import shown


def to_json(config: Any, show: Callable[[Path], str] = shown) -> dict[str, Any]:
    """A configuration as plain JSON values; `show` turns paths into text."""

    def plain(value):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Path):
            return show(value)
        if isinstance(value, np.generic):
            return value.item()
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def with_types(call: str, config: Any, kind: type) -> Any:
    """The configuration with values of its fields' types: text becomes a path, a list a tuple.

    Raises TypeError for anything but a `kind`, and ValueError for values of other types. The errors
    name the call and the field.
    """
    check_kind(call, "a configuration", config, kind, f"{kind.__name__}(...)")
    return from_json(type(config), to_json(config, str), f"{call}: --", _option)


def _entry(where: str, name: str) -> str:
    """A field of a file: config.json: data: name."""
    return f"{where}: {name}"


def _option(where: str, name: str) -> str:
    """A field as an option: train: --data.name."""
    return f"{where}{'' if where.endswith('--') else '.'}{name.replace('_', '-')}"


def from_json(
    kind: type,
    values: dict[str, Any],
    where: str = "config.json",
    at: Callable[[str, str], str] = _entry,
) -> Any:
    """Rebuilds a configuration from `to_json`'s values; `at(where, name)` names a field in errors.

    Raises ValueError for fields that are unknown or missing, naming them.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be an object of fields, got {values!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    missing = sorted(
        f.name
        for f in dataclasses.fields(kind)
        if f.name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    )
    if unknown or missing:
        raise ValueError(
            f"{where} does not describe a {kind.__name__} of this version: unknown fields "
            f"{unknown}, missing fields {missing}. Use the version of ddpm_jax that wrote it."
        )
    return kind(**{n: _typed(hints[n], v, at(where, n), at) for n, v in values.items()})


def _typed(hint: Any, value: Any, where: str, at: Callable[[str, str], str]) -> Any:
    """The value as its type hint wants it; ValueError when it is of another type."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object of fields, got {value!r}")
        return from_json(typing.cast(type, hint), value, where, at)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        *others, last = (option for option in arguments if option is not type(None))
        for option in others:
            with contextlib.suppress(ValueError):
                return _typed(option, value, where, at)
        return _typed(last, value, where, at)
    if origin is Literal:
        fits = any(type(value) is type(known) and value == known for known in arguments)
        hint = f"one of {', '.join(map(str, arguments))}"
    elif origin is tuple:
        fits = isinstance(value, list) and (arguments[1] is ... or len(value) == len(arguments))
        value = tuple(_typed(arguments[0], v, where, at) for v in value) if fits else value
    elif hint is Path:
        fits = isinstance(value, str) and "\0" not in value
        value = Path(value) if fits else value
    else:
        fits = _is_a(hint, value)
    if not fits:
        name = getattr(hint, "__name__", hint) if origin is None else hint
        raise ValueError(f"{where} does not fit its type {name}: got {repr(value)[:200]}")
    return value


def _is_a(hint: type, value: Any) -> bool:
    """Whether a value of JSON is of this type; numbers are those that 64 bits hold."""
    if hint is float and type(value) is float:
        return math.isfinite(value)
    if hint in (int, float):
        return type(value) is int and -(2**63) <= value < 2**63
    return isinstance(value, hint)


def check_least(config: Any, least: int, *names: str, group: str = "") -> None:
    """Raises ValueError, which names the option, for fields below `least`; None is no number."""
    for name in names:
        value, option = getattr(config, name), _option(f"--{group}", name)
        if value is not None and value < least:
            raise ValueError(f"{option} must be at least {least}, got {value}.")
