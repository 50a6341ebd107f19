"""The history of score matching on densities whose score is known: one module a figure, one page.

`densities` → `fit` (a small network on any loss) → a module a figure → `page` (all of them).
"""
