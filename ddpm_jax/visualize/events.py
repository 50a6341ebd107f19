"""Signals, volumes and images with any number of channels, drawn as images for a sheet."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ddpm_jax.forward.checks import host_pixels, spatial_axes
from ddpm_jax.visualize.files import COLOURS

Pixels = npt.NDArray[np.uint8]

_HEIGHT = 64
"""Height in pixels of the picture of a signal."""
_WIDTHS = (64, 256)
"""The smallest and largest width of this picture."""


def as_images(events: npt.ArrayLike, spatial_rank: int) -> Pixels:
    """Returns uint8 images [N, H, W, 1 or 3] that show uint8 events [N, ..., C].

    Images with one or three channels are returned unchanged. A signal [L, C] becomes one line per
    channel, in different colours, with 255 at the top. A volume [D, H, W, C] becomes its middle
    slice along D. Images with two channels show the first one, images with more than three the
    first three.

    Raises TypeError for anything but uint8, ValueError for another shape or rank.
    """
    axes = spatial_axes("as_images", spatial_rank)
    pixels = host_pixels("as_images", events, f"N{axes}C")
    if spatial_rank == 1:
        return np.stack([_lines(signal) for signal in pixels])
    if spatial_rank == 3:
        pixels = pixels[:, pixels.shape[1] // 2]
    return pixels[..., : 3 if pixels.shape[-1] >= 3 else 1]


def _lines(signal: Pixels) -> Pixels:
    """The picture of a signal [L, C]."""
    from PIL import Image, ImageDraw

    width = int(np.clip(len(signal), *_WIDTHS))
    picture = Image.new("RGB", (width, _HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    values = signal if len(signal) > 1 else np.repeat(signal, 2, axis=0)
    x = np.linspace(0, width - 1, len(values))
    y = (_HEIGHT - 1) * (1 - values / 255)
    for channel in range(values.shape[1]):
        points = np.stack([x, y[:, channel]], axis=1)
        draw.line(list(map(tuple, points.tolist())), fill=COLOURS[channel % len(COLOURS)])
    return np.asarray(picture)
