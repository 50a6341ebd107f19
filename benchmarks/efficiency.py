"""How training scales to 1,024 devices: a model from FLOPs, bytes and links, and measured points.

    python -m benchmarks.efficiency [--out FOLDER] [--rounds 15] [--no-measure]

A step of one device takes FLOPs / (what it reaches) seconds of arithmetic, and its collectives move
`training.bytes_per_step` bytes over links of a known speed. Efficiency is arithmetic over the
whole: with communication overlapped by arithmetic as far as possible, and with none overlapped. The
batch per device is fixed (weak scaling).

What the links of accelerators do comes from their makers' pages; the points are measured here, on
one and two processes that own one CPU core each and talk over loopback. The model is given the time
of one process, and the speed of an all-reduce measured by itself, and predicts the time of two.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.common import say
from benchmarks.flops import unet_flops
from benchmarks.provenance import ROOT, describe_machine, stamp
from benchmarks.render import span, table
from ddpm_jax.nn import UNet
from ddpm_jax.training import bytes_per_step

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Machine:
    """A kind of device and the links between devices, one way.

    Attributes:
        name: what it is.
        flops: operations a second that a step reaches.
        group: devices joined by the fast links.
        fast: bytes per second that a device sends over those.
        slow: bytes per second that a device sends to other groups.
        latency: seconds a message needs at least.
        source: where the figures come from.
    """

    name: str
    flops: float
    group: int
    fast: float
    slow: float
    latency: float
    source: str


# 40 % of the peak is an aim, not a measurement; with a larger share, efficiency falls.
MACHINES = (
    Machine(
        "H200, 8 per host",
        0.4 * 790e12,
        8,
        450e9,
        50e9,
        10e-6,
        "790 TFLOP/s: measured bf16 matrix product; NVLink 450 GB/s one way, 400 Gb/s per device "
        "between hosts, by specification",
    ),
    Machine(
        "TPU v5p",
        0.4 * 459e12,
        1024,
        600e9,
        600e9,
        5e-6,
        "459 TFLOP/s in bf16, 1,200 GB/s both ways between chips, by specification",
    ),
)


@dataclass(frozen=True)
class Job:
    """A network trained: its size, images on each device, and how its parameters lie."""

    name: str
    unet: UNet
    size: int
    images: int
    shards: int = 1


JOBS = (
    Job("CIFAR-10, 128 images per device", UNet(), 32, 128),
    Job("CIFAR-10, 16 images per device", UNet(), 32, 16),
    Job(
        "256×256, 8 images per device, parameters over 8",
        UNet(channel_multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0),
        256,
        8,
        8,
    ),
)


def all_reduce_seconds(size: float, devices: int, machine: Machine) -> float:
    """Of so many bytes over so many devices: rings in each group, then between groups.

    A group first scatters, so that each device passes on 1/group of the bytes; the number of
    messages grows with the logarithm, as with trees.
    """
    if devices == 1:
        return 0.0
    inside = min(devices, machine.group)
    groups = devices // inside
    seconds = 2 * (inside - 1) / inside * size / machine.fast
    seconds += 2 * (groups - 1) / groups * size / inside / machine.slow
    return seconds + 2 * machine.latency * math.log2(devices)


def gather_seconds(size: float, shards: int, machine: Machine) -> float:
    """Of an all-gather or reduce-scatter of so many bytes inside a group."""
    if shards == 1:
        return 0.0
    return (shards - 1) / shards * size / machine.fast + machine.latency * math.log2(shards)


def predict(job: Job, devices: int, machine: Machine) -> dict[str, float]:
    """Seconds and bytes of a step on so many devices, and both efficiencies."""
    shapes = parameter_shapes(job)
    flops = 3 * sum(unet_flops(job.unet, job.size).values()) * job.images
    compute = flops / machine.flops
    shards = min(job.shards, devices)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    moved = bytes_per_step(shapes, data=devices // shards, shards=shards)
    # A group is whole where parameters are split, so between groups each has its part alone.
    communication = all_reduce_seconds(total / shards, devices // shards, machine)
    if shards > 1:
        outside = Machine(**{**asdict(machine), "group": machine.group // shards})
        communication = all_reduce_seconds(total / shards, devices // shards, outside)
        communication += 2 * gather_seconds(total, shards, machine)
    return {
        "devices": devices,
        "compute_s": compute,
        "communication_s": communication,
        "bytes_sent": sum(moved.values()),
        "efficiency_hidden": compute / max(compute, communication),
        "efficiency_exposed": compute / (compute + communication),
    }


def parameter_shapes(job: Job) -> Any:
    """The shapes of a job's parameters."""
    x = jnp.zeros((1, job.size, job.size, 3))
    return jax.eval_shape(job.unet.init, jax.random.key(0), x, jnp.zeros(1, jnp.int32))["params"]


