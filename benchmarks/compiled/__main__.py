"""Compiles the package's programs for GPUs and TPUs that need not be there."""

from __future__ import annotations

import sys

import tyro

from benchmarks.compiled import Choice, run

if __name__ == "__main__":
    sys.exit(run(tyro.cli(Choice, prog="python -m benchmarks.compiled", description=__doc__)))
