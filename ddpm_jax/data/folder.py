"""A folder of image files, decoded once into one memory-mapped uint8 array."""

from __future__ import annotations

import hashlib
import math
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from ddpm_jax.data.cache import EntryWriter, cache_root, read_entry, streamed_fingerprint
from ddpm_jax.data.dataset import ImageDataset, fingerprint_of, held_out_of, make_dataset
from ddpm_jax.data.download import Progress, progress_bar
from ddpm_jax.data.image_files import ImageFile, list_images
from ddpm_jax.data.images import FILTER, Notes, decode_image, is_grey, list_errors, shown, size_of
from ddpm_jax.data.labels import read_labels
from ddpm_jax.data.streamed import Stream, StreamedImages, is_streamed
from ddpm_jax.data.unfinished import Row, unfinished_rows
from ddpm_jax.files import user_path
from ddpm_jax.forward.checks import check_choice, check_function, check_number, check_whole

BLOCK = 64  # images that a thread decodes at a time


def load_folder(
    path: str | os.PathLike[str],
    resolution: int | str | tuple[int, int],
    *,
    split: Literal["all", "train", "heldout"] = "all",
    holdout: float = 0.1,
    channels: Literal["auto", 1, 3] = 3,
    labels: str | os.PathLike[str] = "none",
    cache_dir: str | os.PathLike[str] | None = None,
    stream: Stream = "auto",
    num_workers: int | None = None,
    max_pixels: int = 89_478_485,
    progress: Progress | None = None,
) -> ImageDataset:
    """Loads every image under `path`: uint8 [N, H, W, C], C = `channels`.

    resolution     H = W, or both as "48x64" or (48, 64)
    split          "all", "heldout", or "train" for those not held out
    holdout        share of the images that is held out, 0 ≤ holdout < 1, evenly spaced over the
                   sorted list: 0.1 takes the first, the eleventh, …; with 0, "heldout" is empty
    channels       3 for RGB, 1 for luminance, or "auto": 1 if all images are stored as grey
    labels         "none", "auto" or a file; see `labels.read_labels`
    cache_dir      where the decoded array is kept (`cache_root`)
    stream         "always" decodes images when they are used, "never" decodes all of them once,
                   "auto" decodes all once if the disk of the cache has room for them
    num_workers    decoding threads (all processors); Pillow decodes and resizes outside the GIL
    max_pixels     larger images are refused as decompression bombs (Pillow: over 178,956,970)
    progress       called with (images decoded, N); by default a tqdm bar

    Images are found in all subfolders by the endings in `images.SUFFIXES`, or by their content if
    they have another ending, and sorted by the bytes of their paths, which is the same everywhere.
    Names that begin with a dot are left out, and a folder reached twice through links is read once.
    Warns of other files that are left out, but for texts such as captions (`COMPANIONS`).

    The array is decoded on the first call, not held in memory, and stored under a key of all file
    names, sizes and times and of the options, so a changed folder is decoded again. Images that
    were decoded before a failure are not decoded again. The first call also decodes all
    streamed images once, to check them. The data set has the same fingerprint either way.

    Raises FileNotFoundError for a missing folder; ValueError for one without images and, naming up
    to 20, for files that are not readable images; OSError for links to nowhere, pipes and devices
    with such a name, for unreadable subfolders, and if the disk of the cache has no room.
    """
    call = "load_folder"
    folder, size = user_path(path, call), size_of(resolution)
    check_number(call, "holdout", holdout, within="[0, 1)")
    check_choice(call, "channels", channels, ("auto", 1, 3))
    check_choice(call, "split", split, ("all", "train", "heldout"))
    check_whole(call, "max_pixels", max_pixels)
    if num_workers is not None:
        check_whole(call, "num_workers", num_workers)
    if progress is not None:
        check_function(call, "progress", progress, "(images decoded, N)")
    check_choice(call, "stream", stream, get_args(Stream), "--data.stream sets it.")
    root = cache_root(cache_dir)
    all_files = list_images(folder)
    classes = read_labels(folder, [file.name for file in all_files], labels)
    chosen = np.ones(len(all_files), bool)
    if split != "all":
        chosen = held_out_of(len(all_files), holdout) == (split == "heldout")
    files = [file for file, its in zip(all_files, chosen, strict=True) if its]
    name = f"{shown(folder.resolve().name)}/{split}"
    numbers = class_names = num_classes = None
    if classes is not None:
        numbers, class_names = classes.numbers[chosen], classes.names
        num_classes = len(class_names)

    def is_all_grey() -> bool:
        # Ends at the first image in colour.
        with warnings.catch_warnings():
            # Of too many pixels, decode_image says more.
            warnings.filterwarnings("ignore", message=".*decompression bomb")
            return all(is_grey(folder / file.name) for file in all_files)

    if not files and holdout == 0:
        grey = channels == 1 or (channels == "auto" and is_all_grey())
        images, none = np.zeros((0, *size, 1 if grey else 3), np.uint8), np.zeros(0, np.int32)
        digest = fingerprint_of(images, none)
        return ImageDataset(images, none, num_classes, name, digest, class_names=class_names)
    if not files:
        raise ValueError(
            f"load_folder: the {split} split of {shown(folder)} is empty with {holdout=}. Add "
            "images, or hold out none with holdout=0 (--data.holdout 0)."
        )
    side = str(size[0]) if size[0] == size[1] else "x".join(map(str, size))
    kind = str(channels == 1)
    if channels == "auto":  # all images decide
        kind = "auto" if len(files) == len(all_files) else f"auto {_digest(all_files, '')}"
    labelled = numbers is not None and hashlib.sha256(f"{numbers.tolist()}".encode()).hexdigest()
    digest = _digest(files, f"{side} {kind} {labelled} {split} {FILTER}")[:24]
    # By the digest alone: the folder may have been renamed.
    for entry in sorted(root.glob(f"folder-*-{digest}")):
        if (cached := read_entry(root, entry.name)) is not None:
            return cached._replace(name=name, class_names=class_names)

    grey = channels == 1 or (channels == "auto" and is_all_grey())
    shape = (len(files), *size, 1 if grey else 3)
    streamed = is_streamed(stream, name, len(files), math.prod(shape), root)
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", folder.resolve().name)[:40]
    sources = [bytes.fromhex(_digest([f], f"{side} {grey} {FILTER}")[:32]) for f in files]
    rows, failed = ({}, []) if streamed else unfinished_rows(root, shape, set(sources))
    decoder = _Decoder(folder, shape, grey, max_pixels, rows)
    errors, notes = [], []

    def decoded() -> Iterator[_Block]:
        done = 0
        with (
            progress_bar(progress, name, len(files), unit="image") as report,
            closing(decoder.blocks(files, sources, num_workers)) as blocks,
        ):
            for block in blocks:
                yield block
                errors.extend(block.errors)
                notes.extend(note for _, note in block.sources)
                done += len(block.pixels)
                report(done, len(files))

    if streamed:

        def pixels() -> Iterator[np.ndarray]:
            yield from (block.pixels for block in decoded())
            if errors:
                raise ValueError(list_errors(errors, len(files), folder))

        given = np.zeros(len(files), np.int32) if numbers is None else numbers.astype(np.int32)
        fingerprint = streamed_fingerprint(root, digest, shape, given, pixels)
        if notes:
            _warn_of(folder, files, notes, side)
        read = decoder.reader(files, num_workers)
        return make_dataset(
            StreamedImages(read, shape),
            numbers,
            num_classes,
            name,
            fingerprint=fingerprint,
            class_names=class_names,
        )
    with EntryWriter(root, f"folder-{readable}-{digest}", shape, failed) as writer:
        for block in decoded():
            writer.append(block.pixels, block.sources)
        if errors:
            kept = f"\nThe others stay decoded in {root} for the next start." * writer.on_disk
            raise ValueError(list_errors(errors, len(files), folder) + kept)
        origin = {"kind": "folder", "path": shown(folder.resolve())}
        dataset = writer.finish(numbers, num_classes, name, origin)
    _warn_of(folder, files, notes, side)
    return dataset._replace(class_names=class_names)


