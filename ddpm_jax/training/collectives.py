"""What the devices of one step tell each other about parameters and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from ddpm_jax.types import Array, Key, PyTree

AxisNames = str | tuple[str, ...]


class Collectives(NamedTuple):
    """The communication of one step, for a function that sees one device's part of the batch.

    Attributes:
        axes: the mapped axis or axes that the batch is split over.
        vary: parameters as they come in -> marked as this device's own. Without it shard_map sums
            the gradients of replicated parameters over the axis by itself, and the mean below would
            leave them N times too large: a fault that Adam hides.
        gather: what `vary` gives -> whole parameters; differentiated through.
        mean: the local gradients -> their mean over all devices.
    """

    axes: AxisNames
    vary: Callable[[PyTree], PyTree]
    gather: Callable[[PyTree], PyTree]
    mean: Callable[[PyTree], PyTree]


class Gradients(Protocol):
    """`(params, loss_state, key, batch, collectives=None) -> (loss, seen, grads)`."""

    def __call__(
        self,
        params: PyTree,
        loss_state: PyTree,
        key: Key,
        batch: Any,
        collectives: Collectives | None = None,
    ) -> tuple[Array, PyTree, PyTree]:
        """The mean loss, what the loss has seen, and the mean gradient, over all devices."""
        ...


def replicated(axes: AxisNames) -> Collectives:
    """Every device has all parameters, and gradients are averaged: data parallelism."""
    return Collectives(
        axes=axes,
        vary=lambda params: jax.lax.pcast(params, axes, to="varying"),
        gather=lambda params: params,
        mean=lambda grads: jax.lax.pmean(grads, axes),
    )
