"""The complete training step and the forward pass against diffusers' UNet2DModel in PyTorch.

Same architecture, parameters, batch and precision; the outputs are compared before anything is
timed. A process for JAX and one for PyTorch take turns (`interleave.py`). The forward pass is split
over the devices as the programs do it: on a CPU each core is one. It is also timed on one device.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import alternate, compare, say, stopwatch
from benchmarks.interleave import corner
from benchmarks.plots import save_bars
from benchmarks.provenance import missing_torch
from benchmarks.render import Benchmark, contest, contestant_name, left_out, verdict
from benchmarks.sizes import Plan, from_json, to_json

OURS = "ddpm_jax"
ALONE = f"{OURS}, one device"
"""The same forward pass without splitting the batch."""


def jax_corner(
    *, plan: dict[str, Any], folder: str
) -> tuple[dict[str, Callable[[], float]], dict[str, Any]]:
    """Our contestants, and files of the parameters and of an output for the rivals."""
    import jax
    import jax.numpy as jnp

    from benchmarks.workload import Stepper, moved_params, train_config
    from ddpm_jax.devices.batched import RowSplit
    from ddpm_jax.devices.cpu import one_device_per_core
    from ddpm_jax.devices.mesh import ROWS, WHOLE, fetch
    from ddpm_jax.interop import unet_params_to_diffusers, unet_to_diffusers_config

    sizes = from_json(plan)
    shape = (sizes.image_size, sizes.image_size, 3)
    devices = jax.local_devices() if one_device_per_core() else jax.local_devices()[:1]
    stepper = Stepper(train_config(sizes), sizes.image_size, steps=sizes.steps)
    unet = stepper.model.network
    params = moved_params(unet, shape)
    tensors = unet_params_to_diffusers(params, unet)
    np.savez(Path(folder) / "tensors.npz", **tensors)  # type: ignore[arg-type]
    x = jax.random.normal(jax.random.key(7), (sizes.batch_size, *shape))
    t = jnp.arange(sizes.batch_size, dtype=jnp.int32) * 1000 // sizes.batch_size
    apply = jax.jit(unet.apply).lower({"params": params}, x, t).compile()
    exact = jax.jit(unet.clone(dtype=jnp.float32).apply)({"params": params}, x, t)
    np.savez(
        Path(folder) / "probe.npz",
        x=np.asarray(x),
        t=np.asarray(t),
        output=np.asarray(exact),
    )
    split = RowSplit(devices)
    compute = split.map(unet.apply, (WHOLE, ROWS, ROWS))
    whole = split.replicate({"params": params})
    rows = split.put((np.asarray(x), np.asarray(t)), split.round_up(sizes.batch_size))
    output = fetch(compute(whole, *rows))[: sizes.batch_size]
    own = np.abs(output - np.asarray(exact)).max()

    def forward() -> None:
        for _ in range(sizes.steps):
            output = compute(whole, *rows)
        jax.block_until_ready(output)

    def alone() -> None:
        for _ in range(sizes.steps):
            output = apply({"params": params}, x, t)
        jax.block_until_ready(output)

    contestants = {f"train {OURS}": stopwatch(stepper), f"forward {OURS}": stopwatch(forward)}
    if len(devices) > 1:
        contestants[f"forward {ALONE}"] = stopwatch(alone)
    return contestants, {
        "config": unet_to_diffusers_config(unet, shape),
        "parameters": int(sum(leaf.size for leaf in jax.tree.leaves(params))),
        "own_error": float(own / np.std(exact)),
    }


def measure(plan: Plan) -> dict[str, Any]:
    """Times of all contestants, ratios to the best PyTorch variant, and how equal outputs are."""
    result: dict[str, Any] = {"skipped": {}, "parity": {}}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        say("  compiling the step in JAX")
        ours = stack.enter_context(
            corner("benchmarks.training:jax_corner", plan=to_json(plan), folder=folder)
        )
        contestants = dict(ours.contestants)
        result |= {key: ours.facts[key] for key in ("parameters", "own_error")}
        reason = missing_torch()
        if reason is None:
            variants = ["eager", "channels_last"] + ["compile"] * plan.torch_compile
            say("  building the same in PyTorch" + ", and compiling it" * plan.torch_compile)
            theirs = stack.enter_context(
                corner(
                    "benchmarks.pytorch:training_corner",
                    config=ours.facts["config"],
                    tensors=str(Path(folder) / "tensors.npz"),
                    variants=variants,
                    batch_size=plan.batch_size,
                    dtype=plan.dtype,
                    steps=plan.steps,
                )
            )
            contestants |= theirs.contestants
            result["skipped"], result["parity"] = theirs.facts["skipped"], theirs.facts["parity"]
            if not plan.torch_compile:
                result["skipped"]["compile"] = "left out by the plan"
        else:
            result["skipped"]["PyTorch"] = reason
        work = plan.batch_size * plan.steps
        for what in ("train", "forward"):
            chosen = {
                name.removeprefix(f"{what} "): run
                for name, run in contestants.items()
                if name.startswith(f"{what} ")
            }
            # Both sides' allocators settle within eight steps.
            # Steps follow on steps: without a lead, each would pay for a long wait.
            lead = 1 if plan.steps == 1 else 0
            rounds = alternate(chosen, plan.rounds, warmup=4, lead=lead, what=what)
            rivals = [name for name in chosen if name not in (OURS, ALONE)]
            result[what] = compare(rounds, OURS, rivals, work)
    return result


def line(result: dict[str, Any]) -> str:
    """Training and forward images per second, against the fastest PyTorch variant."""
    return "; ".join(
        f"{name} {verdict(result[name], OURS, 'images/s')}" for name in ("train", "forward")
    )


def page(result: dict[str, Any]) -> str:
    """Both tables, and how equal the outputs were."""
    text = f"{result['parameters']:,} parameters on both sides.\n"
    for name, heading in (("train", "Training step"), ("forward", "Forward pass")):
        text += f"\n**{heading}**\n\n{contest(result[name], 'images/s')}"
    text += (
        "\nLargest difference of an output to ours in float32, over the outputs' standard "
        f"deviation: ours as timed {result['own_error']:.1e}"
        + "".join(f", {name} {value:.1e}" for name, value in result["parity"].items())
        + ".\n"
    )
    return text + left_out(result["skipped"])


def draw(result: dict[str, Any], folder: Path) -> list[str]:
    """Images per second, training and forward, each bar with its multiple of the best rival."""
    for what, heading in (("train", "Training step"), ("forward", "Forward pass")):
        part = result[what]
        best = part["contestants"].get(part.get("best_rival"))
        bars = {}
        for name, one in part["contestants"].items():
            scale = one["rate"] * one["median_s"]
            note = f"{one['rate']:.3g}"
            if best is not None:
                note += f"\n({best['median_s'] / one['median_s']:.2f}×)"
            bars[contestant_name(name)] = (
                one["rate"],
                scale / one["max_s"],
                scale / one["min_s"],
                note,
            )
        save_bars(
            folder / f"training_{what}.png",
            {heading: bars},
            "images per second",
            title=f"{heading}: {verdict(part, OURS, 'images/s')}",
        )
    return ["training_train.png", "training_forward.png"]


BENCHMARK = Benchmark("Training step and forward pass against PyTorch", measure, line, page, draw)
