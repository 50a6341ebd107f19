"""Runs the benchmarks one after another and writes their page; see README.md in this folder."""

from __future__ import annotations

import sys

import tyro

from benchmarks.run import Options, run

if __name__ == "__main__":
    sys.exit(run(tyro.cli(Options, prog="python -m benchmarks", description=__doc__)))
