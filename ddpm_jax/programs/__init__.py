"""Whole runs from a configuration: the scripts of `experiments/` pass their CONFIG to these.

`config` (the dataclasses) → `build` (objects from them) → `train`, `sample` (the programs), on a
`run_directory`.
"""
