"""Writes image grids, animations, labelled rows, plots and panels to files.

Images are uint8 with one or three channels, as `to_pixels` returns them; floats are refused, since
their range would have to be guessed. Small images are magnified by an integer factor, without
interpolation.

Files are written atomically, and folders are made as needed. Nothing changes matplotlib's global
state, so drawing works without a display and from several threads. Every function that takes images
raises TypeError for anything but uint8; all raise ValueError for other shapes, and for a path that
does not end in their file type.
"""

from ddpm_jax.visualize.fields import Arrows, Heatmap, Line, Panel, Points, save_panels
from ddpm_jax.visualize.grids import image_grid, save_gif, save_grid
from ddpm_jax.visualize.plots import save_curves, save_loss_curve
from ddpm_jax.visualize.rows import save_rows

__all__ = [
    "Arrows",
    "Heatmap",
    "Line",
    "Panel",
    "Points",
    "image_grid",
    "save_curves",
    "save_gif",
    "save_grid",
    "save_loss_curve",
    "save_panels",
    "save_rows",
]
