"""Asks the questions one after another and writes their page; see README.md in this folder."""

from __future__ import annotations

import sys

import tyro

from benchmarks.ask import Options, ask

if __name__ == "__main__":
    sys.exit(ask(tyro.cli(Options, prog="python -m benchmarks", description=__doc__)))
