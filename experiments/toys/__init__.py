"""The figures of `toy_2d.py`, one module per figure.

`densities` has the data and their scores, `fit` trains a small network on any loss, and `figure`
has what the figures share.
"""
