"""The chips that programs are compiled for, without having one.

JAX compiles ahead of time for a topology: the compiler of the chip runs on this machine's CPU. For
TPUs it is libtpu (the extra [tpu]), for NVIDIA cards XLA with the CUDA plugin (the extra [cuda12]).
All figures are those of the makers' data sheets.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any, NamedTuple


class Chip(NamedTuple):
    """A chip, and the topology of the devices that programs are compiled for.

    Attributes:
        platform: "cuda" or "tpu".
        topology: the name of the topology, for TPUs; NVIDIA cards are compiled for one at a time.
        memory: bytes of the chip's memory.
        bandwidth: bytes per second of this memory.
        peak: operations per second of matrix products by the network's dtype. In float32 with
            JAX's default precision, in which NVIDIA cards multiply in TF32 and TPUs in bfloat16.
        clock: cycles per second, to read the compiler's estimates; 0 where it is not published.
    """

    platform: str
    topology: str
    memory: float
    bandwidth: float
    peak: dict[str, float]
    clock: float = 0.0


def _tpu(topology: str, memory: float, bandwidth: float, peak: float, clock: float = 0.0) -> Chip:
    return Chip("tpu", topology, memory, bandwidth, dict.fromkeys(DTYPES, peak), clock)


def _card(memory: float, bandwidth: float, bfloat16: float, tf32: float) -> Chip:
    return Chip("cuda", "1x1x1", memory, bandwidth, {"bfloat16": bfloat16, "float32": tf32})


DTYPES = ("bfloat16", "float32")
CHIPS = {
    "H200": _card(141e9, 4.8e12, 989e12, 494e12),
    "v5e": _tpu("v5e:2x4", 16e9, 819e9, 197e12, 1.5e9),
    "H100": _card(80e9, 3.35e12, 989e12, 494e12),
    "A100": _card(80e9, 2.04e12, 312e12, 156e12),
    "v6e": _tpu("v6e:2x4", 32e9, 1.64e12, 918e12),
    "v5p": _tpu("v5p:2x2x2", 95e9, 2.765e12, 459e12),
    "v4": _tpu("v4:2x2x2", 32e9, 1.2e12, 275e12),
}
"""By name, the most telling first."""

# Multiprocessors, float32 lanes of each, L2 cache, GHz, and shared memory per multiprocessor and
# per block at most; then the compute capability.
_CARDS = {
    "H200": (132, 128, 52428800, 1.98, 233472, 232448, (9, 0)),
    "H100": (132, 128, 52428800, 1.98, 233472, 232448, (9, 0)),
    "A100": (108, 64, 41943040, 1.41, 167936, 166912, (8, 0)),
}
_PACKAGES = {"tpu": ("libtpu", "tpu"), "cuda": ("jax_cuda12_plugin", "cuda12")}


def missing(chip: str) -> str | None:
    """Why nothing can be compiled for this chip here, or None."""
    package, extra = _PACKAGES[CHIPS[chip].platform]
    if importlib.util.find_spec(package) is None:
        return f"its compiler is not installed (the extra [{extra}] brings it)"
    return None


def devices_of(chip: str) -> tuple[Any, ...]:
    """The devices of the chip's topology, which exist only for the compiler."""
    from jax.experimental import topologies

    about = CHIPS[chip]
    if about.platform == "tpu":
        # Else libtpu waits for a metadata server that only Google's machines have.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        return tuple(
            topologies.get_topology_desc(topology_name=about.topology, platform="tpu").devices
        )
    made = topologies.get_topology_desc(
        platform="cuda", topology=about.topology, target_config=_target(chip)
    )
    return tuple(made.devices)


def _target(chip: str) -> str:
    """XLA's GpuTargetConfigProto of a card, as text."""
    about = CHIPS[chip]
    cores, lanes, cache, clock, shared, per_block, (major, minor) = _CARDS[chip]
    info = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": shared,
        "threads_per_core_limit": 2048,
        "core_count": cores,
        "fpus_per_core": lanes,
        "block_dim_limit_x": 2147483647,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(about.bandwidth),
        "l2_cache_size": cache,
        "clock_rate_ghz": clock,
        "device_memory_size": int(about.memory),
        "shared_memory_per_block_optin": per_block,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    fields = "\n".join(f"  {name}: {value}" for name, value in info.items())
    capability = f"cuda_compute_capability {{ major: {major} minor: {minor} }}"
    return (
        f"gpu_device_info {{\n{fields}\n  {capability}\n}}\n"
        'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 10 }\n'
    )
