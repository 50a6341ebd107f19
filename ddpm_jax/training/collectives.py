"""The communication between devices in one training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from ddpm_jax.types import Array, PyTree

AxisNames = str | tuple[str, ...]


class Collectives(NamedTuple):
    """The communication of a step, for a function that sees one device's part of the batch.

    Attributes:
        axes: the mapped axis or axes that the batch is split over.
        vary: marks the incoming parameters as device-varying. Without it shard_map sums the
            gradients of replicated parameters over the axes by itself, and the mean below leaves
            them N times too large, an error that Adam hides.
        gather: makes whole parameters of those that `vary` returns; differentiable.
        mean: averages the local gradients over all devices.
    """

    axes: AxisNames
    vary: Callable[[PyTree], PyTree]
    gather: Callable[[PyTree], PyTree]
    mean: Callable[[PyTree], PyTree]


Gradients = Callable[..., tuple[Array, PyTree, PyTree]]
"""`(params, loss_state, key, batch, collectives=None) -> (loss, seen, grads)`: the mean loss, the
loss's auxiliary output, and the mean gradient, over all devices."""


def replicated(axes: AxisNames) -> Collectives:
    """Data parallelism: every device holds all parameters, and gradients are averaged."""
    return Collectives(
        axes=axes,
        vary=lambda params: jax.lax.pcast(params, axes, to="varying"),
        gather=lambda params: params,
        mean=lambda grads: jax.lax.pmean(grads, axes),
    )