def _digest(files: Iterable[ImageFile], options: str) -> str:
    digest = hashlib.sha256(options.encode())
    for file in files:
        digest.update(b"\0" + os.fsencode(file.name) + f"\0{file.size} {file.mtime_ns}".encode())
    return digest.hexdigest()


def _warn_of(folder: Path, files: list[ImageFile], notes: list[int], side: str) -> None:
    """Warns of images that were enlarged, and of those of which only one frame was taken."""
    texts = {
        Notes.ENLARGED: f"are smaller than {side} and were enlarged, so they teach a model "
        "blur. Lower the resolution?",
        Notes.FIRST_FRAME: "have several frames, of which only the first is used.",
    }
    for note, text in texts.items():
        names = [file.name for file, its in zip(files, notes, strict=True) if its & note]
        if names:
            warnings.warn(
                f"{len(names)} of {len(files)} images in {shown(folder)}, such as "
                f"{shown(names[0])}, {text}",
                stacklevel=3,
            )


class _Block(NamedTuple):
    """Consecutive images: pixels [n, H, W, C], digest and notes of each, and errors among them."""

    pixels: np.ndarray
    sources: list[tuple[bytes, int]]
    errors: list[str]


class _Decoder(NamedTuple):
    """Decodes files to rows of `shape` [N, R, R, C], except those that `rows` already has."""

    folder: Path
    shape: tuple[int, int, int, int]
    grey: bool
    max_pixels: int
    rows: dict[bytes, Row]

    def blocks(
        self, files: Sequence[ImageFile], sources: Sequence[bytes], num_workers: int | None
    ) -> Generator[_Block, None, None]:
        """Yields the images in order; one that is unreadable is black, and its digest zeros."""
        num_workers = num_workers or os.cpu_count() or 1
        with ThreadPoolExecutor(num_workers, "decode-images") as pool, warnings.catch_warnings():
            # Pillow warns from its own limit on; decode_image raises from `max_pixels` on. Set
            # here, since all threads share Python's filters.
            warnings.filterwarnings("ignore", message=".*decompression bomb")
            waiting = deque()  # a window, since the results of millions of files exceed memory
            try:
                for i in range(0, len(files), BLOCK):
                    block = slice(i, i + BLOCK)
                    waiting.append(pool.submit(self._decode_block, files[block], sources[block]))
                    if len(waiting) > 2 * num_workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def reader(
        self, files: Sequence[ImageFile], num_workers: int | None
    ) -> Callable[[np.ndarray], np.ndarray]:
        """A function of indices [n] that decodes these files: uint8 [n, R, R, C]."""
        pool = ThreadPoolExecutor(num_workers or os.cpu_count() or 1, "decode-images")
        decode = lambda i: self._decode(files[i])[0]  # noqa: E731
        return lambda indices: np.stack(list(pool.map(decode, indices.tolist())))

    def _decode(self, file: ImageFile) -> tuple[np.ndarray, int]:
        place, size = self.folder / file.name, self.shape[1:3]
        return decode_image(place, size, grey=self.grey, max_pixels=self.max_pixels)

    def _decode_block(self, files: Sequence[ImageFile], sources: Sequence[bytes]) -> _Block:
        block = _Block(np.zeros((len(files), *self.shape[1:]), np.uint8), [], [])
        for i, (file, source) in enumerate(zip(files, sources, strict=True)):
            notes = 0
            try:
                block.pixels[i], notes = self.rows.get(source) or self._decode(file)
            except ValueError as error:
                block.errors.append(str(error))
                source = bytes(16)
            block.sources.append((source, int(notes)))
        return block
