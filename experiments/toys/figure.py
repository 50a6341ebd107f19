"""What the figures share: panels with numbers, and a plane to draw fields on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from ddpm_jax.keys import example_keys
from ddpm_jax.types import Array, Key
from ddpm_jax.visualize import Arrows, Heatmap, Panel


class Figure(NamedTuple):
    """A picture and the numbers it shows."""

    title: str
    panels: Sequence[Panel]
    numbers: dict[str, Any]
    columns: int | None = None
    size: tuple[float, float] = (3.1, 3.1)


def draw(sample: Callable[[Key], Array], key: Key, count: int) -> Array:
    """Draws `count` samples [count, dim]; sample i depends on the key and i alone."""
    return jax.jit(sample)(example_keys(key, jnp.arange(count)))


def plane(half_width: float, count: int) -> Array:
    """The centres of count² cells of [-half_width, half_width]², as [count², 2], x fastest."""
    edge = half_width * (1.0 - 1.0 / count)
    line = np.linspace(-edge, edge, count)
    x, y = np.meshgrid(line, line)
    return jnp.asarray(np.stack([x.ravel(), y.ravel()], axis=1), jnp.float32)


def shade(
    values: npt.ArrayLike, half_width: float, bar: str | None = None, colours: str = "Blues", **kind
) -> Heatmap:
    """A heat map of values [N²] at the points of `plane`."""
    square = np.asarray(values, np.float64)
    count = round(len(square) ** 0.5)
    extent = (-half_width, half_width, -half_width, half_width)
    return Heatmap(square.reshape(count, count), extent, bar=bar, colours=colours, **kind)


def arrows(points: npt.ArrayLike, vectors: npt.ArrayLike, unit: float, longest: float) -> Arrows:
    """Vectors times `unit`, none longer than `longest`, starting at points."""
    scaled = np.asarray(vectors, np.float64) * unit
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    return Arrows(points, scaled * np.minimum(1.0, longest / np.maximum(length, 1e-12)))


def squared_norms(vectors: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """‖v‖² of the rows [N]."""
    return np.sum(np.square(np.asarray(vectors, np.float64)), axis=1)


def rms(squares: npt.ArrayLike) -> float:
    """√ of the mean."""
    return float(np.sqrt(np.mean(np.asarray(squares, np.float64))))
