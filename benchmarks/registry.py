"""The benchmarks by name, in the order in which they run: the most important first."""

from __future__ import annotations

import importlib
from typing import Literal, get_args

from benchmarks.render import Benchmark

Name = Literal[
    "training",
    "utilisation",
    "sampling",
    "memory",
    "input",
    "startup",
    "scaling",
    "precision",
]
NAMES: tuple[Name, ...] = get_args(Name)


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name: `BENCHMARK` of the module `benchmarks.NAME`."""
    if name not in NAMES:
        raise ValueError(f"there is no benchmark {name!r}; choose among {', '.join(NAMES)}.")
    return importlib.import_module(f"benchmarks.{name}").BENCHMARK
