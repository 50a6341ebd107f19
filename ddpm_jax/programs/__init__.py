"""Whole runs from a configuration: what `experiments/` hand their CONFIG to.

`config` (the dataclasses) → `build` (objects from them) → `train`, `sample` (the programs), over a
run `directory`.
"""
