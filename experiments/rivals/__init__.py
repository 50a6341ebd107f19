"""The generative models of `rivals_2d.py`, one module per model, each shaped like its equation.

`rival` has what they share: the interface, the network, the training and the choice of a width.
`data` has what they are trained on, and `measures` how their samples are judged.
"""
