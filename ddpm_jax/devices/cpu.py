"""Settings of a process that computes on CPUs: one device per core, and memory that is kept.

Both must be chosen before JAX starts its threads. Neither changes anything where JAX may find an
accelerator.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from ddpm_jax.files import user_path
from ddpm_jax.forward.checks import check_shape, check_whole

MAX_DEVICES = 8
"""Each device holds a copy of the parameters, and small batches cannot be split much further."""
LARGE_MAP_BYTES = 2**20
"""Feature maps from this size on make temporaries that glibc does not reuse."""
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
"""Options of `mallopt`, from glibc's <malloc.h>."""

_made: list[int] = []  # the number of devices made here, if any


def one_device_per_core() -> int | None:
    """Makes JAX see each usable core, up to MAX_DEVICES, as a device; returns their number or None.

    This is for evaluating networks, with the batch split over the cores. XLA shares each operation
    of one device among all cores and waits for the slowest; where operations take microseconds, two
    cores are then no faster than one. As separate devices each core takes half of the batch and
    never waits: 1.8 times as fast for the digits' network, 1.15 times for DDPM's at 16 images (two
    cores, benchmarks/NOTES.md). Training gains nothing, as every device would hold the state and
    compute the optimiser's update.

    Call it before JAX is used; later calls return the same number. It does nothing and returns None
    if JAX may find an accelerator, if the number of CPU devices has been chosen
    (`JAX_NUM_CPU_DEVICES` or XLA's flag), among several processes, and once JAX runs.
    """
    if _made:
        return _made[0]
    chosen = jax.config.values["jax_num_cpu_devices"] != -1 or (
        "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    )
    if chosen or may_have_accelerators() or jax.distributed.is_initialized():
        return None
    count = min(MAX_DEVICES, usable_cores())
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        return None
    _made.append(count)
    return count


def keep_freed_memory(batch_size: int, image_shape: tuple[int, ...], channels: int) -> bool:
    """Makes glibc keep freed memory, for a network with large temporaries; returns whether it will.

    XLA allocates the temporaries of a step as one block, as large as 95 (the digits' network) to
    190 (DDPM's) feature maps [B, H, W, channels]. glibc returns blocks above 32 MiB to the system
    when they are freed, and the system zeroes every page of the next one: 240,000 to 380,000 page
    faults per training step of DDPM's network at batch 16. Kept memory saves them. Its price is a
    single heap for all threads: the digits' step took 52 ms with it and 32 without, and compiled in
    18 s instead of 13. Without the limit to one heap it costs nothing, but saves less than half of
    the faults (benchmarks/NOTES.md, *Which networks keep freed memory*). So memory is kept if a
    feature map takes LARGE_MAP_BYTES or more.

    The process then holds its peak memory until it ends. Call it before JAX is used: threads that
    run already have heaps of their own, too small for large blocks. It does nothing and returns
    False if JAX may find an accelerator or the C library is not glibc.
    """
    call = "keep_freed_memory"
    batch_size = check_whole(call, "batch_size", batch_size)
    channels = check_whole(call, "channels", channels)
    image_shape = check_shape(call, "image_shape", image_shape)
    map_bytes = 4 * batch_size * math.prod(image_shape[:-1]) * channels
    if map_bytes < LARGE_MAP_BYTES or may_have_accelerators():
        return False
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # One heap, which never shrinks (-1), and no block outside it: the heaps of further threads hold
    # 64 MiB at most, and glibc maps larger blocks anew each time.
    options = ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1))
    return all([bool(mallopt(option, value)) for option, value in options])


def may_have_accelerators() -> bool:
    """Whether JAX may find an accelerator, by what is installed: JAX itself would start threads."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms != "cpu"
    return any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


def usable_cores(root: Path = Path("/")) -> int:
    """The number of cores this process may use, by its affinity and its containers' CPU quotas.

    A quota of 2.5 cores counts as 2, one below 1 as 1. `root` is where /proc and /sys are.
    """
    root = user_path(root, "usable_cores")
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *map(int, _cpu_quotas(root))]))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """The CPU quotas, in cores, of this process's control groups and of the groups around them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not path or (controllers and "cpu" not in controllers.split(",")):
            continue
        # Version 2 has no controllers here. Inside a container the path may be the host's, of which
        # only the last group is mounted, at the top; so groups that do not exist are skipped.
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            try:
                if controllers:
                    quota = (mount / folder / "cpu.cfs_quota_us").read_text()
                    period = (mount / folder / "cpu.cfs_period_us").read_text()
                else:
                    quota, period = (mount / folder / "cpu.max").read_text().split()
                if int(quota) > 0:  # "max" (version 2) is no number, -1 (version 1) is no limit
                    yield int(quota) / int(period)
            except (OSError, ValueError, ZeroDivisionError):
                continue
