"""Runs a script of experiments/ with a fault built in: python -m tests.faults.driver FAULT SCRIPT …

FAULT is JSON. The product knows nothing of it: what it calls is replaced in this process.

    {"loss": {"steps": [7], "factor": "nan"}}    that step's losses times NaN, Infinity or a number
    {"hang": {"where": "device", "step": 7}}     that step never ends; "data": nor its batch comes
    {"names": {"how": "fail", "mark": "FILE"}}   no host name is found; "hang": no answer comes;
                                                 when the first was asked for goes to the file
    {"slow": 0.05}                               every step takes so many seconds more
    {"time_saves": "FILE"}                       seconds of every save, one per line
    {"bucket": 3.0}                              fake:// is known, and locks end after such seconds
"""

from __future__ import annotations

import json
import runpy
import socket
import sys
import time
from pathlib import Path
from typing import Any


def main(fault: dict[str, Any], script: str, arguments: list[str]) -> None:
    """Builds the fault in and runs the script."""
    for name, options in fault.items():
        FAULTS[name](options)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def is_step(model, keys, steps: list[int]):
    """Whether a step is one of `steps` (the first is 1), by the key of its first example."""
    import jax
    import jax.numpy as jnp

    from ddpm_jax.keys import example_keys

    run_key = jax.random.split(jax.random.key(model.config.seed))[1]
    wanted = [example_keys(jax.random.fold_in(run_key, s - 1), [0])[0] for s in steps]
    table = jnp.stack([jax.random.key_data(key) for key in wanted])
    return (jax.random.key_data(keys)[:1] == table).all(axis=1).any()


def replace_losses(change) -> None:
    """Puts `change(model, losses, keys)` between the loss and the training step."""
    from ddpm_jax.programs.model import Model

    original = Model.training_losses

    def training_losses(self, params, batch, keys, *rest):
        return change(self, original(self, params, batch, keys, *rest), keys)

    Model.training_losses = training_losses


def loss(options: dict[str, Any]) -> None:
    """The losses of some steps are multiplied by a factor."""
    import jax.numpy as jnp

    factor = float(options["factor"])

    def change(model, losses, keys):
        return losses * jnp.where(is_step(model, keys, options["steps"]), factor, 1.0)

    replace_losses(change)


def hang(options: dict[str, Any]) -> None:
    """A step does not end, or its batch does not come."""
    if options["where"] == "data":
        from ddpm_jax.data import PrefetchedBatches

        read = PrefetchedBatches._read

        def never(self, step, length):
            if step <= options["step"] - 1 < step + length:
                time.sleep(3600)
            return read(self, step, length)

        PrefetchedBatches._read = never
        return
    import jax
    import jax.numpy as jnp
    import numpy as np

    def sleep(now):
        if now:
            time.sleep(3600)
        return np.float32(0)

    def change(model, losses, keys):
        now = is_step(model, keys, [options["step"]])
        return losses + jax.pure_callback(sleep, jax.ShapeDtypeStruct((), jnp.float32), now)

    replace_losses(change)


def slow(seconds: float) -> None:
    """Every step takes longer, as on a device that this machine's other work does not disturb."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    def sleep(_):
        time.sleep(seconds)
        return np.float32(0)

    def change(model, losses, keys):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return losses + jax.pure_callback(sleep, shape, jax.random.key_data(keys))

    replace_losses(change)


def names(options: dict[str, Any]) -> None:
    """No host name is found, at once or after a long wait; addresses of this machine are."""
    original = socket.getaddrinfo

    def getaddrinfo(host, *rest, **more):
        if host in ("127.0.0.1", "localhost", None):
            return original(host, *rest, **more)
        mark = Path(options["mark"])
        if not mark.exists():
            mark.write_text(str(time.monotonic()))
        if options["how"] == "hang":
            time.sleep(60)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    socket.getaddrinfo = getaddrinfo


def time_saves(path: str) -> None:
    """Writes how long training stood still for each save."""
    from ddpm_jax.training import Checkpoints

    original = Checkpoints.save

    def save(self, *arguments, **options):
        began = time.perf_counter()
        try:
            return original(self, *arguments, **options)
        finally:
            with open(path, "a") as file:
                print(time.perf_counter() - began, file=file)

    Checkpoints.save = save


def bucket(lease: float) -> None:
    """Runs may lie in the buckets of `tests.fake_bucket`, and what is there is read often."""
    import tests.fake_bucket  # noqa: F401 - registers the scheme
    from ddpm_jax.programs import bucket_lock, mirror

    bucket_lock.LEASE, mirror.POLL_SECONDS = lease, 0.1


FAULTS = {
    "loss": loss,
    "hang": hang,
    "slow": slow,
    "names": names,
    "time_saves": time_saves,
    "bucket": bucket,
}

if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:])
