"""Memory of the compiled training step against batch size, and of PyTorch's.

Ours is what the compiler reserves: arguments (state and data), outputs, and temporaries at their
peak; nothing is run for it. PyTorch's is the peak of its allocator on a GPU; on a CPU it keeps no
account, and the growth of the process's peak RSS stands in, for both where they are compared.
Rematerialisation and microbatches are measured with their price in time.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import alternate, say, stopwatch
from benchmarks.interleave import corner
from benchmarks.plots import save_curves
from benchmarks.provenance import PeakMemory, missing_torch
from benchmarks.render import Benchmark, left_out, size, span, table
from benchmarks.sizes import Plan, from_json, to_json

PLAIN = "plain"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "remat": {"remat": True},
    "4 microbatches": {"microbatches": 4},
}


def run_corner(
    *, plan: dict[str, Any], batch: int, variant: str
) -> tuple[dict[str, Callable[[], float]], dict[str, Any]]:
    """The time of a step of one variant, and the memory that two steps take.

    Memory: state and data, and the growth of the process while the steps run, without the memory
    of the compiler.
    """
    import jax

    from benchmarks.workload import Stepper, train_config

    sizes = from_json(plan)
    config = train_config(sizes, batch_size=batch)
    stepper = Stepper(config, sizes.image_size, **VARIANTS[variant])
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((stepper.state, stepper.dataset)))
    peak = PeakMemory()
    for _ in range(2):
        stepper()
    growth = peak.growth()
    return {variant: stopwatch(stepper)}, {"bytes": None if growth is None else held + growth}


def measure(plan: Plan) -> dict[str, Any]:
    """Bytes by variant and batch, the price of each variant in time, and PyTorch's peak."""
    from benchmarks.workload import Stepper, train_config
    from ddpm_jax.interop import unet_to_diffusers_config

    result: dict[str, Any] = {"compiled": {}, "skipped": {}}
    config: dict[str, Any] = {}
    for name, options in VARIANTS.items():
        result["compiled"][name] = {}
        for batch in plan.memory_batches:
            stepper = Stepper(
                train_config(plan, batch_size=batch), plan.image_size, run=False, **options
            )
            shape = (plan.image_size, plan.image_size, 3)
            config = unet_to_diffusers_config(stepper.model.network, shape)
            result["compiled"][name][str(batch)] = _bytes(stepper.compiled.memory_analysis())
            peak = result["compiled"][name][str(batch)]["peak"]
            say(f"  {name}, batch {batch}: {size(peak)}")
    batch = plan.batch_size
    result["batch"] = batch
    with contextlib.ExitStack() as stack:
        corners = {
            name: stack.enter_context(
                corner(
                    "benchmarks.memory:run_corner", plan=to_json(plan), batch=batch, variant=name
                )
            )
            for name in result["compiled"]
        }
        contestants = {name: one.contestants[name] for name, one in corners.items()}
        seconds = alternate(contestants, max(2, plan.rounds // 2), what="price")
        result["seconds"] = seconds
        result["rss"] = {name: one.facts["bytes"] for name, one in corners.items()}
    reason = missing_torch()
    result["pytorch"] = {}
    if reason is not None:
        result["skipped"]["PyTorch"] = reason
        return result
    # A CPU's PyTorch has to run the steps it is measured by: the smaller batches are enough there.
    batches = sorted({batch, *plan.memory_batches[: 1 if plan.platform == "cpu" else None]})
    for number in batches:
        with corner(
            "benchmarks.pytorch:memory_corner", config=config, batch_size=number, dtype=plan.dtype
        ) as one:
            result["pytorch"][str(number)] = one.facts
        say(f"  PyTorch, batch {number}: {_known(result['pytorch'][str(number)]['bytes'])}")
    return result


def _bytes(analysis: Any) -> dict[str, int]:
    """The compiler's account; the state given up to its successor is counted once."""
    arguments, outputs = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    temporary, shared = analysis.temp_size_in_bytes, analysis.alias_size_in_bytes
    return {
        "arguments": arguments,
        "outputs": outputs,
        "temporary": temporary,
        "aliased": shared,
        "peak": arguments + outputs + temporary - shared,
    }


def _known(count: int | None) -> str:
    return "unknown" if count is None else size(count)


def line(result: dict[str, Any]) -> str:
    """Each variant's bytes at the largest batch, and PyTorch's."""
    last = list(result["compiled"][PLAIN])[-1]
    text = f"at batch {last}: " + ", ".join(
        f"{name} {size(of[last]['peak'])}" for name, of in result["compiled"].items()
    )
    batch = str(result["batch"])
    if batch in result["pytorch"]:
        ours, theirs = result["rss"][PLAIN], result["pytorch"][batch]["bytes"]
        text += f"; run at batch {batch}: plain {_known(ours)}, PyTorch {_known(theirs)}"
    return text


def page(result: dict[str, Any]) -> str:
    """The compiler's account, the price, and PyTorch's peak."""
    rows = []
    for name, of in result["compiled"].items():
        base = result["compiled"][PLAIN]
        for batch, one in of.items():
            rows.append(
                [
                    name,
                    batch,
                    size(one["temporary"]),
                    size(one["peak"]),
                    f"{one['peak'] / base[batch]['peak']:.2f}",
                ]
            )
    text = table(["", "batch", "temporary", "peak", "relative to plain"], rows)
    rounds = len(result["seconds"][PLAIN])
    text += f"\n**Run at batch {result['batch']}**, {rounds} rounds, medians\n\n"
    seconds = {name: statistics.median(times) for name, times in result["seconds"].items()}
    rows = [
        [f"ddpm_jax, {name}", _known(result["rss"][name]), span(s), f"{s / seconds[PLAIN]:.2f}"]
        for name, s in seconds.items()
    ]
    what = "growth of the peak RSS"
    for batch, one in result["pytorch"].items():
        rows.append([f"PyTorch, batch {batch}, {one['what']}", _known(one["bytes"]), "", ""])
    text += table(["", what, "time per step", "relative to plain"], rows)
    text += (
        "\nOurs: state and data, and the growth of the peak RSS (resident memory of the process) "
        "while steps run. On a GPU this is the host's memory; compare the compiler's figures above "
        "instead.\n"
    )
    return text + left_out(result["skipped"])


def draw(result: dict[str, Any], folder: Path) -> list[str]:
    """Gibibytes against batch size."""
    curves: dict[str, Any] = {}
    for name, of in result["compiled"].items():
        x = [int(batch) for batch in of]
        curves[f"ddpm_jax, {name}"] = (x, [one["peak"] / 2**30 for one in of.values()])
    known = {b: one["bytes"] for b, one in result["pytorch"].items() if one["bytes"] is not None}
    if len(known) > 1:
        x, y = [int(batch) for batch in known], [count / 2**30 for count in known.values()]
        curves["PyTorch channels_last"] = (x, y)
    save_curves(
        folder / "memory.png",
        curves,
        "images per step",
        "peak memory of the compiled step, in GiB",
        title=_finding(result["compiled"]),
        xticks=sorted({int(batch) for of in result["compiled"].values() for batch in of}),
    )
    return ["memory.png"]


def _finding(compiled: dict[str, Any]) -> str:
    """The way that needs least at the largest batch, relative to the plain step."""
    batch = list(compiled[PLAIN])[-1]
    peaks = {name: of[batch]["peak"] for name, of in compiled.items() if batch in of}
    least = min(peaks, key=lambda name: peaks[name])
    ratio = peaks[least] / peaks[PLAIN]
    return f"At batch {batch}, {least} need {ratio:.2f} of the plain step's memory"


BENCHMARK = Benchmark("Memory against batch size", measure, line, page, draw)
