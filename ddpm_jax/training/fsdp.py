"""Fully sharded parameters: every device keeps one part of each large array, and borrows the rest.

On a mesh [data, fsdp] the parameters, their average and the optimiser's moments are split over the
axis "fsdp", batches over both axes (ZeRO-3: Rajbhandari et al. 2020; FSDP: Zhao et al. 2023). A
step

    gathers    the parts of each parameter where the network uses it (all-gather over fsdp),
    scatters   the sum of the gradients back into parts (reduce-scatter over fsdp, which is what
               differentiating the gather gives), and averages them over data,
    updates    its own part alone.

Of 16 bytes a parameter (float32: itself, average, two moments) each device keeps 16/N. What it
costs is communication: `bytes_per_step`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.devices.processes import AXES
from ddpm_jax.training.collectives import Collectives, Gradients
from ddpm_jax.training.state import TrainState
from ddpm_jax.types import Array, Key, PyTree

DATA, FSDP = AXES
SMALLEST = 2**14
"""Arrays of fewer numbers stay whole: the latency of gathering them is worth more than 64 KiB."""


def parameter_spec(shape: tuple[int, ...], shards: int) -> PartitionSpec:
    """How an array is split over so many devices: along its longest divisible axis, the last of
    equals; not at all where it is small or nothing divides."""
    divisible = [(size, axis) for axis, size in enumerate(shape) if size % shards == 0]
    if shards == 1 or not divisible or np.prod(shape) < SMALLEST:
        return PartitionSpec()
    _, axis = max(divisible)
    return PartitionSpec(*[FSDP if i == axis else None for i in range(len(shape))])


def state_specs(state: TrainState, shards: int) -> TrainState:
    """The PartitionSpecs of a state: parameters, average and optimiser split alike, the rest
    whole."""

    def split(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: parameter_spec(leaf.shape, shards), tree)

    whole = jax.tree.map(lambda _: PartitionSpec(), state)
    return dataclasses.replace(
        whole,
        params=split(state.params),
        ema_params=split(state.ema_params),
        opt_state=split(state.opt_state),
    )


def _axis(spec: PartitionSpec) -> int | None:
    """Which axis of an array a spec splits."""
    return next((i for i, name in enumerate(spec) if name == FSDP), None)


@dataclass(frozen=True)
class FullySharded:
    """The layout of a step on a mesh [data, fsdp]; see the module's docstring."""

    mesh: Mesh

    @property
    def shards(self) -> int:
        """Devices that share the parameters."""
        return self.mesh.shape[FSDP]

    def constrain(self, state: TrainState) -> TrainState:
        """Says inside a compiled step how the state it returns is laid out."""
        shardings = jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec),
            state_specs(state, self.shards),
            is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
        )
        return jax.lax.with_sharding_constraint(state, shardings)

    def map_fetch(self, fetch: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """`fetch(dataset, batch)` by each device for its own rows."""
        rows = PartitionSpec(AXES)
        return jax.shard_map(
            fetch, mesh=self.mesh, in_specs=(PartitionSpec(), rows), out_specs=rows
        )

    def map_gradients(
        self, gradients: Gradients
    ) -> Callable[[PyTree, PyTree, Key, Any], tuple[Array, PyTree, PyTree]]:
        """A step's gradients by all devices, from parameters in parts to gradients in parts."""

        def mapped(params, loss_state, key, batch):
            specs = jax.tree.map(lambda leaf: parameter_spec(leaf.shape, self.shards), params)

            def local(params, loss_state, key, batch):
                return gradients(params, loss_state, key, batch, self._collectives(specs))

            whole = PartitionSpec()
            return jax.shard_map(
                local,
                mesh=self.mesh,
                in_specs=(specs, whole, whole, PartitionSpec(AXES)),
                out_specs=(whole, whole, specs),
            )(params, loss_state, key, batch)

        return mapped

    def _collectives(self, specs: PyTree) -> Collectives:
        def leafwise(of: Callable[[Array, int | None], Array]) -> Callable[[PyTree], PyTree]:
            return lambda tree: jax.tree.map(lambda leaf, spec: of(leaf, _axis(spec)), tree, specs)

        def vary(leaf: Array, axis: int | None) -> Array:
            return jax.lax.pcast(leaf, AXES if axis is None else DATA, to="varying")

        def gather(leaf: Array, axis: int | None) -> Array:
            if axis is None:
                return leaf
            return jax.lax.all_gather(leaf, FSDP, axis=axis, tiled=True)

        def mean(leaf: Array, axis: int | None) -> Array:
            # What was gathered comes back from differentiation summed over fsdp.
            return (
                jax.lax.pmean(leaf, AXES)
                if axis is None
                else jax.lax.pmean(leaf, DATA) / self.shards
            )

        return Collectives(
            axes=AXES, vary=leafwise(vary), gather=leafwise(gather), mean=leafwise(mean)
        )


def bytes_per_step(
    params: PyTree, *, data: int, shards: int = 1, microbatches: int = 1
) -> dict[str, float]:
    """What one device sends and receives in a step, in bytes by kind of collective.

    By ring algorithms, which move the least a collective can: an all-gather or a reduce-scatter of
    n bytes over N devices sends and receives n (N-1)/N a device, an all-reduce twice that.

        all_reduce      gradients over data: whole, or each device's part of those that are split
        all_gather      split parameters over fsdp, for every microbatch
        reduce_scatter  their gradients, likewise

    `params` is a tree of arrays or shapes. A second gather in the backward pass, where the network
    is rematerialised, is not counted.
    """
    split = kept = 0
    for leaf in jax.tree.leaves(params):
        size = int(np.prod(leaf.shape)) * leaf.dtype.itemsize
        if _axis(parameter_spec(leaf.shape, shards)) is None:
            kept += size
        else:
            split += size
    ring = (shards - 1) / shards
    devices = data * shards
    return {
        "all_reduce": 2 * kept * (devices - 1) / devices + 2 * (split / shards) * (data - 1) / data,
        "all_gather": microbatches * split * ring,
        "reduce_scatter": microbatches * split * ring,
    }
