"""The questions by name, in the order they are asked: what matters most first."""

from __future__ import annotations

import importlib

from benchmarks.present import Question

NAMES = (
    "training",
    "utilisation",
    "sampling",
    "memory",
    "input",
    "startup",
    "scaling",
    "precision",
)


def question(name: str) -> Question:
    """The question of this name: `QUESTION` of the module `benchmarks.NAME`."""
    if name not in NAMES:
        raise ValueError(f"there is no benchmark {name!r}; choose among {', '.join(NAMES)}.")
    return importlib.import_module(f"benchmarks.{name}").QUESTION