@dataclass(frozen=True)
class Options:
    """Where the answer goes, and whether anything is measured."""

    out: Path = ROOT / "docs" / "results" / "scaling"
    """Folder of results.json, efficiency.png and README.md."""
    measure: bool = True
    """Measure one and two processes of one core each; else what was measured before is kept."""
    rounds: int = 15
    """Measurements of each number of processes, in turns."""


def measure(rounds: int) -> dict[str, Any]:
    """One and two processes of one core each: seconds per step, and of all-reduces by size."""
    turns: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for turn in range(3):
        for count in (1, 2) if turn % 2 == 0 else (2, 1):
            turns[count].append(_processes(count, -(-rounds // 3)))
            say(f"  {count} processes, turn {turn + 1}/3: {_median(turns[count], 'step_s'):.3f} s")
    seconds = {count: _median(found, "step_s") for count, found in turns.items()}
    sizes = turns[2][0]["bytes"]
    reduce = [float(np.median([t["reduce_s"][i] for t in turns[2]])) for i in range(len(sizes))]
    # t = latency + bytes / speed, through the smallest and the largest.
    speed = (sizes[-1] - sizes[0]) / (reduce[-1] - reduce[0])
    latency = max(0.0, reduce[0] - sizes[0] / speed)
    return {
        "images_a_process": turns[1][0]["images"],
        "gradient_bytes": turns[2][0]["gradient_bytes"],
        "gradient_arrays": turns[2][0]["gradient_arrays"],
        "step_s": {str(count): value for count, value in seconds.items()},
        "all_turns_s": {
            str(count): [s for t in found for s in t["step_s"]] for count, found in turns.items()
        },
        "all_reduce": {"bytes": sizes, "seconds": reduce, "speed": speed, "latency_s": latency},
        "efficiency_measured": seconds[1] / seconds[2],
        **stamp(),
        "machine": describe_machine(),
    }


def predict_measured(measured: dict[str, Any]) -> dict[str, float]:
    """The efficiency of two processes, predicted from one's step and the all-reduce alone.

    "arrays": a message per array, as the CPU backend sends gradients; "one_message": one for all.
    """
    reduce, one = measured["all_reduce"], measured["step_s"]["1"]
    sending = measured["gradient_bytes"] / reduce["speed"]
    waits = {"arrays": measured["gradient_arrays"], "one_message": 1}
    return {
        name: one / (one + messages * reduce["latency_s"] + sending)
        for name, messages in waits.items()
    }


def _median(turns: list[dict[str, Any]], name: str) -> float:
    return float(np.median([s for turn in turns for s in turn[name]]))


def _processes(count: int, rounds: int) -> dict[str, Any]:
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "benchmarks.efficiency_worker", str(port), str(count)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
        processes = [
            subprocess.Popen(
                [*command, str(i), str(rounds), str(answer)], cwd=ROOT, env=environment
            )
            for i in range(count)
        ]
        if any([process.wait() for process in processes]):
            raise RuntimeError(f"{count} processes of benchmarks.efficiency_worker failed.")
        return json.loads(answer.read_text())


def save_picture(path: Path, result: dict[str, Any]) -> None:
    """Efficiency against devices: a band from nothing hidden to all hidden for every job."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from ddpm_jax.visualize.fields import COLOURS

    machines = list(result["predicted"])
    figure, panels = plt.subplots(1, len(machines), figsize=(5.2 * len(machines), 3.9), sharey=True)
    for axes, machine in zip(panels, machines, strict=True):
        for colour, (job, rows) in zip(COLOURS, result["predicted"][machine].items(), strict=False):
            devices = [row["devices"] for row in rows]
            low = [row["efficiency_exposed"] for row in rows]
            high = [row["efficiency_hidden"] for row in rows]
            axes.fill_between(devices, low, high, color=colour, alpha=0.25, linewidth=0)
            axes.plot(devices, low, color=colour, label=job)
        measured = result.get("measured")
        if measured:
            axes.plot(
                [1, 2],
                [1.0, measured["efficiency_measured"]],
                "o",
                color="black",
                label="measured: CPU cores over loopback",
            )
            axes.plot(
                [2],
                [predict_measured(measured)["arrays"]],
                "x",
                color="black",
                label="predicted for those",
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(COUNTS[::2], [f"{n:,}" for n in COUNTS[::2]])
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("devices")
        axes.set_title(machine, loc="left", fontsize=10)
        axes.grid(color="#e6e8eb", linewidth=0.8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_ylabel("efficiency (lower edge: nothing hidden)")
    panels[0].legend(fontsize=7, loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def page(result: dict[str, Any]) -> str:
    """The tables in Markdown."""
    lines = [
        "# Scaling: the model and the measured points\n",
        "    python -m benchmarks.efficiency\n",
        "![efficiency](efficiency.png)\n",
        "Weak scaling: the batch per device is fixed. Efficiency is the time of the arithmetic "
        "divided by that of arithmetic and communication: the lower figure if no communication "
        "overlaps with arithmetic, the upper if as much as possible does.\n",
    ]
    for machine in MACHINES:
        lines.append(f"## {machine.name}\n\n{machine.source}; 40 % of that peak assumed.\n")
        rows = []
        for job, found in result["predicted"][machine.name].items():
            by_count = {row["devices"]: row for row in found}
            cells = [
                f"{by_count[n]['efficiency_exposed']:.2f}–{by_count[n]['efficiency_hidden']:.2f}"
                if n in by_count
                else "–"
                for n in (8, 64, 256, 1024)
            ]
            last = found[-1]
            sent = f"{last['bytes_sent'] / 1e6:,.0f} MB"
            rows.append([job, span(last["compute_s"]), sent, *cells])
        header = ["job", "arithmetic per step", "sent per device and step (1,024)"]
        lines.append(table([*header, "8", "64", "256", "1,024"], rows))
    measured = result.get("measured")
    if measured:
        reduce, predicted = measured["all_reduce"], predict_measured(measured)
        lines.append(
            "## Measured\n\n"
            f"{measured['machine']['processor']}, one core per process, "
            f"{measured['images_a_process']} images each, loopback, "
            f"commit {measured.get('commit')}, {measured.get('date')}.\n\n"
            + table(
                ["", "value"],
                [
                    ["a step of one process", span(measured["step_s"]["1"])],
                    ["a step of two processes", span(measured["step_s"]["2"])],
                    [
                        "gradients",
                        f"{measured['gradient_bytes'] / 1e6:.1f} MB in "
                        f"{measured['gradient_arrays']} arrays",
                    ],
                    [
                        "all-reduce of two processes, alone",
                        f"{reduce['speed'] / 1e9:.2f} GB/s + {span(reduce['latency_s'])}",
                    ],
                    [
                        "predicted efficiency, arrays sent singly",
                        f"{predicted['arrays']:.3f}",
                    ],
                    [
                        "predicted efficiency, arrays sent together",
                        f"{predicted['one_message']:.3f}",
                    ],
                    ["measured efficiency", f"{measured['efficiency_measured']:.3f}"],
                ],
            )
        )
    return "\n".join(lines)


def main(options: Options) -> None:
    """Predicts, measures, and writes all of it."""
    path = options.out / "results.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    result: dict[str, Any] = {
        "machines": [asdict(machine) for machine in MACHINES],
        "predicted": {
            machine.name: {
                job.name: [predict(job, n, machine) for n in COUNTS if n % min(n, job.shards) == 0]
                for job in JOBS
            }
            for machine in MACHINES
        },
        "measured": measure(options.rounds) if options.measure else before.get("measured"),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    save_picture(options.out / "efficiency.png", result)
    (options.out / "README.md").write_text(page(result))
    say(f"{options.out / 'README.md'}")


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m benchmarks.efficiency", description=__doc__))
