"""Where and when a figure was measured, with what, and how busy the machine was with other work."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "diffusers")


def describe_machine() -> dict[str, Any]:
    """The machine, its device as JAX sees it, and the versions; starts JAX."""
    import jax

    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "device_count": jax.device_count(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions()},
    }


def versions() -> dict[str, str]:
    """Versions of the libraries that are installed, by name."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def missing_torch() -> str | None:
    """Why there are no PyTorch rivals, or None where there are."""
    absent = [name for name in ("torch", "diffusers") if name not in versions()]
    if not absent:
        return None
    return f"{' and '.join(absent)} not installed (the extra [interop] brings both)"


def machine_slug(machine: dict[str, Any]) -> str:
    """The folder name of a machine's kind: "cpu", "nvidia-h200", …"""
    kind = "cpu" if machine["platform"] == "cpu" else machine["device"]
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


def stamp() -> dict[str, Any]:
    """The date, and the commit with whether the tree differs from it (None outside of git)."""
    now = datetime.datetime.now(datetime.UTC)
    return {"date": now.strftime("%Y-%m-%d %H:%M UTC"), "commit": _commit()}


class Neighbours:
    """How much of the machine's processors went to others, and was stolen, between two moments.

    A virtual machine's own kernel counts what the host took from it as stolen. Counts the time of
    child processes only once they have ended. Unknown (None) where there is no /proc/stat.
    """

    def __init__(self):
        self._begun, self._wall = _processor_seconds(), time.perf_counter()
        self._children = _children_seconds()

    def shares(self) -> dict[str, float | None]:
        """{"others", "stolen"}: shares of all cores since construction."""
        now = _processor_seconds()
        if self._begun is None or now is None:
            return {"others": None, "stolen": None}
        total = (time.perf_counter() - self._wall) * (os.cpu_count() or 1)
        busy = now["busy"] - self._begun["busy"] - (_children_seconds() - self._children)
        stolen = now["stolen"] - self._begun["stolen"]
        return {"others": max(0.0, busy / total), "stolen": max(0.0, stolen / total)}


def _children_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_CHILDREN, 0))


def _processor_seconds() -> dict[str, float] | None:
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    ticks = [float(field) / os.sysconf("SC_CLK_TCK") for field in fields]
    # user, nice, system, idle, iowait, irq, softirq, steal, …
    return {"busy": ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6], "stolen": ticks[7]}


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.M)
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "ddpm_jax", "benchmarks")
        return git("rev-parse", "--short=12", "HEAD") + (" and changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


class PeakMemory:
    """By how much this process's memory in RAM rises, at its peak, above where it was; in bytes.

    Linux alone keeps a peak that can be set back; elsewhere it is unknown (None).
    """

    def __init__(self):
        self._before = self._read("VmRSS")
        try:
            # Else the peak of what came before, compilation for one, would hide what follows.
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._before = None

    def growth(self) -> int | None:
        """The peak since construction, above the memory in use then."""
        peak = self._read("VmHWM")
        return None if peak is None or self._before is None else max(0, peak - self._before)

    @staticmethod
    def _read(field: str) -> int | None:
        try:
            text = Path("/proc/self/status").read_text()
        except OSError:
            return None
        found = re.search(rf"^{field}:\s+(\d+) kB", text, re.M)
        return 1024 * int(found[1]) if found else None
