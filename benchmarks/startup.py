"""Start-up: from nothing to the first training step, with and without the compilation cache.

Every figure is of a fresh process that does what `train` does, stage after stage. The cache is
JAX's persistent one (JAX_COMPILATION_CACHE_DIR): "filling" starts with an empty folder, "filled"
with what that run left. The rival imports torch and diffusers and takes its first step, eager, and
by torch.compile with an empty and a filled cache.
"""

# Both libraries export these names lazily, which pyright does not follow.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import say
from benchmarks.plots import save_stack
from benchmarks.provenance import ROOT, missing_torch
from benchmarks.render import Benchmark, left_out, span, table
from benchmarks.sizes import Plan, from_json, to_json

OURS = ("no cache", "filling the cache", "filled cache")


class Laps:
    """Seconds by stage, from a moment on."""

    def __init__(self, began: float):
        self.last, self.stages = began, {}

    def __call__(self, name: str) -> None:
        """Ends the stage `name`."""
        now = time.time()
        self.stages[name], self.last = now - self.last, now


def jax_process(plan: dict[str, Any], began: float) -> dict[str, float]:
    """The stages of a training run up to its second step."""
    laps = Laps(began)
    laps("interpreter")
    import jax

    from benchmarks.workload import train_config
    from ddpm_jax.programs import train as _  # noqa: F401 - what a run imports
    from ddpm_jax.programs.build import build_model, fetch
    from ddpm_jax.training import choose_devices, make_chunk, make_train_step

    laps("imports")
    sizes = from_json(plan)
    parallel = choose_devices("jit", 1)
    config = train_config(sizes)
    model = build_model(config, (sizes.image_size, sizes.image_size, 3), None)
    laps("device and model")
    state = parallel.place(model.init())
    jax.block_until_ready(state.params)
    laps("initial parameters")
    chunk = parallel.wrap(
        make_chunk(make_train_step(model.training_losses, model.optimizer), fetch)
    )
    pixels = np.zeros((512, sizes.image_size, sizes.image_size, 3), np.uint8)
    dataset = parallel.replicate({"image": pixels})
    index = np.arange(sizes.batch_size, dtype=np.int32)[None]
    batches = parallel.place_batches({"example": index, "index": index})
    lowered = chunk.lower(state, dataset, batches, np.int32(1))
    laps("tracing the step")
    compiled = lowered.compile()
    laps("compiling the step")
    state, metrics = compiled(state, dataset, batches, np.int32(1))
    jax.block_until_ready(metrics)
    laps("first step")
    jax.block_until_ready(compiled(state, dataset, batches, np.int32(1))[1])
    laps("second step")
    return laps.stages


def torch_process(plan: dict[str, Any], began: float, variant: str) -> dict[str, float]:
    """The same stages in PyTorch; torch.compile compiles in the first step."""
    laps = Laps(began)
    laps("interpreter")
    import torch  # noqa: F401
    from diffusers import UNet2DModel  # noqa: F401

    from benchmarks.pytorch import Trainer, synchronize

    laps("imports")
    config = plan["torch_config"]
    trainer = Trainer(config, None, variant, batch_size=plan["batch_size"], dtype=plan["dtype"])
    synchronize()
    laps("initial parameters")
    trainer.step()
    synchronize()
    laps("first step")
    trainer.step()
    synchronize()
    laps("second step")
    return laps.stages


def measure(plan: Plan) -> dict[str, Any]:
    """Stages of each case, medians over fresh processes."""
    from benchmarks.workload import train_config
    from ddpm_jax.interop import unet_to_diffusers_config
    from ddpm_jax.programs.build import build_model

    shape = (plan.image_size, plan.image_size, 3)
    unet = build_model(train_config(plan), shape, None).network
    values = {**to_json(plan), "torch_config": unet_to_diffusers_config(unet, shape)}
    repeats = 1 if plan.quick or plan.platform != "cpu" else 2
    result: dict[str, Any] = {"cases": {}, "skipped": {}, "repeats": repeats}
    reason = missing_torch()
    if reason is not None:
        result["skipped"]["PyTorch"] = reason
    runs: dict[str, list[dict[str, float]]] = {}

    def run(case: str, function: str, environment: dict[str, str]) -> None:
        stages = _fresh(function, values, environment)
        runs.setdefault(case, []).append(stages)
        say(f"  {case}: {span(sum(stages.values()) - stages['second step'])} to the first step")

    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            cache = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/jax"}
            run(OURS[0], "jax", {})
            run(OURS[1], "jax", cache)
            run(OURS[2], "jax", cache)
            if reason is None:
                run("PyTorch, eager", "channels_last", {})
            if reason is None and plan.torch_compile:
                inductor = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/torch"}
                try:
                    run("torch.compile, empty cache", "compile", inductor)
                    run("torch.compile, filled cache", "compile", inductor)
                except RuntimeError as error:
                    result["skipped"]["torch.compile"] = str(error)[-300:]
    for case, several in runs.items():
        result["cases"][case] = {
            stage: float(np.median([one[stage] for one in several])) for stage in several[0]
        }
    return result


def _fresh(function: str, values: dict[str, Any], environment: dict[str, str]) -> dict[str, float]:
    """Runs this module in a fresh process and reads the stages it prints last."""
    clean = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-m", "benchmarks.startup", function, json.dumps(values)]
    done = subprocess.run(
        [*command, repr(time.time())],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"a fresh process ({function}) failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def total(stages: dict[str, float]) -> float:
    """Seconds to the end of the first step."""
    return sum(seconds for stage, seconds in stages.items() if stage != "second step")


def line(result: dict[str, Any]) -> str:
    """Time to the first step in each case."""
    return "to the first step: " + ", ".join(
        f"{case} {span(total(stages))}" for case, stages in result["cases"].items()
    )


def page(result: dict[str, Any]) -> str:
    """Stages by case."""
    cases = result["cases"]
    stages = list(dict.fromkeys(stage for case in cases.values() for stage in case))
    rows = [
        [stage, *(span(case[stage]) if stage in case else "" for case in cases.values())]
        for stage in stages
    ]
    rows.insert(-1, ["**to the end of the first step**", *(span(total(c)) for c in cases.values())])
    return (
        f"Medians of {result['repeats']} fresh process{'es' * (result['repeats'] > 1)} each.\n\n"
        + table(["", *cases], rows)
        + left_out(result["skipped"])
    )


def draw(result: dict[str, Any], folder: Path) -> list[str]:
    """Stages laid end to end, up to the first step."""
    rows = {
        case: [(stage, seconds) for stage, seconds in stages.items() if stage != "second step"]
        for case, stages in result["cases"].items()
    }
    times = [f"{span(total(stages))} ({case})" for case, stages in result["cases"].items()]
    title = "To the end of the first step: " + ", ".join(times[0:3:2])
    save_stack(folder / "startup.png", rows, "seconds", title=title)
    return ["startup.png"]


BENCHMARK = Benchmark("Start-up and compilation", measure, line, page, draw)

if __name__ == "__main__":
    which, given, moment = sys.argv[1:]
    settings = json.loads(given)
    if which == "jax":
        settings.pop("torch_config")
        answer = jax_process(settings, float(moment))
    else:
        answer = torch_process(settings, float(moment), which)
    print(json.dumps(answer))
