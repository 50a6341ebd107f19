"""What the models learn: densities in the plane whose modes can be counted.

Every density has a standard deviation of about 1 per coordinate, so no model has to learn a scale,
and modes that are apart or touch only in corners.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ddpm_jax.types import Array, Key
from toys.densities import checkerboard, gaussian_mixture

WIDTH = 0.1
"""Standard deviation of a Gaussian of the mixture."""
ANGLES = np.arange(8) * np.pi / 4
CENTRES = np.sqrt(2.0) * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
WEIGHTS = np.tile([1.0, 3.0], 4) / 16.0
BOARD = float(np.sqrt(3.0))
"""Half the width of the board: a variance of 1 per coordinate."""


class Data(NamedTuple):
    """A distribution on R^dim with modes.

    Attributes:
        name: as tables and figures print it.
        dim: d.
        sample: `keys [N] -> x [N, d]`, true samples.
        mode: `x [N, d] -> int [N]`, the mode that x belongs to, or -1 for none.
        weights: the true share of each mode [M], of the samples that belong to one.
        log_density: `x [N, d] -> log p(x)` [N] in nats, for true samples.
    """

    name: str
    dim: int
    sample: Callable[[Key], Array]
    mode: Callable[[np.ndarray], np.ndarray]
    weights: np.ndarray
    log_density: Callable[[Array], Array]


def eight_gaussians() -> Data:
    """Eight Gaussians on a circle, with weights of 1/16 and 3/16 in turn.

    A point within 3 standard deviations of a centre belongs to it: 98.9 % of the samples do.
    """
    density = gaussian_mixture(WEIGHTS, CENTRES, WIDTH)

    def mode(x: np.ndarray) -> np.ndarray:
        distance = np.linalg.norm(x[:, None] - CENTRES[None], axis=2)
        return np.where(distance.min(axis=1) <= 3 * WIDTH, distance.argmin(axis=1), -1)

    def log_density(x: Array) -> Array:
        return density.log_density(x, 0.0)

    return Data("eight Gaussians", 2, density.sample, mode, WEIGHTS, log_density)


def board() -> Data:
    """The eight filled squares of a checkerboard of 4 × 4; a point belongs to the square it is on.

    log p is minus the logarithm of their area.
    """
    density, side = checkerboard(4, BOARD), BOARD / 2.0

    def mode(x: np.ndarray) -> np.ndarray:
        cell = np.floor((x + BOARD) / side).astype(int)
        filled = ((cell >= 0) & (cell < 4)).all(axis=1) & (cell.sum(axis=1) % 2 == 0)
        return np.where(filled, 2 * cell[:, 0] + cell[:, 1] // 2, -1)

    def log_density(x: Array) -> Array:
        return jnp.full(x.shape[:1], -np.log(8.0 * side**2), x.dtype)

    return Data("checkerboard", 2, density.sample, mode, np.full(8, 1 / 8), log_density)
