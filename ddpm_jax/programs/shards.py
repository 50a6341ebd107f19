"""Sampled images in files of up to a thousand: the same command resumes after the last one.

Memory holds one file's images at a time, however many are sampled.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ddpm_jax import files
from ddpm_jax.devices import processes
from ddpm_jax.programs.conditions import in_turn
from ddpm_jax.programs.console import bar, say
from ddpm_jax.programs.generator import Conditions, Generator
from ddpm_jax.programs.run_directory import RunDirectoryError, without_names
from ddpm_jax.programs.trained_run import TrainedRun

SHARD = 1000
"""The largest number of images in one file, unless a batch is larger."""
SHARD_BYTES = 1 << 25
"""Large images come in smaller files, of about this size."""
SECONDS = 30.0
"""After this long a file is written with fewer images: this and a batch are what a kill costs."""
CHANGING = ("device", "jax", "run")
"""Parts of a plan that change the images by rounding only."""


def shard_size(shape: tuple[int, ...]) -> int:
    """The largest number of images [H, W, C] per file, if it holds more than one batch."""
    return max(1, min(SHARD, SHARD_BYTES // math.prod(shape)))


def content_of(plan: dict[str, Any]) -> dict[str, Any]:
    """The parts of a plan that change images by more than rounding, as JSON has them."""
    kept = {k: without_names(v) for k, v in plan.items() if k not in CHANGING}
    return json.loads(json.dumps(kept, sort_keys=True))


def remember_plan(out: Path, plan: dict[str, Any]) -> None:
    """Writes down what the folder's shards hold; RunDirectoryError if they hold something else."""
    path = out / "plan.json"
    if path.exists():
        try:
            old = files.read_json_object(path)
        except (OSError, ValueError) as error:
            raise RunDirectoryError(
                f"{path} cannot be understood ({error}), so what {out} holds is unknown. Choose "
                "another folder with --out. Nothing was changed."
            ) from error
        before, now = content_of(old), content_of(plan)
        # An option that was not given is in neither plan, or in one of them.
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if changed:
            raise RunDirectoryError(
                f"{out} holds unfinished samples of other settings ({', '.join(changed)}). Choose "
                "another folder with --out, or repeat the old command. Nothing was changed."
            )
        return
    if any((out / "shards").glob("*.npz")):
        raise RunDirectoryError(
            f"{out / 'shards'} holds images, but there is no {path.name} with their settings. "
            "Remove them, or choose another folder with --out. Nothing was changed."
        )
    files.write_json(path, plan)


def _shard(out: Path, first: int) -> Path:
    return out / "shards" / f"{first:06d}.npz"


def _read_shard(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
    """The images of a shard; None if there are none that can be read."""
    if not path.exists():
        return None
    try:
        arrays = files.read_arrays(path, path.stat().st_size * files.MAX_EXPANSION, ("images",))
        if "images" not in arrays:
            raise ValueError("it has no array `images`")
    except (OSError, ValueError) as error:
        say(f"warning: {path} cannot be read ({error}); it is sampled again")
        return None
    images = arrays["images"]
    fits = images.shape[1:] == shape and images.dtype == np.uint8 and len(images)
    return images if fits else None


def _kept_and_next(out: Path, first: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """How many images the shard of image `first` has, and the first image of the next shard."""
    images = _read_shard(_shard(out, first), shape)
    starts = [int(p.stem) for p in (out / "shards").glob("*.npz") if p.stem.isdecimal()]
    return 0 if images is None else len(images), min((n for n in starts if n > first), default=-1)


def sample_shards(
    run: TrainedRun,
    generator: Generator,
    out: Path,
    *,
    count: int,
    batch_size: int,
    label: int | str | None = None,
    conditions: Conditions | None = None,
    frames_of: int = 0,
    on_frames: Callable[[npt.NDArray[np.uint8]], None] = lambda frames: None,
) -> None:
    """Samples the images that no shard holds yet.

    Args:
        run: the run whose parameters, seed and labels are used.
        generator: a generator of this run.
        out: the folder that gets `shards/`.
        count: the number of images in all shards together.
        batch_size: the number of images at a time.
        label: the class of all images; None for all classes in turn.
        conditions: others by name, whose rows [M, ...] images use in turn; None for none.
        frames_of: the number of first images whose frames are kept, at most one batch.
        on_frames: called with the frames [F, N, H, W, C] before the first shard is written.
    """
    shape = run.model.image_shape
    limit, batch = shard_size(shape), min(batch_size, count)
    processes.on_leader(lambda: (out / "shards").mkdir(exist_ok=True))

    def draw(first: int, size: int) -> npt.NDArray[np.uint8]:
        """The images first .. first + size of a whole batch: one program serves all of them."""
        labels, left = run.labels(first + batch, label), size * generator.num_steps

        def advance(steps: int) -> None:
            nonlocal left
            # The excess is no progress.
            progress.update(min(steps, left))
            left -= min(steps, left)

        made = generator(
            run.params,
            seed=run.options.seed,
            count=batch,
            batch_size=batch,
            start=first,
            labels=None if labels is None else labels[first:],
            conditions=in_turn(conditions or {}, np.arange(first, first + batch)),
            frames_of=frames_of if first == 0 else 0,
            on_progress=advance,
        )
        frames = made.frames
        if frames is not None:
            processes.on_leader(lambda: on_frames(frames))
        return made.images[:size]

    with bar(count * generator.num_steps, "sampling", unit="img·step") as progress:
        first = 0
        while first < count:
            kept, following = processes.on_leader(partial(_kept_and_next, out, first, shape))
            if kept:
                progress.update(min(kept, count - first) * generator.num_steps)
                first += kept
                continue
            stop = count if following < 0 else min(following, count)
            began, pieces = processes.on_leader(time.monotonic), []
            for start in range(first, stop, batch):
                pieces.append(draw(start, min(batch, stop - start)))
                late = processes.on_leader(time.monotonic) - began > SECONDS
                if late or start + 2 * batch - first > limit:
                    break
            images = np.concatenate(pieces)
            save = partial(np.savez_compressed, images=images)
            processes.on_leader(partial(files.write_atomically, _shard(out, first), save))
            first += len(images)


def read_shards(out: Path, count: int, shape: tuple[int, ...]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields the images of `sample_shards`, one file at a time."""
    first = 0
    while first < count:
        images = _read_shard(_shard(out, first), shape)
        if images is None:
            raise OSError(f"{_shard(out, first)} went away while it was needed. Sample again.")
        yield images[: count - first]
        first += len(images)


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

    files.write_atomically(path, write)


def remove_shards(out: Path) -> None:
    """Removes the shards and their plan, once their images are elsewhere."""
    # Remove the plan last: without it, the settings of remaining shards would be unknown.
    shutil.rmtree(out / "shards", ignore_errors=True)
    (out / "plan.json").unlink(missing_ok=True)
