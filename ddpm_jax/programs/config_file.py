"""`--config FILE`: the fields of a training run from a JSON or YAML file, below the flags.

The file holds fields as config.json has them, all or some, or is the config.json of a run. Fields
that it leaves out keep the program's own values.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from ddpm_jax.files import MAX_JSON_BYTES, parse_json_object, read_regular, user_path
from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.programs.config_values import from_json, to_json
from ddpm_jax.programs.run_directory import with_new_names

HELP = "--config FILE.json|.yaml reads any of these fields from a file; flags override it."
# YAML 1.1 demands a dot in numbers such as 1e-4, which would otherwise be text.
_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+$")


def read_config(path: str | Path, base: TrainConfig) -> TrainConfig:
    """The configuration `base` with the fields of a file in place of its own.

    Raises ValueError for a file that is not JSON or YAML, and for fields that are unknown or of
    another type, naming them; OSError for a file that cannot be read.
    """
    path = user_path(path, "--config")
    content = read_regular(path, MAX_JSON_BYTES)
    ending = path.suffix.lower()
    if ending in (".yaml", ".yml"):
        values = _parse_yaml(path, content)
    elif ending == ".json":
        try:
            values = parse_json_object(content)
        except ValueError as error:
            raise ValueError(f"--config {path}: {error}.") from error
    else:
        raise ValueError(f"--config takes a file that ends in .json, .yaml or .yml, got {path}.")
    if isinstance(values.get("config"), dict):
        values = with_new_names(values["config"])
    fields = to_json(base)
    unknown = _update(fields, values)
    if unknown:
        raise ValueError(f"--config {path} has unknown fields: {_nearest(unknown, fields)}.")
    return from_json(TrainConfig, fields, f"--config {path}")


def apply_config_option(
    default: Any, description: str | None, words: Sequence[str]
) -> tuple[Any, str | None, list[str]]:
    """A program's default with the file of `--config` applied, its description, the other words.

    `default` is a configuration, or {name: (what it is, configuration)}; programs that do not train
    have no such option. Prints an error and exits with 2 for a file that cannot be used.
    """
    several = default if isinstance(default, Mapping) else {"": ("", default)}
    if not all(isinstance(config, TrainConfig) for _, config in several.values()):
        return default, description, list(words)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage="--config FILE")
    parser.add_argument("--config", type=Path, action="append")
    found, rest = parser.parse_known_args(list(words))
    if found.config and len(found.config) > 1:
        parser.error(
            f"--config is given {len(found.config)} times, and takes one file: write all fields "
            "into one, or the others as flags."
        )
    description = f"{description or ''}\n\n{HELP}"
    if found.config is None:
        return default, description, rest
    try:
        read = {n: (what, read_config(found.config[0], c)) for n, (what, c) in several.items()}
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    return read if isinstance(default, Mapping) else read[""][1], description, rest


def _parse_yaml(path: Path, content: bytes) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            """A mapping whose names occur once."""
            names = [key.value for key, _ in node.value]
            twice = [name for i, name in enumerate(names) if name in names[:i]]
            if twice:
                raise ValueError(f"the name {twice[0]!r} occurs twice")
            return super().construct_mapping(node, deep)

    def in_decimal(loader, node):
        """A number, unless YAML 1.1 and 1.2 disagree on it: 010 is 8 or 10, 1:30 is 90 or text."""
        if re.match(r"[-+]?0[0-9_]|.*:", node.value):
            raise ValueError(f"{node.value} is no decimal number")
        of = loader.construct_yaml_int if node.tag.endswith("int") else loader.construct_yaml_float
        return of(node)

    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", in_decimal)
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
    try:
        values = yaml.load(content, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path} must hold fields, not a {type(values).__name__}.")
    return values


def _update(fields: dict[str, Any], values: dict[Any, Any], prefix: str = "") -> list[str]:
    """Replaces fields by values of the same name, in place; returns the names that are unknown."""
    unknown = []
    for name, value in values.items():
        if name not in fields:
            unknown.append(f"{prefix}{name}")
        elif isinstance(fields[name], dict) and isinstance(value, dict):
            unknown += _update(fields[name], value, f"{prefix}{name}.")
        else:
            fields[name] = value
    return unknown


def _nearest(unknown: list[str], fields: dict[str, Any]) -> str:
    """Each unknown name, with the right one that is most like it."""
    known = [*fields, *flatten_dict(fields, sep=".")]
    described = []
    for name in unknown:
        last = name.rpartition(".")[2]
        near = [k for k in known if k.rpartition(".")[2] == last]
        near += difflib.get_close_matches(name, known, n=1)
        described.append(name + (f" (did you mean {near[0]}?)" if near else ""))
    return ", ".join(described)
