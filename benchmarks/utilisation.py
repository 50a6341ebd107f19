"""How much of the machine's matrix speed the training step reaches, and where its time goes.

Two independent accounts of the time: a profiler trace read operation by operation (`trace.py`), and
pieces of the step compiled and timed alone. Pieces alone can be faster or slower than inside, since
the compiler fuses across them; the trace is the account of the step itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import alternate, say, stopwatch, summarize
from benchmarks.flops import unet_flops
from benchmarks.plots import save_stack
from benchmarks.render import Benchmark, rate, span, table
from benchmarks.sizes import Plan
from benchmarks.trace import break_down

STEP = "whole step"


def measure(plan: Plan) -> dict[str, Any]:
    """Peak, step time, operations, and both accounts of the time."""
    if plan.platform != "cpu":
        # Recorded command buffers hide which operation a kernel belongs to.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_command_buffer=".strip()
    import jax

    from benchmarks.workload import Stepper, flops_of, train_config
    from ddpm_jax.devices.cpu import keep_freed_memory

    keep_freed_memory(plan.batch_size, (plan.image_size, plan.image_size), plan.channels)
    peak = matrix_peak(plan)
    stepper = Stepper(train_config(plan), plan.image_size)
    pieces = _pieces(plan, stepper)
    # Timed as it is run, several steps a dispatch where waiting for each would cost.
    several = stepper
    if plan.steps > 1:
        several = Stepper(train_config(plan), plan.image_size, steps=plan.steps)

    def step() -> float:
        return stopwatch(several)() / plan.steps

    rounds = alternate({STEP: step, **pieces}, plan.rounds, what="pieces")
    say("  tracing")
    traced = break_down(stepper, stepper.compiled.as_text(), 1 if plan.quick else 3)
    by_hand = unet_flops(stepper.model.network, plan.image_size)
    step_flops = 3 * sum(by_hand.values()) * plan.batch_size
    seconds = float(np.median(rounds[STEP]))
    wall = traced.wall
    return {
        "device": jax.devices()[0].device_kind,
        "peak": peak,
        "by_hand_per_image": by_hand,
        "step_flops_by_hand": step_flops,
        "step_flops_before_compilation": flops_of(stepper.lowered),
        "step_flops_compiled": flops_of(stepper.compiled),
        "share_of_peak": step_flops / seconds / peak["flops_per_s"],
        "pieces": {name: summarize(s, plan.batch_size) for name, s in rounds.items()},
        "trace": {
            "parts": traced.parts,
            "covered": traced.covered,
            "wall": wall,
            "unexplained_share": (wall - traced.covered + traced.parts["unnamed"]) / wall,
            "largest_unnamed": traced.largest_unnamed,
        },
    }


def matrix_peak(plan: Plan) -> dict[str, Any]:
    """The largest measured speeds of arithmetic and of memory.

    Arithmetic: the fastest of several square matrix products in the plan's dtype, each the best of
    its rounds. Memory: x + 1 for a large array, in bytes read and written per second.
    """
    import jax
    import jax.numpy as jnp

    dtype = jnp.dtype(plan.dtype)
    sizes = (
        (256,) if plan.quick else (1024, 2048) if plan.platform == "cpu" else (4096, 8192, 16384)
    )
    multiply = jax.jit(lambda a, b: a @ b)
    speeds = {}
    for size in sizes:
        # Random, since a GPU is faster, for want of power to draw, on zeros.
        a, b = (jax.random.normal(key, (size, size), dtype) for key in _keys(2))
        run = stopwatch(lambda a=a, b=b: jax.block_until_ready(multiply(a, b)))
        times = alternate({"product": run}, 3 + plan.rounds)["product"]
        speeds[size] = 2.0 * size**3 / min(times)
    count = 2**20 if plan.quick else 2**26 if plan.platform == "cpu" else 2**30
    x = jax.random.normal(_keys(1)[0], (count,), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    times = alternate({"copy": stopwatch(lambda: jax.block_until_ready(add(x)))}, 5)["copy"]
    return {
        "flops_per_s": max(speeds.values()),
        "by_size": {str(size): speed for size, speed in speeds.items()},
        "bytes_per_s": 2.0 * x.nbytes / min(times),
        "dtype": plan.dtype,
    }


def _keys(count: int) -> Any:
    import jax

    return jax.random.split(jax.random.key(0), count)


def _pieces(plan: Plan, stepper: Any) -> dict[str, Callable[[], float]]:
    """Parts of the step, each compiled alone on the same batch."""
    import jax
    import jax.numpy as jnp
    import optax

    from ddpm_jax.data import prepare_images
    from ddpm_jax.keys import example_keys, fold_in_each, normal_per_example, split_each
    from ddpm_jax.losses import uniform_timesteps
    from ddpm_jax.programs.build import fetch
    from ddpm_jax.training import update_ema

    model, state = stepper.model, jax.tree.map(jnp.copy, stepper.state)
    batch = jax.tree.map(lambda leaf: leaf[0], stepper.batches)
    keys = example_keys(jax.random.key(3), batch["index"])
    shape = (plan.image_size, plan.image_size, 3)

    def take(batch: Any, keys: Any) -> Any:
        return prepare_images(fetch(stepper.dataset, batch)["image"], keys, flip=True)

    def draw(keys: Any) -> Any:
        key_t, key_noise, key_flip, key_dropout = split_each(keys, 4)
        t = uniform_timesteps(key_t, model.schedule.num_timesteps)
        return t, normal_per_example(key_noise, shape), key_flip, fold_in_each(key_dropout, 1)

    def loss(params: Any, batch: Any, keys: Any) -> Any:
        return jnp.mean(model.training_losses(params, fetch(stepper.dataset, batch), keys))

    def update(grads: Any, state: Any) -> Any:
        updates, opt_state = model.optimizer.update(grads, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state

    def average(state: Any, params: Any) -> Any:
        return update_ema(state.ema_params, params, 0.9999)

    functions: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "loss (forward)": (loss, (state.params, batch, keys)),
        "gradient": (jax.value_and_grad(loss), (state.params, batch, keys)),
        "clip and Adam": (update, (state.params, state)),
        "moving average": (average, (state, state.params)),
        "random numbers": (draw, (keys,)),
        "input": (take, (batch, keys)),
    }
    pieces = {}
    for name, (function, arguments) in functions.items():
        say(f"  compiling {name}")
        compiled = jax.jit(function).lower(*arguments).compile()
        pieces[name] = stopwatch(lambda c=compiled, a=arguments: jax.block_until_ready(c(*a)))
    return pieces


def line(result: dict[str, Any]) -> str:
    """Share of the peak, and the largest parts."""
    parts = sorted(result["trace"]["parts"].items(), key=lambda item: -item[1])[:3]
    wall = result["trace"]["wall"]
    largest = ", ".join(f"{name} {seconds / wall:.0%}" for name, seconds in parts)
    return (
        f"{result['share_of_peak']:.0%} of the measured peak of "
        f"{rate(result['peak']['flops_per_s'] / 1e9)} GFLOP/s; {largest}; "
        f"{result['trace']['unexplained_share']:.1%} unexplained"
    )


def page(result: dict[str, Any]) -> str:
    """Peak and operations, the trace, and the pieces."""
    peak, traced, pieces = result["peak"], result["trace"], result["pieces"]
    by_hand, step = result["step_flops_by_hand"], pieces[STEP]["median_s"]
    counts = [["by hand, 3 × forward", by_hand]]
    counts.append(["XLA, before compilation", result["step_flops_before_compilation"]])
    counts.append(["XLA, compiled", result["step_flops_compiled"]])
    rows = [
        [name, f"{value / 1e9:,.1f}", f"{value / by_hand:.2f}", f"{value / step / 1e9:,.1f}"]
        for name, value in counts
        if value
    ]
    per_image = sum(result["by_hand_per_image"].values())
    kinds = ", ".join(
        f"{name} {value / per_image:.1%}" for name, value in result["by_hand_per_image"].items()
    )
    text = (
        f"Peak of a {peak['dtype']} matrix product here: {peak['flops_per_s'] / 1e9:,.1f} GFLOP/s "
        f"(best of sizes {', '.join(peak['by_size'])}); memory {peak['bytes_per_s'] / 1e9:,.1f} "
        f"GB/s. The step takes {span(step)}: **{result['share_of_peak']:.1%}** of the peak, "
        "counted by hand.\n\n"
        + table(["operations per step", "GFLOP", "relative to by hand", "GFLOP/s"], rows)
        + "\n"
        + f"By hand, {per_image / 1e9:.2f} GFLOP per image in a forward pass: {kinds}.\n"
        "The count by hand includes the products with padding. XLA's does not; it counts every sum "
        "instead, and may not see into library calls.\n\n"
        "**Where the time of the step goes**, by a profiler trace:\n\n"
    )
    wall = traced["wall"]
    parts = [
        [name, span(seconds), f"{seconds / wall:.1%}"]
        for name, seconds in sorted(traced["parts"].items(), key=lambda item: -item[1])
        if seconds > 0
    ]
    parts.append(
        ["nothing running", span(wall - traced["covered"]), f"{1 - traced['covered'] / wall:.1%}"]
    )
    text += table(["part", "time", "share"], parts)
    text += (
        f"\nUnexplained (nothing running, and unnamed): {traced['unexplained_share']:.1%}. A "
        f"traced step took {span(wall)}, {wall / step:.2f} times an untraced one.\n\n"
        "**Pieces compiled and timed alone**; `loss` includes input and random numbers, `gradient` "
        "includes `loss`:\n\n"
    )
    text += table(
        ["piece", "median", "share of the step"],
        [
            [name, span(one["median_s"]), f"{one['median_s'] / step:.1%}"]
            for name, one in pieces.items()
        ],
    )
    known = sum(pieces[n]["median_s"] for n in ("gradient", "clip and Adam", "moving average"))
    return text + f"\nGradient, Adam and average together: {known / step:.1%} of the step.\n"


def draw(result: dict[str, Any], folder: Path) -> list[str]:
    """Both accounts as stacked bars, in per cent of the step."""
    traced, pieces = result["trace"], result["pieces"]
    by_trace = [(n, 100 * s / traced["wall"]) for n, s in traced["parts"].items() if s > 0]
    by_trace.append(("nothing running", 100 * (1 - traced["covered"] / traced["wall"])))
    step = pieces[STEP]["median_s"]
    share = {name: 100 * one["median_s"] / step for name, one in pieces.items()}
    alone = [
        ("loss alone", share["loss (forward)"]),
        ("its gradient alone", share["gradient"] - share["loss (forward)"]),
        ("optimiser and EMA", share["clip and Adam"] + share["moving average"]),
    ]
    save_stack(
        folder / "utilisation.png",
        {"trace": by_trace, "pieces alone": [(n, max(0.0, v)) for n, v in alone]},
        "share of the training step's time, in %",
        title="The largest part of a training step: {}, {:.0f} %".format(
            *max(by_trace, key=lambda part: part[1])
        ),
    )
    return ["utilisation.png"]


BENCHMARK = Benchmark(
    "Share of the measured peak that the training step reaches, and where its time goes",
    measure,
    line,
    page,
    draw,
)
