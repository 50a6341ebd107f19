"""One process of `benchmarks.efficiency`: owns one core, trains with the others, and times both.

python -m benchmarks.efficiency_worker PORT COUNT PROCESS ROUNDS ANSWER
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

CHANNELS, SIZE, IMAGES = 32, 32, 8
REDUCED = (1 << 12, 1 << 18, 1 << 22)  # float32 numbers in the all-reduces that are timed


def main(port: int, count: int, process: int, rounds: int, answer: str) -> None:
    """Measures and, in process 0, writes the answer."""
    # Before JAX makes its threads.
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[process]})
    import jax
    import numpy as np

    from benchmarks.sizes import CPU
    from benchmarks.workload import random_images, train_config
    from ddpm_jax.devices import mesh, processes
    from ddpm_jax.programs.build import build_model, fetch
    from ddpm_jax.training import choose_devices, make_chunk, make_train_step

    if count > 1:
        processes.connect(coordinator=f"127.0.0.1:{port}", num_processes=count, process_id=process)
    changes = {"network.channels": CHANNELS, "network.num_groups": 8}
    config = train_config(CPU, **changes, batch_size=IMAGES * count)
    model = build_model(config, (SIZE, SIZE, 3), None)
    parallel = choose_devices("shard_map")
    step = make_train_step(model.training_losses, model.optimizer)
    chunk = parallel.wrap(make_chunk(step, fetch, packed=parallel.packed))
    state = parallel.place(model.init())
    dataset = parallel.replicate({"image": random_images(64, SIZE)})
    own = mesh.own_rows(config.batch_size)
    index = np.arange(config.batch_size, dtype=np.int32)[None, own]
    batches = parallel.place_batches({"example": index, "index": index})
    seconds = []
    for number in range(rounds + 2):
        begun = time.perf_counter()
        state, metrics = chunk(state, dataset, batches, np.int32(1))
        jax.block_until_ready(metrics)
        if number >= 2:
            seconds.append(time.perf_counter() - begun)

    reduce = []
    for size in REDUCED if count > 1 else ():
        summed = jax.jit(
            jax.shard_map(
                lambda x: jax.lax.psum(x, mesh.AXES),
                mesh=parallel.mesh,
                in_specs=mesh.ROWS,
                out_specs=mesh.WHOLE,
            )
        )
        x = jax.make_array_from_process_local_data(
            jax.sharding.NamedSharding(parallel.mesh, mesh.ROWS),
            np.ones((1, size), np.float32),
        )
        times = []
        for _ in range(rounds + 2):
            begun = time.perf_counter()
            jax.block_until_ready(summed(x))
            times.append(time.perf_counter() - begun)
        reduce.append(float(np.median(times[2:])))
    if process == 0:
        gradients = [leaf.nbytes for leaf in jax.tree.leaves(mesh.fetch(state.params))]
        found = {
            "step_s": seconds,
            "images": IMAGES,
            "gradient_bytes": int(sum(gradients)),
            "gradient_arrays": len(gradients),
            "bytes": [4 * size for size in REDUCED],
            "reduce_s": reduce,
        }
        Path(answer).write_text(json.dumps(found))


if __name__ == "__main__":
    port, count, process, rounds = map(int, sys.argv[1:5])
    main(port, count, process, rounds, sys.argv[5])
