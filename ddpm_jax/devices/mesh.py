"""Meshes of devices, and moving arrays between them and the host, for one process or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from ddpm_jax.forward.checks import check_kind, check_whole
from ddpm_jax.types import Array, Device, PyTree, describe

AXES = ("data", "fsdp")
"""The axes of every mesh. Batches are split over both, parameters over the second only."""
ROWS = PartitionSpec(AXES)
"""The spec of arrays whose first axis is split over all devices."""
WHOLE = PartitionSpec()
"""The spec of arrays that every device holds completely."""


def all_devices(count: int | None = None) -> list[Device]:
    """The devices of all processes, or the first `count` of each, ordered by process.

    Each process then owns one contiguous block of rows of every batch. (JAX numbers the chips of a
    TPU pod by their position in the torus, which interleaves the processes.)
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if count is None:
        return devices
    count = check_whole("all_devices", "count", count)
    own = [[d for d in devices if d.process_index == p] for p in range(jax.process_count())]
    return [device for part in own for device in part[:count]]


def check_devices(call: str, devices: Sequence[Device]) -> list[Device]:
    """The devices as a list. Raises unless they are a sequence of at least one JAX device."""
    if not isinstance(devices, Sequence) or not all(isinstance(d, jax.Device) for d in devices):
        raise TypeError(
            f"{call} needs devices, such as jax.devices()[:2], got {describe(devices)}."
        )
    if not devices:
        raise ValueError(f"{call} needs at least one device, got none.")
    return list(devices)


def make_mesh(devices: Sequence[Device], parameter_shards: int = 1) -> Mesh:
    """The devices as a mesh [data, fsdp]; parameters are split over the second axis.

    Devices that share the parameters are neighbours: on the same host, as far as possible.
    """
    devices = check_devices("make_mesh", devices)
    parameter_shards = check_whole("make_mesh", "parameter_shards", parameter_shards)
    if len(devices) % parameter_shards:
        raise ValueError(
            f"make_mesh needs a number of devices divisible by parameter_shards, got "
            f"{len(devices)} devices and {parameter_shards=}."
        )
    # Not jax.make_mesh: on TPU boards it reorders the devices, and pmap would not follow.
    grid = np.array(devices).reshape(-1, parameter_shards)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def put(tree: PyTree, sharding: Sharding) -> PyTree:
    """Places arrays on devices as `sharding` says.

    The arrays may be on the host, where every process must pass the same values, or on devices,
    e.g. to replicate a sharded tree.
    """
    check_kind("put", "sharding", sharding, Sharding, "NamedSharding(mesh, ROWS)")
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    leaves = jax.tree.leaves(tree)
    if any(isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in leaves):
        return jax.jit(lambda leaves: leaves, out_shardings=sharding)(tree)

    def place(leaf: Any) -> Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(place, tree)


def fetch(tree: PyTree) -> PyTree:
    """Copies arrays to the host: complete NumPy arrays in every process."""

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if leaf.is_fully_replicated or not isinstance(leaf.sharding, NamedSharding):
            return leaf
        return put(leaf, NamedSharding(leaf.sharding.mesh, WHOLE))

    return jax.device_get(jax.tree.map(whole, tree))


def own_rows(size: int) -> slice:
    """The rows of a batch of `size` that belong to this process's devices."""
    share = check_whole("own_rows", "size", size) // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)
