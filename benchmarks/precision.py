"""bfloat16 against float32: held-out loss after the same training, on the digits.

Both train from the same seed on the same batches with the same noise. What two seeds differ by in
float32 is the yardstick: a precision that costs less than that costs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import say
from benchmarks.plots import save_bars
from benchmarks.render import Benchmark, span, table
from benchmarks.sizes import Plan

DTYPES = ("float32", "bfloat16")
DRAWS = 2048


def measure(plan: Plan) -> dict[str, Any]:
    """Held-out losses and seconds per step by precision and seed."""
    if plan.precision_seeds < 1:
        raise ValueError(f"precision needs precision_seeds >= 1, got {plan.precision_seeds}.")
    rows = []
    for seed in range(plan.precision_seeds):
        for dtype in DTYPES:
            loss, seconds = _train(plan, dtype, seed)
            rows.append({"dtype": dtype, "seed": seed, "loss": loss, "seconds": seconds})
            say(f"  {dtype}, seed {seed}: held-out loss {loss:.5f}, {span(seconds)} per step")
    by = {(row["dtype"], row["seed"]): row["loss"] for row in rows}
    seeds = range(plan.precision_seeds)
    differences = [by["bfloat16", s] / by["float32", s] - 1 for s in seeds]
    single = [by["float32", s] for s in seeds]
    return {
        "steps": plan.precision_steps,
        "rows": rows,
        "differences": differences,
        "mean_difference": float(np.mean(differences)),
        "spread_of_seeds": float(np.std(single, ddof=1) / np.mean(single))
        if len(seeds) > 1
        else None,
        "seconds": {
            dtype: float(np.median([row["seconds"] for row in rows if row["dtype"] == dtype]))
            for dtype in DTYPES
        },
    }


def _train(plan: Plan, dtype: str, seed: int) -> tuple[float, float]:
    """(held-out loss of the averaged parameters, median seconds per step) of a short training."""
    import time

    import jax
    import jax.numpy as jnp

    from ddpm_jax.data import ShuffledIndices, load_digits
    from ddpm_jax.keys import example_keys
    from ddpm_jax.programs.build import build_model, fetch, heldout_plan
    from ddpm_jax.training import choose_devices, make_chunk, make_train_step

    config = _config(plan, dtype, seed)
    data, heldout = load_digits("train"), load_digits("heldout")
    model = build_model(config, data.images.shape[1:], None)
    parallel = choose_devices("jit", 1)
    step = make_train_step(
        model.training_losses,
        model.optimizer,
        ema_decay=config.optimizer.ema_decay,
        ema_warmup=True,
    )
    run = parallel.wrap(make_chunk(step, fetch, packed=parallel.packed))
    state = parallel.place(model.init())
    dataset = parallel.replicate({"image": data.images})
    indices = ShuffledIndices(len(data.images), config.batch_size, seed)
    length = plan.steps
    place = np.tile(np.arange(config.batch_size, dtype=np.int32), (length, 1))
    times = []
    for first in range(0, plan.precision_steps, length):
        batches = parallel.place_batches({"example": indices.chunk(first, length), "index": place})
        begun = time.perf_counter()
        state, metrics = run(state, dataset, batches, np.int32(length))
        jax.block_until_ready(metrics)
        times.append((time.perf_counter() - begun) / length)
    draws = 64 if plan.quick else DRAWS
    which, t, weight = heldout_plan(draws, len(heldout.images), model.schedule.num_timesteps)
    keys = example_keys(jax.random.key(0), jnp.arange(draws, dtype=jnp.uint32))
    # Measured in float32 in both cases: what is compared are the parameters training arrived at.
    measured = build_model(_config(plan, "float32", seed), data.images.shape[1:], None)
    losses = jax.jit(measured.heldout_losses)
    total = 0.0
    for part in np.array_split(np.arange(draws), max(1, draws // 256)):
        got = losses(state.ema_params, heldout.images[which[part]], None, t[part], keys[part])
        total += float(weight[part] @ np.asarray(got[:, 0], np.float64))
    if not np.isfinite(total):
        raise ValueError(f"training in {dtype} with seed {seed} ended at a loss of {total}")
    return total / draws, float(np.median(times))


def _config(plan: Plan, dtype: str, seed: int) -> Any:
    """That of `experiments/train_digits.py`, its cosine as long as this training."""
    from ddpm_jax.programs import config as c

    return c.TrainConfig(
        run_dir=Path("unused"),
        num_steps=plan.precision_steps + 1,
        batch_size=32,
        seed=seed,
        network=c.NetworkConfig(
            channels=16 if plan.quick else 32,
            channel_multipliers=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(4,),
            dropout=0.0,
            num_groups=8,
            dtype=dtype,  # type: ignore[arg-type]
        ),
        diffusion=c.DiffusionConfig(schedule="cosine", num_timesteps=200, timesteps="stratified"),
        optimizer=c.OptimizerConfig(
            learning_rate=3e-3,
            warmup_steps=min(100, plan.precision_steps // 2),
            decay="cosine",
            ema_decay=0.995,
            ema_warmup=True,
        ),
    )


def line(result: dict[str, Any]) -> str:
    """The relative difference against the seeds' spread."""
    worst = max(abs(difference) for difference in result["differences"])
    text = f"held-out loss {result['mean_difference']:+.2%} on average, {worst:.2%} at most"
    if result["spread_of_seeds"] is not None:
        text += f"; seeds differ by {result['spread_of_seeds']:.2%}"
    return text


def page(result: dict[str, Any]) -> str:
    """Losses of every training."""
    rows = [
        [f"{row['dtype']}, seed {row['seed']}", f"{row['loss']:.5f}", span(row["seconds"])]
        for row in result["rows"]
    ]
    faster = result["seconds"]["float32"] / result["seconds"]["bfloat16"]
    return (
        f"{result['steps']:,} steps of the digits' training, held-out loss of the averaged "
        f"parameters, both measured in float32.\n\n"
        + table(["", "held-out loss", "time per step"], rows)
        + f"\nBfloat16 against float32: {line(result)}. A step in bfloat16 is {faster:.2f} times "
        "as fast as in float32, on this small network.\n"
    )


def draw(result: dict[str, Any], folder: Path) -> list[str]:
    """Held-out losses by seed and precision."""
    groups: dict[str, dict[str, Any]] = {}
    for row in result["rows"]:
        loss = row["loss"]
        bar = (loss, loss, loss, f"{loss:.4f}")
        groups.setdefault(f"seed {row['seed']}", {})[row["dtype"]] = bar
    save_bars(
        folder / "precision.png",
        groups,
        "held-out loss",
        title=f"bfloat16 changes the held-out loss by {result['mean_difference']:+.2%} on average",
    )
    return ["precision.png"]


BENCHMARK = Benchmark("bfloat16 against float32", measure, line, page, draw)
