"""One of several processes: trains, samples, saves and agrees, and leaves what it found in a file.

    python -m tests.several_processes PORT NUM_PROCESSES PROCESS_ID FOLDER

`test_devices_processes` calls the same functions in its own single process, to compare.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax

import ddpm_jax as dj
from ddpm_jax.data import ShuffledIndices
from ddpm_jax.devices import processes
from ddpm_jax.devices.mesh import AXES, ROWS, WHOLE, fetch, own_rows
from ddpm_jax.programs.generator import Generator
from ddpm_jax.training import (
    Checkpoints,
    StopRequest,
    choose_devices,
    fsdp,
    init_state,
    make_chunk,
    make_train_step,
)

if __name__ == "__main__":
    # Before anything is computed; the tiny problem computes its schedule as it is imported.
    processes.connect(
        coordinator=f"127.0.0.1:{sys.argv[1]}",
        num_processes=int(sys.argv[2]),
        process_id=int(sys.argv[3]),
        heartbeat_seconds=20,
    )

from tests import small_mlp as small  # noqa: E402

OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-3))
INDICES = ShuffledIndices(len(small.IMAGES), 16, seed=3)
fsdp.SMALLEST = 64  # the network's arrays are all small


def fresh_state():
    return init_state(small.init_params(), OPTIMIZER, jax.random.key(5))


def feed(parallel, step):
    """This process's rows of the batch of a step, [1, b]."""
    own = own_rows(16)
    index = np.arange(16, dtype=np.int32)[None, own]
    return parallel.place_batches({"example": INDICES.chunk(step, 1)[:, own], "index": index})


def make_step(parallel):
    """`step(state, number) -> (state, loss)`, compiled once."""
    chunk = parallel.wrap(make_chunk(make_train_step(small.loss_fn, OPTIMIZER), small.fetch))
    dataset = parallel.replicate({"image": small.IMAGES})

    def step(state, number):
        state, metrics = chunk(state, dataset, feed(parallel, number), np.int32(1))
        return state, float(metrics["loss"][0])

    return step


def drawn(parallel):
    """What step 7 is made of: examples, images, t, noise and dropout keys of the whole batch."""
    dataset = parallel.replicate({"image": small.IMAGES})

    def draws(dataset, batch):
        batch = small.fetch(dataset, jax.tree.map(lambda leaf: leaf[0], batch))
        keys = dj.example_keys(jax.random.fold_in(jax.random.key(5), 7), batch["index"])
        x_0, t, noise, dropout = small.draws(batch, keys)
        return batch["example"], batch["image"], x_0, t, noise, jax.random.key_data(dropout)

    mapped = jax.shard_map(
        draws,
        mesh=parallel.mesh,
        in_specs=(WHOLE, jax.sharding.PartitionSpec(None, AXES)),
        out_specs=ROWS,
    )
    return fetch(jax.jit(mapped)(dataset, feed(parallel, 7)))


def images(devices):
    """Seven images by DDIM, of the initial parameters."""
    grid = dj.respace(small.SCHEDULE, dj.spaced_timesteps(100, 6))

    def denoiser_of(params, labels):
        def apply_fn(x, t):
            output = small.NETWORK.apply({"params": params}, x.reshape(len(x), -1), t)
            return output.reshape(x.shape)

        return dj.make_denoiser(small.SCHEDULE, apply_fn)

    generator = Generator(dj.ddim(grid, eta=0.5), denoiser_of, (8, 8, 1), devices=devices)
    made = generator(small.init_params(), seed=4, count=7, batch_size=4, frames_of=2)
    return made.images, made.frames


def go_on(folder, parallel, until, save_at):
    """Goes on from the newest checkpoint to step `until`: (start, state, losses)."""
    losses = []
    with Checkpoints(folder) as checkpoints:
        state = checkpoints.restore(parallel.placeholder(jax.eval_shape(fresh_state)))
        if state is None:
            state = parallel.place(fresh_state())
        start, step = int(state.step), make_step(parallel)
        for number in range(start, until):
            state, loss = step(state, number)
            losses.append(loss)
            if number + 1 == save_at:
                checkpoints.save(save_at, state)
                # As the end of a run does, after the hook that has saved the very same step.
                checkpoints.save(save_at, state)
    return start, state, np.array(losses)


def parameters(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(fetch((state.params, state.opt_state)))]


def agreements(process):
    """What the processes say to each other, and how they fail together."""
    found = {"result": processes.on_leader(lambda: {"from": jax.process_index()})}

    def fail_in(culprit):
        if jax.process_index() == culprit:
            raise OSError(f"no room in {culprit}")

    for name, call, culprit in (
        ("leader", processes.on_leader, 0),
        ("everywhere", processes.everywhere, jax.process_count() - 1),
    ):
        try:
            call(lambda culprit=culprit: fail_in(culprit))
        except (OSError, processes.PeerError) as error:
            found[name] = [type(error).__name__, str(error)]
    stop = StopRequest()
    stop.share()
    answers = []
    for turn in range(4):
        if turn == 1 and process == jax.process_count() - 1:
            stop.signal = True
        answers.append(stop())
    return {**found, "stop": answers}


def main(folder):
    count, process = jax.process_count(), jax.process_index()
    # Two with all parameters on every device, four with parts of them.
    parallel = choose_devices("shard_map", parameter_shards=count // 2)
    np.savez(folder / f"drawn-{process}.npz", *drawn(parallel))
    np.savez(folder / f"images-{process}.npz", *images(parallel.devices))
    (folder / f"agreements-{process}.json").write_text(json.dumps(agreements(process)))
    start, state, losses = go_on(
        folder.parent / "checkpoints", parallel, 50, 3 if count == 2 else 50
    )
    leaves = jax.tree.leaves(state.params)
    np.savez(
        folder / f"trained-{process}.npz",
        *parameters(state),
        start=start,
        losses=losses,
        held=np.array([leaf.addressable_shards[0].data.size for leaf in leaves]),
        sizes=np.array([leaf.size for leaf in leaves]),
    )


if __name__ == "__main__":
    main(Path(sys.argv[4]))
