"""One training step on any number of devices: plain jit, pmap, or shard_map over a mesh.

Parameters are replicated and the global batch is split along its first axis. The step itself does
not change: it gets an axis name and averages over it (`training.step`).

Steps run in chunks of up to K a dispatch, by a loop whose length is an argument rather than a
constant: one compiled program serves every length, so where a run is cut into chunks leaves no
    trace in its
numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import Batch, TrainStep
from ddpm_jax.types import Array, Device, PyTree

Backend = Literal["jit", "pmap", "shard_map"]
AXIS = "data"

Fetch = Callable[[Any, Batch], Batch]
"""`fetch(dataset, batch) -> batch`: looks up, inside the compiled step, what a batch only points
to."""

RunChunk = Callable[..., tuple[TrainState, dict[str, Array]]]
"""`run(state, dataset, batches, count) -> (state, metrics [K])`; entries past `count` are NaN."""


def make_chunk(train_step: TrainStep, fetch: Fetch) -> RunChunk:
    """Builds `chunk(state, dataset, batches, count, axis_name=None)`: up to K steps, one after
    another.

    Every leaf of `batches` is [K, b, ...]; the first `count` of the K are used. Traceable; no jit
    inside.
    """

    def chunk(state, dataset, batches, count, axis_name=None):
        length = jax.tree.leaves(batches)[0].shape[0]

        def one(state: TrainState, i):
            batch = jax.tree.map(lambda leaf: leaf[i], batches)
            return train_step(state, fetch(dataset, batch), axis_name)

        if length == 1:
            # No loop round a single step: XLA's CPU backend leaves its fast convolutions inside
            # one.
            state, metrics = one(state, 0)
            return state, jax.tree.map(lambda m: m[None], metrics)

        shapes = jax.eval_shape(lambda s: one(s, 0)[1], state)
        metrics = jax.tree.map(lambda m: jnp.full((length, *m.shape), jnp.nan, m.dtype), shapes)

        def body(i, carry):
            state, metrics = carry
            state, now = one(state, i)
            return state, jax.tree.map(lambda all_, m: all_.at[i].set(m), metrics, now)

        return jax.lax.fori_loop(0, count, body, (state, metrics))

    return chunk


@dataclass(frozen=True)
class DataParallel:
    """Where and how the step runs.

    Attributes:
        backend: "jit" (one device), "pmap" or "shard_map".
        devices: the devices; the global batch must be a multiple of their number.

    Raises ValueError for an unknown backend, no devices, or "jit" with several.
    """

    backend: Backend
    devices: tuple[Device, ...]

    def __post_init__(self):
        if self.backend not in ("jit", "pmap", "shard_map"):
            raise ValueError(
                "DataParallel knows the backends 'jit', 'pmap' and 'shard_map', got "
                f"{self.backend!r}."
            )
        if not self.devices or (self.backend == "jit" and len(self.devices) != 1):
            raise ValueError(
                f"DataParallel with backend {self.backend!r} got {len(self.devices)} devices. "
                "'jit' runs on one; 'pmap' and 'shard_map' on one or more."
            )

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices in a row, as a mesh with the axis "data"."""
        # Not jax.make_mesh: on TPU boards it reorders the devices, and pmap would not follow.
        return Mesh(np.array(self.devices), (AXIS,), axis_types=(AxisType.Auto,))

    def check_batch_size(self, batch_size: int) -> None:
        """Raises ValueError unless the global batch splits evenly over the devices."""
        if batch_size < 1 or batch_size % len(self.devices):
            raise ValueError(
                f"batch_size {batch_size} does not split evenly over {len(self.devices)} devices. "
                f"Use a multiple of {len(self.devices)}, or fewer devices (--devices.count)."
            )

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies every leaf to every device."""
        sharding = NamedSharding(self.mesh, PartitionSpec())
        # A copy always: put alone may alias the caller's buffers, which donation would then delete.
        return jax.tree.map(lambda leaf: jax.device_put(jnp.copy(leaf), sharding), tree)

    def placeholder(self, tree: PyTree) -> PyTree:
        """The shapes of a tree, as `jax.eval_shape` returns them, placed as `replicate` would."""
        sharding = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    def place_batches(self, batches: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Sends host batches [K, B, ...] to the devices, each its share of the B."""
        count = len(self.devices)
        if self.backend == "pmap":
            split = {k: v.reshape(v.shape[0], count, -1, *v.shape[2:]) for k, v in batches.items()}
            return jax.device_put(split, NamedSharding(self.mesh, PartitionSpec(None, AXIS)))
        return jax.device_put(dict(batches), NamedSharding(self.mesh, PartitionSpec(None, AXIS)))

    def wrap(self, chunk: RunChunk, *, donate: bool | None = None) -> Any:
        """Maps `chunk` over the devices; the result takes the same arguments and has `.lower`.

        The old state's memory is given up to the new one (`donate`) except on CPUs, where saving in
        the background may still be reading it.
        """
        if donate is None:
            donate = self.devices[0].platform != "cpu"
        donated = (0,) if donate else ()
        if self.backend == "jit":
            return jax.jit(chunk, donate_argnums=donated)
        mapped = functools.partial(chunk, axis_name=AXIS)
        if self.backend == "pmap":
            return jax.pmap(
                mapped,
                axis_name=AXIS,
                in_axes=(None, None, 1, None),
                out_axes=None,  # type: ignore[arg-type]
                devices=list(self.devices),
                donate_argnums=donated,
            )
        replicated = PartitionSpec()
        return jax.jit(
            jax.shard_map(
                mapped,
                mesh=self.mesh,
                in_specs=(replicated, replicated, PartitionSpec(None, AXIS), replicated),
                out_specs=(replicated, replicated),
            ),
            donate_argnums=donated,
        )


def choose_devices(
    backend: Literal["auto", "jit", "pmap", "shard_map"] = "auto",
    count: int | None = None,
    available: Sequence[Device] | None = None,
) -> DataParallel:
    """Picks devices and backend: by default every local device, jit for one and shard_map for
    several.

    Raises ValueError when more devices are asked for than there are.
    """
    if available is None:
        try:
            available = jax.local_devices()
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"JAX found no device to run on ({error}). Install the extra for yours ([cuda13], "
                "[cuda12], [tpu]), or unset JAX_PLATFORMS to use the CPU."
            ) from error
    if count is not None and not 1 <= count <= len(available):
        raise ValueError(
            f"the number of devices must be in 1..{len(available)}, the {available[0].platform} "
            "devices here; "
            f"got {count}. JAX_NUM_CPU_DEVICES={max(count, 1)} simulates that many on a CPU."
        )
    devices = tuple(available[:count])
    if backend == "auto":
        backend = "jit" if len(devices) == 1 else "shard_map"
    return DataParallel(backend, devices)
