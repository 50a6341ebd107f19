"""Evaluating a function on many rows: batch by batch, with each batch split over devices.

All batches have the same number of rows, so that one compiled program serves all of them: the last
batch is padded by repeating its last row, and the caller drops the results of the padding. The
devices may belong to several processes, which must all make the same calls with the same values.

    split = RowSplit(devices)
    compute = split.map(function, (WHOLE, ROWS))
    params, size = split.replicate(params), split.round_up(batch_size)
    for rows in batches(len(x), size):
        y[rows] = fetch(compute(params, split.put(x[rows], size)))[: rows.stop - rows.start]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from ddpm_jax.devices import mesh
from ddpm_jax.devices.mesh import ROWS, WHOLE
from ddpm_jax.forward.checks import check_function, check_kind, check_whole
from ddpm_jax.types import Device, PyTree, describe


def batches(count: int, size: int) -> Iterator[slice]:
    """The rows of each batch: slices of `size`, and a last one with what is left."""
    count = check_whole("batches", "count", count, least=0)
    size = check_whole("batches", "size", size)
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


class RowSplit:
    """Splits the rows of each batch over devices; see the module's docstring."""

    def __init__(self, devices: Sequence[Device]):
        self._count = len(mesh.check_devices("RowSplit", devices))
        self._mesh = mesh.make_mesh(devices)

    def round_up(self, size: int) -> int:
        """The smallest batch of at least `size` rows that the devices share evenly."""
        return -(-check_whole("round_up", "size", size) // self._count) * self._count

    def map(
        self, function: Callable[..., Any], in_specs: Sequence[Any], out_specs: Any = ROWS
    ) -> Callable[..., Any]:
        """Compiles `function` to be computed by each device on its own rows.

        in_specs, out_specs  for each argument and for the result: ROWS, WHOLE, or another spec
        """
        check_function("map", "function", function, "of arrays")
        check_kind("map", "in_specs", in_specs, Sequence, "ROWS or WHOLE for each argument")
        # With shard_map, unlike jit alone, no compiler can decide to gather the rows on one device.
        # Unchecked: a sampler's state may hold constants, which are equal on all devices anyway.
        return jax.jit(
            jax.shard_map(
                function,
                mesh=self._mesh,
                in_specs=tuple(in_specs),
                out_specs=out_specs,
                check_vma=False,
            )
        )

    def put(self, rows: PyTree, size: int) -> PyTree:
        """Places host arrays [n, ...] with 1 <= n <= size on the devices, padded to [size, ...]."""

        size = check_whole("put", "size", size)

        def pad(leaf: np.ndarray) -> np.ndarray:
            if not 1 <= (np.shape(leaf) or (0,))[0] <= size:
                raise ValueError(
                    f"put needs arrays [n, ...] with 1 <= n <= size = {size}, got {describe(leaf)}."
                )
            return np.concatenate([leaf, np.repeat(leaf[-1:], size - len(leaf), axis=0)])

        return mesh.put(jax.tree.map(pad, rows), NamedSharding(self._mesh, ROWS))

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies arrays to every device, from the host or from any devices."""
        return mesh.put(tree, NamedSharding(self._mesh, WHOLE))
