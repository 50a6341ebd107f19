"""Damaged data: the file is named, the exit code is 2, and nothing is written."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.faults.harness import TINY, Bench, Program, Report, steps

PROMISE = (
    "Damaged data end the program before training, with exit code 2 and the file (and record) "
    "named, and nothing is written to the run directory but its lock; a damaged cache entry is "
    "decoded again."
)
RECORD, RECORDS = 3073, 10_000
BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
SMALL = {
    **TINY,
    "num-steps": 4,
    "network.attention-resolutions": 16,
    "network.channel-multipliers": 1,
    "report.heldout-every": 0,
    "report.sample-every": 0,
}


def campaign(bench: Bench) -> Report:
    """One program for every kind of damage, started side by side."""
    report = Report()
    whole = _cifar(bench.work / "whole")
    cases = {
        "a CIFAR-10 file cut short": (_cut_batch, "data_batch_3.bin"),
        "a label above 9": (_wrong_label, "record 1234 of data_batch_2.bin"),
        "a PNG cut short": (_cut_png, "7.png"),
        "an archive cut short": (_cut_archive, "cifar-10-binary.tar.gz"),
        "a flipped bit in an archive": (_flipped_archive, "cifar-10-binary.tar.gz"),
    }
    if bench.short:
        cases = {what: cases[what] for what in ("a label above 9", "a PNG cut short")}
    running: list[tuple[str, str, Path, Program]] = []
    for number, (what, (damage, words)) in enumerate(cases.items()):
        folder = bench.work / f"case-{number}"
        data = damage(bench, folder, whole)
        run_dir = bench.work / f"run-{number}"
        program = bench.script(
            "train_mnist.py",
            {**SMALL, **data, "run-dir": run_dir, "data.cache-dir": folder / "cache"},
            bench.work / f"out-{number}",
        )
        running.append((what, words, run_dir, program))
    for what, words, run_dir, program in running:
        ended = program.end()
        report.add("kinds of damage")
        named = ended.code == 2 and words in ended.output and "Traceback" not in ended.output
        report.add("refused with exit code 2, the file named", named)
        report.expect(named, f"{what}: exit code {ended.code}: {ended.output[-1000:]}")
        left = sorted(p.name for p in run_dir.rglob("*")) if run_dir.exists() else []
        report.expect(left in ([], [".lock"]), f"{what}: left {left}")
    _cache(bench, report)
    return report


def _cifar(folder: Path) -> Path:
    """CIFAR-10's files with black images: what is wrong with them is put in by each case."""
    folder.mkdir(parents=True)
    records = np.zeros((RECORDS, RECORD), np.uint8)
    records[:, 0] = np.arange(RECORDS) % 10
    (folder / BATCHES[0]).write_bytes(records.tobytes())
    for name in BATCHES[1:]:
        os.link(folder / BATCHES[0], folder / name)
    return folder


def _copy(folder: Path, whole: Path) -> Path:
    """Its files, without copying their bytes."""
    place = folder / "cifar-10-batches-bin"
    place.mkdir(parents=True)
    for name in BATCHES:
        os.link(whole / name, place / name)
    return place


def _replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def _cut_batch(bench: Bench, folder: Path, whole: Path) -> dict:
    file = _copy(folder, whole) / "data_batch_3.bin"
    _replace(file, file.read_bytes()[:-1000])
    return {"data.name": "cifar10", "data.path": folder}


def _wrong_label(bench: Bench, folder: Path, whole: Path) -> dict:
    file = _copy(folder, whole) / "data_batch_2.bin"
    content = bytearray(file.read_bytes())
    content[1234 * RECORD] = 200
    _replace(file, bytes(content))
    return {"data.name": "cifar10", "data.path": folder}


def _archive(folder: Path, whole: Path) -> Path:
    folder.mkdir(parents=True)
    path = folder / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name in BATCHES:
            tar.add(whole / name, f"cifar-10-batches-bin/{name}")
    return path


def _cut_archive(bench: Bench, folder: Path, whole: Path) -> dict:
    path = _archive(folder, whole)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return {"data.name": "cifar10", "data.path": path}


def _flipped_archive(bench: Bench, folder: Path, whole: Path) -> dict:
    """A pixel changed and packed under the check sum of what it was."""
    path = _archive(folder, whole)
    plain = bytearray(gzip.decompress(path.read_bytes()))
    check = path.read_bytes()[-8:]
    plain[len(plain) // 3] ^= 1
    packed = gzip.compress(bytes(plain), compresslevel=1)
    path.write_bytes(packed[:-8] + check)
    return {"data.name": "cifar10", "data.path": path}


def _images(folder: Path) -> Path:
    place = folder / "images"
    place.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(place / f"{number}.png")
    return place


def _cut_png(bench: Bench, folder: Path, whole: Path) -> dict:
    place = _images(folder)
    file = place / "7.png"
    file.write_bytes(file.read_bytes()[:-200])
    return {"data.name": "folder", "data.path": place, "data.resolution": 16}


def _cache(bench: Bench, report: Report) -> None:
    """A flipped bit in the decoded images: noticed, decoded again, and training goes on."""
    folder = bench.work / "cached"
    place = _images(folder)
    cache = folder / "cache"
    flags = {
        **SMALL,
        "data.name": "folder",
        "data.path": place,
        "data.resolution": 16,
        "data.cache-dir": cache,
        "run-dir": folder / "run",
    }
    ended = bench.script("train_mnist.py", flags, bench.work / "cache-1").end()
    report.expect(ended.code == 0, f"exit code {ended.code}: {ended.output[-1000:]}")
    (images, *_) = sorted(cache.rglob("images.npy"))
    fingerprints = {p: p.read_bytes() for p in cache.rglob("images.npy")}
    content = io.BytesIO(images.read_bytes())
    content.seek(-5, io.SEEK_END)
    content.write(b"x")
    images.write_bytes(content.getvalue())
    shutil.rmtree(folder / "run")
    ended = bench.script("train_mnist.py", flags, bench.work / "cache-2").end()
    said = "damaged" in ended.output and "decoded again" in ended.output
    report.add("damaged cache entries decoded again", ended.code == 0 and said)
    report.expect(ended.code == 0 and said, f"the cache: {ended.output[-1000:]}")
    report.expect(steps(folder / "run") == [4], "no training from the rebuilt cache")
    same = {p: p.read_bytes() for p in cache.rglob("images.npy")} == fingerprints
    report.expect(same, "the cache holds something else than before")
