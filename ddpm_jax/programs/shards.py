"""Sampled images in files of a thousand: what a killed program has drawn, the next one finds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddpm_jax.devices import processes
from ddpm_jax.files import (
    MAX_EXPANSION,
    read_arrays,
    read_json_object,
    write_atomically,
    write_json,
)
from ddpm_jax.programs.console import bar, say
from ddpm_jax.programs.generator import Generator
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.programs.trained_run import TrainedRun

SHARD = 1000
"""Images in one file."""
CHANGING = ("device", "jax", "run")
"""What of a plan may change without changing the images, but for rounding."""


def remember_plan(out: Path, plan: dict[str, Any]) -> None:
    """Notes what the folder's shards are of; RunDirectoryError where they are of something else."""
    path = out / "plan.json"
    if path.exists():
        try:
            old = read_json_object(path)
        except (OSError, ValueError) as error:
            raise RunDirectoryError(
                f"{path} cannot be understood ({error}), so what {out} holds is unknown. Choose "
                "another folder with --out. Nothing was changed."
            ) from error
        changed = sorted(
            k for k in plan if k not in CHANGING and old.get(k) != json.loads(json.dumps(plan[k]))
        )
        if changed:
            raise RunDirectoryError(
                f"{out} holds samples made otherwise (other {', '.join(changed)}). Choose another "
                "folder with --out. Nothing was changed."
            )
        return
    write_json(path, plan)


def _shard(out: Path, first: int) -> Path:
    return out / "shards" / f"{first:06d}.npz"


def _read_shard(path: Path, count: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
    """The images of a shard; None where it is not there or not whole."""
    if not path.exists():
        return None
    try:
        images = _images(path, count * math.prod(shape))
    except (OSError, ValueError) as error:
        say(f"warning: {path} cannot be read ({error}); it is sampled again")
        return None
    return images if images.shape == (count, *shape) and images.dtype == np.uint8 else None


def _images(path: Path, most: int) -> npt.NDArray[np.uint8]:
    arrays = read_arrays(path, most, ("images",))
    if "images" not in arrays:
        raise ValueError("it has no array `images`")
    return arrays["images"]


def sample_shards(
    run: TrainedRun, generator: Generator, out: Path, *, count: int, batch_size: int
) -> None:
    """Draws the shards that are not there yet."""
    processes.on_leader(lambda: (out / "shards").mkdir(exist_ok=True))
    with bar(count * generator.num_steps, "sampling", unit="img·step") as progress:
        for first in range(0, count, SHARD):
            size = min(SHARD, count - first)
            path = _shard(out, first)
            shape = run.model.image_shape

            def there(path=path, size=size, shape=shape) -> bool:
                return _read_shard(path, size, shape) is not None

            if processes.on_leader(there):
                progress.update(size * generator.num_steps)
                continue
            batch = min(batch_size, SHARD, count)
            # Whole batches, so one program, however the shards end; what is too many is dropped.
            drawn = -(-size // batch) * batch
            labels = run.labels(first + drawn)
            made = generator(
                run.params,
                seed=run.options.seed,
                count=drawn,
                batch_size=batch,
                start=first,
                labels=None if labels is None else labels[first:],
                on_progress=progress.update,
            )

            def write(path=path, images=made.images[:size]) -> None:
                write_atomically(path, lambda file: np.savez_compressed(file, images=images))

            processes.on_leader(write)


def read_shards(out: Path, count: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields the images of `sample_shards`, a file at a time."""
    for first in range(0, count, SHARD):
        # They were asked for their size when they were sampled or found.
        yield _images(_shard(out, first), _shard(out, first).stat().st_size * MAX_EXPANSION)
