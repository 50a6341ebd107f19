"""Writes image grids, animations, labelled rows, plots and panels to files.

Images are uint8 with one or three channels, as `to_pixels` returns them; floats are refused, since
their range would have to be guessed. Small images are magnified by an integer factor, without
interpolation.

Files are written atomically, and folders are made as needed. Nothing changes matplotlib's global
state, so drawing works without a display and from several threads. Every function that takes images
raises TypeError for anything but uint8; all raise ValueError for other shapes, and for a path that
does not end in their file type.
"""

from ddpm_jax.visualize.events import as_images as as_images
from ddpm_jax.visualize.fields import Arrows as Arrows
from ddpm_jax.visualize.fields import Heatmap as Heatmap
from ddpm_jax.visualize.fields import Line as Line
from ddpm_jax.visualize.fields import Panel as Panel
from ddpm_jax.visualize.fields import Points as Points
from ddpm_jax.visualize.fields import save_panels as save_panels
from ddpm_jax.visualize.grids import image_grid as image_grid
from ddpm_jax.visualize.grids import save_gif as save_gif
from ddpm_jax.visualize.grids import save_grid as save_grid
from ddpm_jax.visualize.plots import save_curves as save_curves
from ddpm_jax.visualize.plots import save_loss_curve as save_loss_curve
from ddpm_jax.visualize.rows import save_rows as save_rows
