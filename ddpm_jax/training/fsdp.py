"""Fully sharded parameters: every device stores one part of each large array and gathers the rest.

On a mesh [data, fsdp] the parameters, their average and the optimiser's moments are split over the
axis "fsdp", and batches over both axes (ZeRO-3: Rajbhandari et al. 2020; FSDP: Zhao et al. 2023).
In a training step each device

    gathers    the parts of each parameter where the network uses it (all-gather over fsdp),
    scatters   the sum of the gradients back into parts (reduce-scatter over fsdp, the transpose of
               the gather), and averages them over data,
    updates    only its own part.

Of the 16 bytes per parameter (float32: parameter, average, two moments) each of N devices stores
16/N. The cost is communication: `bytes_per_step`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.devices.mesh import AXES, ROWS, WHOLE
from ddpm_jax.forward.checks import check_kind, check_whole
from ddpm_jax.training.collectives import Collectives, Gradients
from ddpm_jax.training.state import TrainState, check_tree
from ddpm_jax.types import Array, Key, PyTree, describe

DATA, FSDP = AXES
SMALLEST = 2**14
"""Smaller arrays stay whole: gathering them costs more latency than 64 KiB is worth."""


def parameter_spec(shape: tuple[int, ...], shards: int) -> PartitionSpec:
    """How an array is split over `shards` devices.

    It is split along its longest axis that divides evenly (the last of several), or not at all if
    the array is small or no axis divides.
    """
    call = "parameter_spec"
    shards = check_whole(call, "shards", shards)
    if not isinstance(shape, Sequence) or not all(
        isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 0 for n in shape
    ):
        raise TypeError(f"{call} needs the shape of an array, got {describe(shape)}.")
    divisible = [(size, axis) for axis, size in enumerate(shape) if size % shards == 0]
    if shards == 1 or not divisible or np.prod(shape) < SMALLEST:
        return PartitionSpec()
    _, axis = max(divisible)
    return PartitionSpec(*[FSDP if i == axis else None for i in range(len(shape))])


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Where a state is kept: parameters, averages and optimiser split alike, the rest whole."""
    shards = mesh.shape[FSDP]

    def split(tree: PyTree) -> PyTree:
        return jax.tree.map(
            lambda leaf: NamedSharding(mesh, parameter_spec(leaf.shape, shards)), tree
        )

    whole = jax.tree.map(lambda _: NamedSharding(mesh, WHOLE), state)
    return dataclasses.replace(
        whole,
        params=split(state.params),
        ema_params=split(state.ema_params),
        extra_ema_params=split(state.extra_ema_params),
        opt_state=split(state.opt_state),
    )


def _axis(spec: PartitionSpec) -> int | None:
    """The axis of an array that a spec splits."""
    return next((i for i, name in enumerate(spec) if name == FSDP), None)


@dataclass(frozen=True)
class FullySharded:
    """The layout of a training step on a mesh [data, fsdp]; see the module's docstring."""

    mesh: Mesh

    def __post_init__(self) -> None:
        check_kind("FullySharded", "mesh", self.mesh, Mesh, "devices.mesh.make_mesh")

    @property
    def shards(self) -> int:
        """The number of devices that share the parameters."""
        return self.mesh.shape[FSDP]

    def constrain(self, state: TrainState) -> TrainState:
        """Constrains the layout of the state that a compiled step returns."""
        return jax.lax.with_sharding_constraint(state, state_shardings(state, self.mesh))

    def map_fetch(self, fetch: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """`fetch(dataset, batch)`, computed by each device for its own rows."""
        return jax.shard_map(fetch, mesh=self.mesh, in_specs=(WHOLE, ROWS), out_specs=ROWS)

    def map_gradients(
        self, gradients: Gradients
    ) -> Callable[[PyTree, PyTree, Key, Any], tuple[Array, PyTree, PyTree]]:
        """The gradients over all devices, as a function of split parameters; split likewise."""

        def mapped(params, loss_state, key, batch):
            specs = jax.tree.map(lambda leaf: parameter_spec(leaf.shape, self.shards), params)

            def local(params, loss_state, key, batch):
                return gradients(params, loss_state, key, batch, self._collectives(specs))

            return jax.shard_map(
                local,
                mesh=self.mesh,
                in_specs=(specs, WHOLE, WHOLE, ROWS),
                out_specs=(WHOLE, WHOLE, specs),
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
            # Differentiating the gather has summed these gradients over fsdp.
            if axis is None:
                return jax.lax.pmean(leaf, AXES)
            return jax.lax.pmean(leaf, DATA) / self.shards

        return Collectives(
            axes=AXES, vary=leafwise(vary), gather=leafwise(gather), mean=leafwise(mean)
        )


def bytes_per_step(
    params: PyTree, *, data: int, shards: int = 1, microbatches: int = 1
) -> dict[str, float]:
    """The bytes that one device sends and receives per training step, by kind of collective.

    For ring algorithms, which move the least possible: per device, an all-gather or reduce-scatter
    of n bytes over N devices sends and receives n (N-1)/N, an all-reduce twice that.

        all_reduce      gradients over data: whole ones, and each device's part of split ones
        all_gather      split parameters over fsdp, per microbatch
        reduce_scatter  their gradients, likewise

    `params` is a tree of arrays or shapes. Not counted: the second gather in the backward pass of a
    rematerialised network.
    """
    check_tree("bytes_per_step", "params", params)
    data, shards, microbatches = (
        check_whole("bytes_per_step", name, value)
        for name, value in (("data", data), ("shards", shards), ("microbatches", microbatches))
    )
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
