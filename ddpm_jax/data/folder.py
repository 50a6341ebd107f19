"""A folder of image files, decoded once into one memory-mapped uint8 array."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ddpm_jax.data.cache import EntryWriter, cache_root, read_entry
from ddpm_jax.data.dataset import ImageDataset
from ddpm_jax.data.download import Progress, progress_bar
from ddpm_jax.data.images import FILTER, SUFFIXES, decode_image
from ddpm_jax.files import check_regular

BLOCK = 64  # images a thread decodes at a time


class ImageFile(NamedTuple):
    """An image file of a folder: its path within it, with "/", its size in bytes and its mtime."""

    name: str
    size: int
    mtime_ns: int


def load_folder(
    path: str | os.PathLike[str],
    resolution: int,
    *,
    split: Literal["all", "train", "heldout"] = "all",
    holdout_every: int = 10,
    grey: bool = False,
    class_folders: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    num_workers: int | None = None,
    max_pixels: int = 89_478_485,
    progress: Progress | None = None,
) -> ImageDataset:
    """Loads every image under `path`: uint8 [N, R, R, C], R = `resolution`, C = 3 (1 with `grey`).

    split          "all", or "heldout" for every `holdout_every`-th file of the sorted list,
                   beginning with the first, or "train" for the others
    grey           luminance in place of RGB
    class_folders  labels are the numbers of the sorted first-level folders; else there are none
    cache_dir      where the decoded array is kept (`cache_root`)
    num_workers    decoding threads (all processors); Pillow decodes and resizes outside the GIL
    max_pixels     larger images are refused as decompression bombs (Pillow: over 178,956,970)
    progress       called with (images decoded, N); by default a tqdm bar

    Files ending in .png, .jpg, .jpeg, .webp or .bmp are taken from all subfolders, in the order of
    their paths' bytes, which is the same everywhere; names that begin with a dot are left out, and
    a folder reached twice by links is read once. `decode_image` says how they become pixels. The
    array is decoded on the first call, not held in memory, and kept under a key of all file names,
    sizes and times and of the options, so that a changed folder is decoded anew.

    Raises FileNotFoundError for a missing folder, ValueError for one without images and, naming the
    file, for a file that is no readable image; OSError for a pipe or device of such a name, and
    when the cache's disk has no room.
    """
    folder = Path(path).expanduser()
    if resolution < 1 or holdout_every < 2:
        raise ValueError(
            "load_folder needs resolution ≥ 1 and holdout_every ≥ 2, got "
            f"{resolution=}, {holdout_every=}."
        )
    if split not in ("all", "train", "heldout"):
        raise ValueError(f'load_folder needs split "all", "train" or "heldout", got {split!r}.')
    files = list_images(folder)
    if split != "all":
        files = [f for i, f in enumerate(files) if (i % holdout_every == 0) == (split == "heldout")]
        if not files:
            raise ValueError(f"load_folder: the {split} split of {folder} is empty; add images.")
    labels, num_classes = _class_labels(folder, files) if class_folders else (None, None)
    root, name = cache_root(cache_dir), f"{folder.resolve().name}/{split}"
    key = _key(folder, files, f"{resolution} {grey} {class_folders} {split} {FILTER}")
    cached = read_entry(root, key)
    if cached is not None:
        return cached

    shape = (len(files), resolution, resolution, 1 if grey else 3)
    paths = [folder / file.name for file in files]
    done, enlarged = 0, []
    with (
        EntryWriter(root, key, shape) as writer,
        progress_bar(progress, name, len(files), unit="image") as report,
        closing(_decoded(paths, resolution, grey, max_pixels, num_workers)) as blocks,
    ):
        for block, small in blocks:
            writer.append(block)
            enlarged += small
            done += len(block)
            report(done, len(files))
        dataset = writer.finish(
            labels, num_classes, name, {"kind": "folder", "path": str(folder.resolve())}
        )
    if enlarged:
        warnings.warn(
            f"{len(enlarged)} of {len(files)} images in {folder} are smaller than {resolution} and "
            f"were enlarged, {enlarged[0]} first: they teach a model blur. Lower the resolution?",
            stacklevel=2,
        )
    return dataset


def list_images(folder: Path) -> list[ImageFile]:
    """Lists the image files under `folder` by the rules of `load_folder`, sorted.

    Raises FileNotFoundError for a missing folder, ValueError for one without images, OSError for a
    link to nowhere, a pipe or a device that has an image's name.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"load_folder got {folder}, which is not a folder.")
    found, others = [], 0
    pending, seen = [("", folder)], set()
    while pending:
        prefix, place = pending.pop()
        stat = place.stat()
        if (stat.st_dev, stat.st_ino) in seen:  # a link to a folder already read, or to a parent
            continue
        seen.add((stat.st_dev, stat.st_ino))
        with os.scandir(place) as entries:
            inside = sorted(entries, key=lambda entry: os.fsencode(entry.name), reverse=True)
        for entry in inside:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                pending.append((f"{prefix}{entry.name}/", Path(entry.path)))
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                about = check_regular(Path(entry.path))
                found.append(ImageFile(prefix + entry.name, about.st_size, about.st_mtime_ns))
            else:
                others += 1
    if not found:
        raise ValueError(
            f"load_folder found no image in {folder} and its subfolders, and {others} other files. "
            f"Images end in {', '.join(sorted(SUFFIXES))}."
        )
    return sorted(found, key=lambda file: os.fsencode(file.name))


def _class_labels(folder: Path, files: list[ImageFile]) -> tuple[np.ndarray, int]:
    for file in files:
        if "/" not in file.name:
            raise ValueError(
                "load_folder(class_folders=True) needs every image in a folder of its class, but "
                f"{folder / file.name} is in none."
            )
    names = [file.name.split("/", 1)[0] for file in files]
    classes = sorted(set(names), key=os.fsencode)
    numbers = {name: i for i, name in enumerate(classes)}
    return np.array([numbers[name] for name in names], np.int32), len(classes)


def _key(folder: Path, files: Iterable[ImageFile], options: str) -> str:
    digest = hashlib.sha256(options.encode())
    for file in files:
        digest.update(b"\0" + os.fsencode(file.name) + f"\0{file.size} {file.mtime_ns}".encode())
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", folder.resolve().name)[:40]
    return f"folder-{readable}-{digest.hexdigest()[:24]}"


def _decoded(
    paths: list[Path], resolution: int, grey: bool, max_pixels: int, num_workers: int | None
) -> Generator[tuple[np.ndarray, list[Path]], None, None]:
    """Yields blocks [n, R, R, C] of the images in order, and which of them had to be enlarged."""

    def decode(block: list[Path]) -> tuple[np.ndarray, list[Path]]:
        pairs = [decode_image(p, resolution, grey=grey, max_pixels=max_pixels) for p in block]
        pixels, small = zip(*pairs, strict=True)
        return np.stack(pixels), [p for p, was in zip(block, small, strict=True) if was]

    num_workers = num_workers or os.cpu_count() or 1
    blocks = iter([paths[i : i + BLOCK] for i in range(0, len(paths), BLOCK)])
    with ThreadPoolExecutor(num_workers, "decode-images") as pool, warnings.catch_warnings():
        # Pillow warns from its own limit on; decode_image raises from `max_pixels` on. Set here, as
        # Python's filters are shared by all threads.
        warnings.filterwarnings("ignore", message=".*decompression bomb")
        waiting = deque()  # a window, as results of millions of files do not fit in memory
        try:
            for block in blocks:
                waiting.append(pool.submit(decode, block))
                if len(waiting) > 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
