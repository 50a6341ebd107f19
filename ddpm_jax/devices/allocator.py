"""The C allocator, told to keep what is freed: large temporaries then cost no page faults.

A training step on a CPU takes and frees a gigabyte of temporaries. glibc hands such blocks back to
the system as they are freed, and the system zeroes every page of the next ones: 240,000 page faults
a step of DDPM's network at batch 16, a tenth of its time or more (benchmarks/NOTES.md).
The price is one heap for all threads: compiling takes up to a third longer. Accelerators have
allocators of their own, and beside them the host's is left alone.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys

# From glibc's <malloc.h>.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Makes a process that computes on CPUs keep freed memory for later; whether it will.

    Call it before JAX is used: threads that have begun have heaps of their own, too small for large
    blocks. The process then holds its largest need for good. Nothing happens where JAX may find an
    accelerator, or where the C library is not glibc.
    """
    if not sys.platform.startswith("linux") or may_have_accelerators():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # One heap, which grows and never shrinks (-1), and no block outside of it.
    wanted = ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1))
    return all([bool(mallopt(option, value)) for option, value in wanted])


def may_have_accelerators() -> bool:
    """By what is installed and asked for, since asking JAX would start its threads."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms != "cpu"
    return any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
