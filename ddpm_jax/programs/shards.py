"""Sampled images in files of up to a thousand: the same command resumes after the last whole one.

Memory holds one file's images at a time, however many are sampled.
"""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

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
"""The largest number of images in one file."""
SHARD_BYTES = 1 << 25
"""Large images come in smaller files, of about this size, so that a kill costs less."""
CHANGING = ("device", "jax", "run")
"""Parts of a plan that change the images by rounding only."""


def shard_size(shape: tuple[int, ...], batch_size: int) -> int:
    """The number of images [H, W, C] per file: of large ones whole batches, at least one."""
    fit = max(1, SHARD_BYTES // math.prod(shape))
    return SHARD if fit >= SHARD else max(1, fit // batch_size) * batch_size


def remember_plan(out: Path, plan: dict[str, Any]) -> None:
    """Writes down what the folder's shards hold; RunDirectoryError if they hold something else."""
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
                f"{out} holds unfinished samples of other settings ({', '.join(changed)}). Choose "
                "another folder with --out, or repeat the old command. Nothing was changed."
            )
        return
    write_json(path, plan)


def _shard(out: Path, first: int) -> Path:
    return out / "shards" / f"{first:06d}.npz"


def _read_shard(path: Path, count: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
    """The first `count` images of a shard; None if it does not hold as many."""
    if not path.exists():
        return None
    try:
        images = _images(path, path.stat().st_size * MAX_EXPANSION)
    except (OSError, ValueError) as error:
        say(f"warning: {path} cannot be read ({error}); it is sampled again")
        return None
    fits = len(images) >= count and images.shape[1:] == shape and images.dtype == np.uint8
    return images[:count] if fits else None


def _images(path: Path, max_bytes: int) -> npt.NDArray[np.uint8]:
    arrays = read_arrays(path, max_bytes, ("images",))
    if "images" not in arrays:
        raise ValueError("it has no array `images`")
    return arrays["images"]


def sample_shards(
    run: TrainedRun,
    generator: Generator,
    out: Path,
    *,
    count: int,
    batch_size: int,
    label: int | str | None = None,
    cond: npt.NDArray[np.float32] | None = None,
    frames_of: int = 0,
    on_frames: Callable[[npt.NDArray[np.uint8]], None] = lambda frames: None,
) -> None:
    """Samples the shards that are missing.

    Args:
        run: the run whose parameters, seed and labels are used.
        generator: a generator of this run.
        out: the folder that gets `shards/`.
        count: the number of images in all shards together.
        batch_size: the number of images at a time.
        label: the class of all images; None for all classes in turn.
        cond: the vectors [M, D] that images are conditioned on, in turn; None for none.
        frames_of: the number of first images whose frames are kept, at most one batch.
        on_frames: called with the frames [F, N, H, W, C] before the first shard is written.
    """
    shape = run.model.image_shape
    per_shard = shard_size(shape, batch_size)
    processes.on_leader(lambda: (out / "shards").mkdir(exist_ok=True))
    with bar(count * generator.num_steps, "sampling", unit="img·step") as progress:
        for first in range(0, count, per_shard):
            size = min(per_shard, count - first)
            path = _shard(out, first)

            def there(path=path, size=size) -> bool:
                return _read_shard(path, size, shape) is not None

            if processes.on_leader(there):
                progress.update(size * generator.num_steps)
                continue
            batch = min(batch_size, per_shard, count)
            # Whole batches, so that one program serves all shards; the excess is dropped.
            drawn = -(-size // batch) * batch
            labels = run.labels(first + drawn, label)
            left = size * generator.num_steps

            def advance(steps: int) -> None:
                nonlocal left
                # The excess is no progress.
                progress.update(min(steps, left))
                left -= min(steps, left)

            made = generator(
                run.params,
                seed=run.options.seed,
                count=drawn,
                batch_size=batch,
                start=first,
                labels=None if labels is None else labels[first:],
                cond=None if cond is None else cond[np.arange(first, first + drawn) % len(cond)],
                frames_of=frames_of if first == 0 else 0,
                on_progress=advance,
            )

            def write(path=path, images=made.images[:size], frames=made.frames) -> None:
                if frames is not None:
                    on_frames(frames)
                write_atomically(path, lambda file: np.savez_compressed(file, images=images))

            processes.on_leader(write)


def read_shards(
    out: Path, count: int, shape: tuple[int, ...], batch_size: int
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields the images of `sample_shards` with the same arguments, one file at a time."""
    per_shard = shard_size(shape, batch_size)
    for first in range(0, count, per_shard):
        images = _read_shard(_shard(out, first), min(per_shard, count - first), shape)
        if images is None:
            raise OSError(f"{_shard(out, first)} went away while it was needed. Sample again.")
        yield images


def join_shards(
    pieces: Iterator[npt.NDArray[np.uint8]], shape: tuple[int, ...], path: Path
) -> None:
    """Writes arrays of images as one .npz, `images` of this shape [N, H, W, C], piece by piece."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}

    def write(target: IO[bytes]) -> None:
        with (
            zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("images.npy", "w", force_zip64=True) as file,
        ):
            np.lib.format.write_array_header_1_0(file, header)
            for images in pieces:
                file.write(np.ascontiguousarray(images).data)

    write_atomically(path, write)


def remove_shards(out: Path) -> None:
    """Removes the shards and their plan, once their images are elsewhere."""
    (out / "plan.json").unlink(missing_ok=True)
    shutil.rmtree(out / "shards", ignore_errors=True)
