"""What is measured against what: `python -m benchmarks`; see README.md in this folder.

Each module holds one benchmark: `measure(plan)` returns plain JSON values, and a `Benchmark`
(`render.py`) turns them into a line, tables and pictures. Every benchmark runs in its own process
(`worker.py`), rivals in further ones (`interleave.py`).
"""
