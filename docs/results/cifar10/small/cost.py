"""Measures what an image costs, for this page; on otherwise idle cores.

python docs/results/cifar10/small/cost.py MODEL OUT.json
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import ddpm_jax as dj
from ddpm_jax.programs.config import SamplerOptions

STEPS, ROUNDS = 20, 3


def main(model: str, out: Path) -> None:
    """Prints the table and writes its numbers."""
    run = dj.load_run(model)
    x = jax.ShapeDtypeStruct((1, *run.model.image_shape), jnp.float32)
    index = jax.ShapeDtypeStruct((1,), jnp.int32)
    network = jax.jit(lambda params, *rest: run.model.network.apply({"params": params}, *rest))
    flops = network.lower(run.params, x, index, index).compile().cost_analysis()["flops"]
    sampler = run.sampler(SamplerOptions("dpm_solver_pp", num_steps=STEPS))
    rows = []
    for guidance in (1.0, 2.0):
        generator = run.generator(sampler, guidance=guidance)
        for count in (1, 100):
            seconds = []
            for i in range(ROUNDS + 1):  # the first also compiles
                began = time.perf_counter()
                labels = run.labels(count, None)
                generator(run.params, seed=i, count=count, batch_size=count, labels=labels)
                seconds.append((time.perf_counter() - began) / count)
            evaluations = STEPS * (1 if guidance == 1 else 2)
            rows.append(
                {
                    "guidance": guidance,
                    "evaluations": evaluations,
                    "batch_size": count,
                    "gflop_per_image": evaluations * flops / 1e9,
                    "seconds_per_image": statistics.median(seconds[1:]),
                }
            )
            print({name: round(value, 4) for name, value in rows[-1].items()}, flush=True)
    found = {"sampler": "dpm_solver_pp", "steps": STEPS, "rounds": ROUNDS, "rows": rows}
    out.write_text(json.dumps({**found, "gflop_per_evaluation": flops / 1e9}, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
