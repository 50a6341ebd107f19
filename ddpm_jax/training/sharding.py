"""The training step on any number of devices: plain jit, pmap, or shard_map over a mesh.

The global batch is split along its first axis. Either the parameters are replicated, and the step
gets an axis name and averages over it (`training.step`); or they are split over some of the
devices, and the step gets a layout (`training.fsdp`). The mesh may span several processes, each of
which provides its own rows of every batch.

Each dispatch runs a chunk of up to K steps, in a loop whose length is an argument rather than a
constant. So one compiled program serves every length, and the numbers of a run do not depend on
where it is cut into chunks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.devices import mesh as meshes
from ddpm_jax.devices.mesh import AXES, WHOLE, check_devices
from ddpm_jax.forward.checks import check_choice, check_function, check_whole
from ddpm_jax.keys import is_key
from ddpm_jax.training.fsdp import FullySharded, state_shardings
from ddpm_jax.training.packed import pack_state, unpack_state
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import Batch, TrainStep
from ddpm_jax.types import Array, Device, PyTree

Backend = Literal["jit", "pmap", "shard_map"]
AXIS = AXES[0]

Fetch = Callable[[Any, Batch], Batch]
"""`fetch(dataset, batch) -> batch`: looks up examples by index, inside the compiled step."""

RunChunk = Callable[..., tuple[TrainState, dict[str, Array]]]
"""`run(state, dataset, batches, count) -> (state, metrics [K])`; metrics past `count` are NaN."""


def make_chunk(train_step: TrainStep, fetch: Fetch, *, packed: bool = False) -> RunChunk:
    """Builds `chunk(state, dataset, batches, count, axis_name=None, layout=None)`, up to K steps.

    Every leaf of `batches` is [K, b, ...]; the first `count` of the K are used. Traceable; not
    jitted.

    With `packed` the steps of one dispatch update all parameters at once (`training.packed`), if
    they are more than one step and the parameters are not split. The optimiser must treat every
    number alike, as that of `make_optimizer` does; one with a norm per array (LARS) does not.
    """

    check_function("make_chunk", "train_step", train_step, "(state, batch) -> (state, metrics)")
    check_function("make_chunk", "fetch", fetch, "(dataset, batch) -> batch")

    def chunk(state, dataset, batches, count, axis_name=None, layout=None):
        length = jax.tree.leaves(batches)[0].shape[0]
        look_up = fetch if layout is None else layout.map_fetch(fetch)

        def one(state: TrainState, i):
            batch = jax.tree.map(lambda leaf: leaf[i], batches)
            return train_step(state, look_up(dataset, batch), axis_name, layout)

        if length == 1:
            # No loop around a single step, the default on CPUs: it compiles faster without one.
            state, metrics = one(state, 0)
            return state, jax.tree.map(lambda m: m[None], metrics)

        if packed and layout is None:
            state = pack_state(state)
        shapes = jax.eval_shape(lambda s: one(s, 0)[1], state)
        metrics = jax.tree.map(lambda m: jnp.full((length, *m.shape), jnp.nan, m.dtype), shapes)

        def body(i, carry):
            state, metrics = carry
            state, now = one(state, i)
            return state, jax.tree.map(lambda all_, m: all_.at[i].set(m), metrics, now)

        state, metrics = jax.lax.fori_loop(0, count, body, (state, metrics))
        return unpack_state(state), metrics

    return chunk


@dataclass(frozen=True)
class DataParallel:
    """The devices that a training step runs on, and how.

    Attributes:
        backend: "jit" (one device), "pmap" (devices of one process) or "shard_map".
        devices: the devices; the global batch must be a multiple of their number.
        parameter_shards: the number of devices the parameters are split over, for "shard_map".

    Raises ValueError for an unknown backend, no devices, "jit" with several devices, or devices
    that do not form groups of parameter_shards.
    """

    backend: Backend
    devices: tuple[Device, ...]
    parameter_shards: int = 1

    def __post_init__(self):
        check_choice("DataParallel", "backend", self.backend, ("jit", "pmap", "shard_map"))
        check_devices("DataParallel", self.devices)
        check_whole("DataParallel", "parameter_shards", self.parameter_shards)
        if self.backend == "jit" and len(self.devices) != 1:
            raise ValueError(
                f"DataParallel with backend {self.backend!r} got {len(self.devices)} devices. "
                "'jit' runs on one; 'pmap' and 'shard_map' run on one or more."
            )
        shards = self.parameter_shards
        if len(self.devices) % shards:
            raise ValueError(
                f"{len(self.devices)} devices do not form groups of {shards} over which parameters "
                "could be split. Choose a divisor of their number (--devices.parameter-shards)."
            )
        if shards > 1 and self.backend != "shard_map":
            raise ValueError(
                f"the backend {self.backend!r} keeps all parameters on every device, got "
                f"parameter_shards {shards}. Use shard_map (--devices.backend shard_map)."
            )
        if self.backend == "pmap" and jax.process_count() > 1:
            raise ValueError(
                "the backend 'pmap' runs on the devices of one process, and there are "
                f"{jax.process_count()}. Use shard_map (--devices.backend shard_map)."
            )

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices as a mesh [data, fsdp]."""
        return meshes.make_mesh(self.devices, self.parameter_shards)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of arrays that every device holds completely."""
        return NamedSharding(self.mesh, WHOLE)

    @property
    def packed(self) -> bool:
        """Whether steps with packed parameters cost less; see `make_chunk`.

        On GPUs they launch half as many kernels, by the compiler's account. CPUs and TPUs take
        longer for them.
        """
        return self.devices[0].platform == "gpu"

    @property
    def _layout(self) -> FullySharded | None:
        return FullySharded(self.mesh) if self.parameter_shards > 1 else None

    def check_batch_size(self, batch_size: int, num_microbatches: int = 1) -> None:
        """Raises ValueError unless devices and microbatches divide the global batch evenly."""
        parts = len(self.devices) * num_microbatches
        if batch_size < 1 or batch_size % parts:
            each = f", in {num_microbatches} microbatches each" if num_microbatches > 1 else ""
            raise ValueError(
                f"batch_size {batch_size} does not split evenly over {len(self.devices)} "
                f"devices{each}. Use a multiple of {parts}, or fewer devices (--devices.count)."
            )

    def place(self, state: TrainState) -> TrainState:
        """Places a state on the devices: replicated, or with its parameters split.

        It must be the same in every process.
        """

        def put(leaf, sharding):
            if not is_key(leaf) or sharding.is_fully_addressable:
                return _put(leaf, sharding)
            data = meshes.put(np.asarray(jax.random.key_data(leaf)), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))

        return jax.tree.map(put, state, state_shardings(state, self.mesh))

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies every leaf to every device."""
        return jax.tree.map(lambda leaf: _put(leaf, self.replicated), tree)

    def placeholder(self, state: TrainState) -> TrainState:
        """The shapes of a state, as `jax.eval_shape` returns them, placed as `place` would."""
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            state,
            state_shardings(state, self.mesh),
        )

    def place_batches(self, batches: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Splits this process's rows of host batches [K, b, ...] over its devices."""
        if self.backend == "pmap":
            count = len(self.devices)
            split = {k: v.reshape(v.shape[0], count, -1, *v.shape[2:]) for k, v in batches.items()}
            return jax.device_put(split, NamedSharding(self.mesh, PartitionSpec(None, AXIS)))
        rows = NamedSharding(self.mesh, PartitionSpec(None, AXES))
        if rows.is_fully_addressable:
            return jax.device_put(dict(batches), rows)
        return {
            name: jax.make_array_from_process_local_data(rows, value)
            for name, value in batches.items()
        }

    def wrap(self, chunk: RunChunk) -> Any:
        """Compiles `chunk` for the devices; the result takes the same arguments and has `.lower`.

        The new state reuses the memory of the old one (it is donated), except on CPUs, where a save
        in the background may still be reading it.
        """
        donated = () if self.devices[0].platform == "cpu" else (0,)
        if self.backend == "jit":
            return jax.jit(chunk, donate_argnums=donated)
        if self._layout is not None:
            return jax.jit(functools.partial(chunk, layout=self._layout), donate_argnums=donated)
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
        return jax.jit(
            jax.shard_map(
                mapped,
                mesh=self.mesh,
                in_specs=(WHOLE, WHOLE, PartitionSpec(None, AXIS), WHOLE),
                out_specs=(WHOLE, WHOLE),
            ),
            donate_argnums=donated,
        )


def _put(leaf: Any, sharding: NamedSharding) -> Array:
    if sharding.is_fully_addressable:
        # Always a copy: device_put may alias the caller's buffers, which donation would delete.
        return jax.device_put(jnp.copy(leaf), sharding)
    return meshes.put(np.asarray(leaf), sharding)


def choose_devices(
    backend: Literal["auto", "jit", "pmap", "shard_map"] = "auto",
    count: int | None = None,
    *,
    parameter_shards: int = 1,
) -> DataParallel:
    """Picks devices and backend: by default all devices, with jit for one and shard_map for more.

    `count` is the number of devices per process. Raises ValueError if there are fewer.
    """
    call = "choose_devices"
    check_choice(call, "backend", backend, ("auto", "jit", "pmap", "shard_map"))
    if count is not None:
        remedy = "--devices.count (--num-devices) sets it."
        count = check_whole(call, "count", count, remedy=remedy)
    parameter_shards = check_whole(call, "parameter_shards", parameter_shards)
    try:
        available = jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"JAX found no device to run on ({error}). Install the extra for your device "
            "([cuda13], [cuda12], [tpu]), or unset JAX_PLATFORMS to use the CPU."
        ) from error
    if count is not None and count > len(available):
        raise ValueError(
            f"the number of devices must be in 1..{len(available)}, the number of "
            f"{available[0].platform} devices here; got {count}. "
            f"JAX_NUM_CPU_DEVICES={count} simulates that many on a CPU."
        )
    devices = tuple(available[:count] if jax.process_count() == 1 else meshes.all_devices(count))
    if backend == "auto":
        backend = "jit" if len(devices) == 1 else "shard_map"
    return DataParallel(backend, devices, parameter_shards)
