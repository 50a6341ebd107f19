"""What is measured against what: `python -m benchmarks`; see README.md in this folder.

Each module measures one question and knows how to say its answer: `measure(plan)` returns plain
JSON values, and a `Question` (`present.py`) turns them into a line, tables and pictures. Every
question is put in a process of its own (`worker.py`), rivals in further ones (`turns.py`).
"""
