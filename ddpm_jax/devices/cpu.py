"""A device for each CPU core, where a network is only evaluated: the batch is shared among them.

XLA shares each operation of one device among all cores, and waits for the slowest at its end. Where
operations take microseconds, as in the digits' network, two cores are then no faster than one. As
devices of their own they each take half of the batch and never wait: 1.8 times as fast there, and
for DDPM's network at 16 images 1.15 times (two cores, benchmarks/NOTES.md). Training gains nothing,
as every device would hold the state and make the optimiser's step.
"""

from __future__ import annotations

import os

import jax

from ddpm_jax.devices.allocator import may_have_accelerators

MOST = 8
"""Each has a copy of the parameters, and a batch is soon too small to be split further."""

_made: list[int] = []  # the number that was set here, once it was


def one_device_a_core() -> int | None:
    """Makes JAX see up to MOST of the CPU's cores as devices; how many, or None.

    Call it before JAX is used; later calls return the same. Nothing happens where JAX may find an
    accelerator, where the number of CPU devices was chosen (`JAX_NUM_CPU_DEVICES`, or by XLA's
    flag), among several processes, or once JAX runs.
    """
    if _made:
        return _made[0]
    chosen = jax.config.values["jax_num_cpu_devices"] != -1 or (
        "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    )
    if chosen or may_have_accelerators() or jax.distributed.is_initialized():
        return None
    count = min(MOST, _usable_cores())
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return None
    _made.append(count)
    return count


def _usable_cores() -> int:
    """Those this process may run on, where the system says."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
