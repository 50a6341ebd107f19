"""The input pipeline alone, on data of CIFAR-10's size, as a multiple of what the step consumes.

"resident": the images lie on the device, and a step is sent its indices. "streamed": they lie in a
file, mapped into memory, read in the background and sent over. Both end in float images on the
device, flipped. Pixels are random: their values change no time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import alternate, ratio, say, stopwatch, summarize
from benchmarks.plots import save_bars
from benchmarks.provenance import missing_torch
from benchmarks.render import Benchmark, contest, contestant_name, left_out, rate
from benchmarks.sizes import Plan

BATCH = 128


def measure(plan: Plan) -> dict[str, Any]:
    """Images per second of both ways, of PyTorch's DataLoader, and of the training step."""
    import jax

    from benchmarks.workload import Stepper, random_images, train_config
    from ddpm_jax.data import PrefetchedBatches, ShuffledIndices, make_dataset, prepare_images
    from ddpm_jax.keys import example_keys
    from ddpm_jax.programs.build import fetch
    from ddpm_jax.training import choose_devices

    count = 512 if plan.quick else 50_000
    batch = 32 if plan.quick else BATCH
    chunks, length = (2, 2) if plan.quick else (10, 10)
    parallel = choose_devices("jit", 1)
    indices = ShuffledIndices(count, batch, 0)
    place = np.tile(np.arange(batch, dtype=np.int32), (length, 1))
    skipped: dict[str, str] = {}

    @jax.jit
    def prepare(dataset: Any, batches: Any) -> Any:
        def one(part: Any) -> Any:
            keys = example_keys(jax.random.key(0), part["index"])
            return prepare_images(fetch(dataset, part)["image"], keys, flip=True)

        # The last of the loop alone is kept, as a step keeps none; all must be made for the sum.
        return jax.lax.map(lambda part: one(part).sum(), batches)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npy"
        np.save(file, random_images(count, plan.image_size))
        mapped = np.load(file, mmap_mode="r")
        data = make_dataset(mapped, None, None, "random", fingerprint="none")
        resident = {"image": jax.device_put(np.asarray(mapped))}
        step = 0

        def from_device() -> None:
            nonlocal step
            for _ in range(chunks):
                batches = {"example": indices.chunk(step, length), "index": place}
                result = prepare(resident, parallel.place_batches(batches))
                step += length
            jax.block_until_ready(result)

        def from_file() -> None:
            stream = PrefetchedBatches(
                data,
                indices,
                start_step=0,
                chunk_length=lambda at: length if at < chunks * length else 0,
            )
            with stream as parts:
                for part in parts:
                    batches = {"image": part.images, "index": place}
                    result = prepare({}, parallel.place_batches(batches))
            jax.block_until_ready(result)

        contestants = {"resident": stopwatch(from_device), "streamed": stopwatch(from_file)}
        reason = missing_torch()
        if reason is None:
            contestants |= _data_loaders(mapped, batch, chunks * length)
        else:
            skipped["PyTorch's DataLoader"] = reason
        images = chunks * length * batch
        seconds = alternate(contestants, plan.rounds, what=f"{images:,} images")
    say("  compiling the step")
    stepper = Stepper(train_config(plan), plan.image_size, steps=plan.steps)
    steps = alternate({"step": stopwatch(stepper)}, max(2, plan.rounds // 2), what="step")["step"]
    consumed = stepper.images_per_call / float(np.median(steps))
    result: dict[str, Any] = {
        "images": count,
        "batch": batch,
        "contestants": {name: summarize(s, images) for name, s in seconds.items()},
        "step": summarize(steps, stepper.images_per_call),
        "times_the_step": {
            name: images / float(np.median(s)) / consumed for name, s in seconds.items()
        },
        "skipped": skipped,
    }
    rivals = [name for name in seconds if name.startswith("DataLoader")]
    if rivals:
        result["best_rival"] = min(rivals, key=lambda name: float(np.median(seconds[name])))
        result["ours_over_best_rival"] = ratio(seconds[result["best_rival"]], seconds["streamed"])
    return result


def _data_loaders(images: np.ndarray, batch: int, batches: int) -> dict[str, Any]:
    """PyTorch's way to the same float batches, in this process and by two workers."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    class Mapped(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, i: int) -> Any:
            return torch.from_numpy(np.array(images[i]))

    def contestant(workers: int) -> Any:
        loader = torch.utils.data.DataLoader(
            Mapped(),
            batch_size=batch,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device == "cuda",
        )

        def run() -> None:
            for number, part in enumerate(loader, 1):
                x = part.to(device, non_blocking=True).float() / 127.5 - 1
                mirrored = torch.rand(len(x), 1, 1, 1, device=device) < 0.5
                torch.where(mirrored, x.flip(2), x)
                if number == batches:
                    break
            if device == "cuda":
                torch.cuda.synchronize()

        return stopwatch(run)

    # Workers are forked, which a process with JAX's threads may not survive.
    return {"DataLoader": contestant(0)}


def line(result: dict[str, Any]) -> str:
    """Images per second, and as multiples of the step's."""
    return ", ".join(
        f"{name} {rate(result['contestants'][name]['rate'])} images/s "
        f"({rate(result['times_the_step'][name])} × the step)"
        for name in ("resident", "streamed")
    )


def page(result: dict[str, Any]) -> str:
    """The table, and multiples of what the step consumes."""
    multiples = ", ".join(
        f"{name} {rate(value)}" for name, value in result["times_the_step"].items()
    )
    return (
        f"{result['images']:,} images, batches of {result['batch']}; ours is `streamed` where "
        f"compared.\n\n{contest(result, 'images/s')}\nThe training step consumes "
        f"{rate(result['step']['rate'])} images/s; as multiples of that: {multiples}.\n"
        + left_out(result["skipped"])
    )


def draw(result: dict[str, Any], folder: Path) -> list[str]:
    """Images per second of each way and of the step, with multiples of the step's."""
    bars = {}
    for name, one in {**result["contestants"], "training step": result["step"]}.items():
        scale = one["rate"] * one["median_s"]
        times = result["times_the_step"].get(name, 1.0)
        bars[contestant_name(name)] = (
            one["rate"],
            scale / one["max_s"],
            scale / one["min_s"],
            f"{rate(one['rate'])}\n({rate(times)}×)",
        )
    save_bars(
        folder / "input.png",
        {"": bars},
        "images per second",
        title="The input pipeline is at least "
        f"{rate(min(result['times_the_step'][name] for name in ('resident', 'streamed')))} times "
        "as fast as a step",
    )
    return ["input.png"]


BENCHMARK = Benchmark("The input pipeline alone", measure, line, page, draw)
