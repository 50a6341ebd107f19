"""What the training step costs against batch size, resolution and number of devices.

On a CPU with a network of the plan's `narrow_channels`, so that a row of sizes takes minutes. CPU
devices are simulated: they share the same cores, so that with the batch fixed nothing can become
faster, and what is seen is the overhead of the split alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Seconds, alternate, say, stopwatch, summarize
from benchmarks.interleave import corner
from benchmarks.plots import save_curves
from benchmarks.provenance import missing_torch
from benchmarks.render import Benchmark, left_out, rate, span, table
from benchmarks.sizes import Plan, from_json, to_json

OURS, THEIRS = "ddpm_jax", "PyTorch channels_last"
SIMULATED = 4
BACKENDS = ("shard_map", "pmap")


def fixed_batch(plan: Plan) -> int:
    """The batch where resolution or devices vary: a middle one, and a multiple of the devices."""
    return max(SIMULATED, plan.batches[len(plan.batches) // 2])


def sizes(plan: Plan) -> dict[str, tuple[int, int]]:
    """{case: (batch, resolution)} of both rows."""
    rows = {f"batch {batch}": (batch, plan.image_size) for batch in plan.batches}
    fixed = fixed_batch(plan)
    return rows | {f"resolution {side}": (fixed, side) for side in plan.resolutions}


def jax_corner(
    *, plan: dict[str, Any], cases: dict[str, list[int]]
) -> tuple[dict[str, Callable[[], float]], dict[str, Any]]:
    """The step of each case, and the networks' configs for the rival."""
    from benchmarks.workload import Stepper, narrow, train_config
    from ddpm_jax.interop import unet_to_diffusers_config

    whole = from_json(plan)
    contestants, configs = {}, {}
    for case, (batch, side) in cases.items():
        # The same levels have attention whatever the resolution.
        attention = tuple(a * side // whole.image_size for a in whole.attention)
        changes = narrow(whole) | {"batch_size": batch, "network.attention_resolutions": attention}
        stepper = Stepper(train_config(whole, **changes), side, steps=whole.steps)
        contestants[case] = stopwatch(stepper)
        configs[case] = unet_to_diffusers_config(stepper.model.network, (side, side, 3))
    return contestants, {"configs": configs}


def device_corner(
    *, plan: dict[str, Any], batch: int, counts: list[int]
) -> tuple[dict[str, Callable[[], float]], dict[str, Any]]:
    """The step on 1 device by jit, and on more by shard_map and pmap, at the same global batch."""
    from benchmarks.workload import Stepper, narrow, train_config

    whole = from_json(plan)
    contestants = {}
    for count in counts:
        for backend in ("jit",) if count == 1 else BACKENDS:
            changes = narrow(whole) | {
                "batch_size": batch,
                "devices.backend": backend,
                "devices.count": count,
            }
            stepper = Stepper(train_config(whole, **changes), whole.image_size, steps=whole.steps)
            contestants[f"{backend} {count}"] = stopwatch(stepper)
    return contestants, {}


def measure(plan: Plan) -> dict[str, Any]:
    """Times of all cases: ours and, where there is PyTorch, its channels_last step."""
    result: dict[str, Any] = {
        "skipped": {},
        "batch": fixed_batch(plan),
        "channels": plan.narrow_channels,
    }
    cases = sizes(plan)
    rounds = max(2, plan.rounds // 2)
    with contextlib.ExitStack() as stack:
        say(f"  compiling {len(cases)} steps")
        ours = stack.enter_context(
            corner("benchmarks.scaling:jax_corner", plan=to_json(plan), cases=cases)
        )
        contestants = {f"{OURS}: {case}": run for case, run in ours.contestants.items()}
        reason = missing_torch()
        if reason is None:
            theirs = stack.enter_context(
                corner(
                    "benchmarks.pytorch:step_corner",
                    configs=ours.facts["configs"],
                    batch_sizes={case: batch for case, (batch, _) in cases.items()},
                    dtype=plan.dtype,
                    steps=plan.steps,
                )
            )
            contestants |= {f"{THEIRS}: {case}": run for case, run in theirs.contestants.items()}
        else:
            result["skipped"]["PyTorch"] = reason
        seconds: Seconds = {}
        for case in cases:
            chosen = {name: run for name, run in contestants.items() if name.endswith(f": {case}")}
            seconds |= alternate(chosen, rounds, what=case)
    result["sizes"] = {
        who: {
            case: summarize(seconds[f"{who}: {case}"], batch * plan.steps)
            for case, (batch, _) in cases.items()
        }
        for who in (OURS, THEIRS)
        if f"{who}: {next(iter(cases))}" in seconds
    }
    result["cases"] = {case: list(pair) for case, pair in cases.items()}
    result["devices"] = _devices(plan, rounds, result)
    return result


def _devices(plan: Plan, rounds: int, result: dict[str, Any]) -> dict[str, Any]:
    """Times by backend and number of devices; {} where there is only one real device."""
    import jax

    if plan.platform == "cpu":
        available = SIMULATED
        # Read when JAX starts, in the process that is about to be made.
        os.environ["JAX_NUM_CPU_DEVICES"] = str(SIMULATED)
    else:
        available = jax.local_device_count()
        if available == 1:
            result["skipped"]["devices"] = "this machine has one"
            return {}
    counts = [count for count in (1, 2, 4, 8) if count <= available]
    with corner(
        "benchmarks.scaling:device_corner",
        plan=to_json(plan),
        batch=result["batch"],
        counts=counts,
    ) as devices:
        seconds = alternate(devices.contestants, rounds, what="devices")
    work = result["batch"] * plan.steps
    return {name: summarize(times, work) for name, times in seconds.items()}


def slope(result: dict[str, Any], who: str) -> tuple[float, float]:
    """(seconds per step, seconds per further image): the least-squares line through the batches."""
    of = result["sizes"][who]
    rows = [(result["cases"][c][0], of[c]["median_s"]) for c in of if c.startswith("batch")]
    x, y = np.array(rows).T
    # Relative errors: the largest batch would decide alone otherwise.
    each, fixed = np.polyfit(x, y, 1, w=1 / y)
    return float(fixed), float(each)


def line(result: dict[str, Any]) -> str:
    """Images per second at the smallest and largest batch, and the overhead of devices."""
    of = {c: v for c, v in result["sizes"][OURS].items() if c.startswith("batch")}
    first, last = list(of)[0], list(of)[-1]
    text = f"{result['channels']} channels: {rate(of[first]['rate'])} images/s at {first}, "
    text += f"{rate(of[last]['rate'])} at {last}"
    devices = result["devices"]
    if devices:
        base = devices["jit 1"]["median_s"]
        text += "; " + ", ".join(
            f"{name} devices {one['median_s'] / base:.2f} × the time of one"
            for name, one in devices.items()
            if name != "jit 1"
        )
    return text


def page(result: dict[str, Any]) -> str:
    """Tables of sizes and devices."""
    who = list(result["sizes"])
    rows = []
    for case in result["cases"]:
        cells = [case]
        for name in who:
            one = result["sizes"][name][case]
            cells += [span(one["median_s"]), rate(one["rate"])]
        rows.append(cells)
    header = [""] + [text for name in who for text in (name, "images/s")]
    rounds = len(next(iter(result["sizes"][OURS].values()))["seconds"])
    text = f"Here with {result['channels']} channels, in {rounds} rounds; resolutions and devices "
    text += f"at batch {result['batch']}.\n\n" + table(header, rows)
    if len([case for case in result["cases"] if case.startswith("batch")]) > 2:
        for name in who:
            fixed, each = slope(result, name)
            text += f"\n{name}: {span(max(0.0, fixed))} per step plus {span(each)} per image.\n"
    if result["devices"]:
        base = result["devices"]["jit 1"]["median_s"]
        text += "\n" + table(
            ["backend, devices", "median", "relative to one device"],
            [
                [name, span(one["median_s"]), f"{one['median_s'] / base:.2f}"]
                for name, one in result["devices"].items()
            ],
        )
        text += "\nOn a CPU these devices share the same cores: this is overhead, not speed.\n"
    return text + left_out(result["skipped"])


def draw(result: dict[str, Any], folder: Path) -> list[str]:
    """Time against batch, resolution and devices, each beside proportionality."""
    pictures = []
    for axis, place, label in (("batch", 0, "images per step"), ("resolution", 1, "image height")):
        curves: dict[str, Any] = {}
        for who, of in result["sizes"].items():
            names = [case for case in of if case.startswith(axis)]
            x = [result["cases"][case][place] for case in names]
            curves[who] = (x, [of[case]["median_s"] for case in names])
        x, y = curves[OURS]
        power = 1 if axis == "batch" else 2
        curves["in proportion to the pixels"] = (x, [y[-1] * (v / x[-1]) ** power for v in x])
        name = f"scaling_{axis}.png"
        save_curves(
            folder / name,
            curves,
            label,
            "seconds per step",
            logx=True,
            logy=True,
            title=f"Our training step: {span(y[0])} at {axis} {x[0]}, {span(y[-1])} at {x[-1]}",
            xticks=x,
        )
        pictures.append(name)
    if result["devices"]:
        base = result["devices"]["jit 1"]["median_s"]
        curves = {}
        for backend in BACKENDS:
            found = [n for n in result["devices"] if n.startswith(backend)]
            x = [1, *(int(n.split()[1]) for n in found)]
            curves[backend] = (x, [1.0, *(result["devices"][n]["median_s"] / base for n in found)])
        save_curves(
            folder / "scaling_devices.png",
            curves,
            "devices",
            "time of a step relative to one device",
            title=f"Overhead of devices that share cores, at batch {result['batch']}",
            xticks=x,
        )
        pictures.append("scaling_devices.png")
    return pictures


BENCHMARK = Benchmark("Cost against batch, resolution and devices", measure, line, page, draw)
