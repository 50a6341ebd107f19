"""Decoded images on disk: one memory-mapped uint8 `.npy` per entry, checked by its fingerprint.

An entry is a folder `<cache>/<key>/` with `images.npy` [N, H, W, C], `labels.npy` [N] and
`entry.json` (name, shape, number of classes, fingerprint, and the source it was decoded from). It
is written under a temporary name and renamed when complete, so a killed run leaves no incomplete
entry. Images decoded by an unfinished writer can be reused (`unfinished_rows`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data.dataset import Fingerprint, ImageDataset, fingerprint_of, make_dataset
from ddpm_jax.data.images import shown
from ddpm_jax.data.unfinished import num_rows, record_of, remove_stale
from ddpm_jax.files import map_npy, read_json_object, sync, user_path, write_atomically, write_json

VERIFY_BYTES = 2**30  # entries up to this size are hashed at each load (CIFAR-10: 0.1 to 0.5 s)
MEMORY_BYTES = 2**32  # and up to this size are kept in memory if the cache cannot be written
_FILES = {"images.npy", "labels.npy", "entry.json"}
_NONE = type(None)


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the cache folder, which need not exist.

    The first of `cache_dir`, the environment's DDPM_JAX_CACHE, XDG_CACHE_HOME/ddpm_jax, and
    ~/.cache/ddpm_jax.
    """
    if cache_dir is not None:
        return user_path(cache_dir, "cache_root")
    if own := os.environ.get("DDPM_JAX_CACHE"):
        return user_path(own, "cache_root")
    # The XDG specification has relative paths ignored: they would name a folder per directory.
    xdg = user_path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "ddpm_jax"


def read_entry(
    root: Path, key: str, accept: Callable[[dict[str, Any]], bool] = lambda source: True
) -> ImageDataset | None:
    """Opens entry `key` of `root`; None if there is none that can be used.

    `accept(source)` decides whether an entry decoded from `source` may be used. Warns of a damaged
    entry and returns None; shapes and sizes are compared, and for entries up to `VERIFY_BYTES` the
    fingerprint of all bytes.
    """
    entry = root / key
    if not (entry / "entry.json").is_file():
        return None
    try:
        about = read_json_object(entry / "entry.json")
        if not accept(about["source"]):
            return None
        images, labels = map_npy(entry / "images.npy"), np.array(map_npy(entry / "labels.npy"))
        if list(images.shape) != about["shape"]:
            raise ValueError(f"images are {images.shape}, not {about['shape']}")
        given = about["fingerprint"]
        if images.nbytes <= VERIFY_BYTES and fingerprint_of(images, labels) != given:
            raise ValueError("its bytes have changed since they were written")
        classes, name = about["num_classes"], about["name"]
        if labels.dtype != np.int32 or type(name) is not str or type(classes) not in (int, _NONE):
            raise ValueError(
                f"it has labels {labels.dtype}, num_classes {classes!r}, name {name!r}"
            )
        return make_dataset(
            images, None if classes is None else labels, classes, name, fingerprint=given
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        warnings.warn(
            f"The cached data in {entry} are damaged ({error}); they are decoded again.",
            stacklevel=3,
        )
        return None


class EntryWriter:
    """Writes one entry, images block after block; a context manager that cleans up on failure.

        with EntryWriter(root, key, (N, H, W, C)) as writer:
            for block in blocks: writer.append(block)
            dataset = writer.finish(labels, num_classes, name, source)

    If `root` cannot be written, warns and keeps the images in memory.

    After a failure, images that were appended with digests of their sources remain for
    `unfinished_rows`; `replaces` are the folders of earlier failures that this entry supersedes.

    Raises OSError if the disk (or, without a writable `root`, memory) has no room for the images.
    """

    def __init__(
        self, root: Path, key: str, shape: tuple[int, int, int, int], replaces: Sequence[Path] = ()
    ) -> None:
        self._replaces, self._rows = replaces, None
        self._root, self._key, self._shape = root, key, shape
        self._fingerprint, self._filled = Fingerprint(shape), 0
        self._memory: np.ndarray | None = None
        self._partial = root / f".{key}.{uuid.uuid4().hex}.partial"
        num_bytes = int(np.prod(shape, dtype=np.int64))
        try:
            root.mkdir(parents=True, exist_ok=True)
            remove_stale(root)
            _refuse_others(root / key)
            self._partial.mkdir()
            self._file = open(self._partial / "images.npy", "wb")  # noqa: SIM115
        except OSError as error:
            self._file = None
            if num_bytes > MEMORY_BYTES:
                raise OSError(
                    f"The cache folder {root} cannot be written ({error}), and {num_bytes:,} bytes "
                    "of images are too many to keep in memory. Pass a writable cache_dir."
                ) from error
            warnings.warn(
                f"The cache folder {root} cannot be written ({error}): the decoded images are kept "
                "in memory only, and decoded again next time. Pass a writable cache_dir.",
                stacklevel=4,
            )
            self._memory = np.empty(shape, np.uint8)
            return
        free = shutil.disk_usage(root).free
        if free < num_bytes:
            self.__exit__()
            raise OSError(
                f"The cache folder {root} has {free:,} bytes free, and the decoded images need "
                f"{num_bytes:,}. Make room, or pass a cache_dir on another disk."
            )
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(self._file, header)

    @property
    def on_disk(self) -> bool:
        """Whether the images are written to disk, and not kept in memory only."""
        return self._file is not None

    def __enter__(self) -> EntryWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._file is None:
            return
        for file in filter(None, (self._file, self._rows)):
            # On a full disk, closing fails once more at what could not be written.
            with contextlib.suppress(OSError):
                file.close()
        # Only the larger of two failures is kept, so that repeated ones do not fill the disk.
        if sum(map(num_rows, self._replaces)) < num_rows(self._partial):
            for folder in self._replaces:
                shutil.rmtree(folder, ignore_errors=True)
            self._partial.rename(self._partial.with_suffix(".kept"))
        else:
            shutil.rmtree(self._partial, ignore_errors=True)

    def append(self, block: np.ndarray, sources: Sequence[tuple[bytes, int]] | None = None) -> None:
        """Adds the next images, uint8 [n, H, W, C].

        sources  for each image, the digest (16 bytes) by which `unfinished_rows` finds it, and
        notes
        """
        block = np.ascontiguousarray(block)
        if block.dtype != np.uint8 or block.shape[1:] != self._shape[1:]:
            raise ValueError(
                f"EntryWriter.append needs uint8 [n, {', '.join(map(str, self._shape[1:]))}], got "
                f"{block.dtype} {block.shape}."
            )
        self._fingerprint.update(block)
        # Written, not memory-mapped: on a full disk, writing raises OSError but a map ends in
        # SIGBUS.
        if self._file is not None:
            self._file.write(block.data.cast("B"))
            if sources is not None:
                self._rows = self._rows or open(self._partial / "rows", "wb")  # noqa: SIM115
                self._file.flush()
                for pixels, source in zip(block, sources, strict=True):
                    self._rows.write(record_of(pixels, *source))
                self._rows.flush()
        elif self._memory is not None:
            self._memory[self._filled : self._filled + len(block)] = block
        self._filled += len(block)

    def finish(
        self, labels: np.ndarray | None, num_classes: int | None, name: str, source: dict[str, Any]
    ) -> ImageDataset:
        """Completes the entry and returns its data set, memory-mapped if it is on disk."""
        if self._filled != self._shape[0]:
            raise ValueError(
                f"EntryWriter.finish needs {self._shape[0]} images, got {self._filled}."
            )
        stored = np.zeros(self._filled, np.int32) if labels is None else labels.astype(np.int32)
        fingerprint = self._fingerprint.hexdigest(stored)
        images = self._memory
        if self._file is not None:
            sync(self._file)
            self._file.close()
            write_atomically(self._partial / "labels.npy", lambda file: np.save(file, stored))
            about = {
                "name": name,
                "shape": list(self._shape),
                "num_classes": num_classes,
                "fingerprint": fingerprint,
                "source": source,
            }
            write_json(self._partial / "entry.json", about)
            if self._rows is not None:
                self._rows.close()
                self._rows = None
                (self._partial / "rows").unlink()
            # Mapped before the rename: these bytes remain, whatever happens to the entry
            # afterwards.
            images = map_npy(self._partial / "images.npy")
            written = os.stat(self._partial / "images.npy")
            _publish(self._partial, self._root / self._key)
            for folder in self._replaces:
                shutil.rmtree(folder, ignore_errors=True)
            images = _reopened(self._root / self._key / "images.npy", written, images)
        assert images is not None
        return make_dataset(
            images, None if labels is None else stored, num_classes, name, fingerprint=fingerprint
        )


def write_entry(
    root: Path,
    key: str,
    images: np.ndarray,
    labels: np.ndarray | None,
    num_classes: int | None,
    name: str,
    source: dict[str, Any],
) -> ImageDataset:
    """Stores images [N, H, W, C] as entry `key`; if that fails, warns and returns them."""
    try:
        with EntryWriter(root, key, images.shape) as writer:  # type: ignore
            writer.append(images)
            return writer.finish(labels, num_classes, name, source)
    except OSError as error:
        warnings.warn(f"{name} could not be cached: {error}", stacklevel=3)
        return make_dataset(images, labels, num_classes, name)


def streamed_fingerprint(
    root: Path,
    key: str,
    shape: tuple[int, ...],
    labels: np.ndarray,
    blocks: Callable[[], Iterable[np.ndarray]],
) -> str:
    """The fingerprint of streamed images, equal to that of the decoded images.

    The first call decodes all images, in `blocks` uint8 [n, H, W, C], which may also fill in
    `labels` int32 [N]. Later calls read fingerprint and labels from the cache folder `root`, under
    `key`, which identifies the source of the images.
    """
    note, kept = root / f"streamed-{key}.json", root / f"streamed-{key}.labels.npy"
    try:
        about, stored = read_json_object(note), np.array(map_npy(kept))
        digest = hashlib.sha256(stored.tobytes()).hexdigest()
        if about == {"shape": list(shape), "labels": digest, "fingerprint": about["fingerprint"]}:
            labels[:] = stored
            return str(about["fingerprint"])
    except (OSError, ValueError, KeyError):
        pass  # missing or damaged
    fingerprint = Fingerprint(shape)
    for block in blocks():
        fingerprint.update(block)
    found = fingerprint.hexdigest(labels)
    digest = hashlib.sha256(labels.tobytes()).hexdigest()
    try:
        write_atomically(kept, lambda file: np.save(file, labels))
        write_json(note, {"shape": list(shape), "labels": digest, "fingerprint": found})
    except OSError as error:
        warnings.warn(
            f"The cache folder {root} cannot be written ({error}): the next start reads all images "
            "again. Pass a writable cache_dir.",
            stacklevel=4,
        )
    return found


def signature(kind: str, path: Path, files: list[Path]) -> dict[str, Any]:
    """Identifies what an entry is decoded from: kind, path, and sizes and times of the files."""
    stats = [(shown(file.name), file.stat()) for file in files]
    return {
        "kind": kind,
        "path": shown(path.resolve()),
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
    }


def _refuse_others(entry: Path) -> None:
    """Raises OSError for a folder or file of the user's where the entry would be stored."""
    if not entry.exists() or (entry / "entry.json").exists():
        return
    if not {path.name for path in entry.iterdir()} <= _FILES:
        raise FileExistsError(f"{entry} is there and is no entry of the cache")


def _publish(partial: Path, entry: Path) -> None:
    """Renames a complete entry to its place, moving an older one out of the way first."""
    old = partial.with_suffix(".old")
    try:
        os.rename(entry, old)
    except FileNotFoundError:
        pass
    try:
        os.rename(partial, entry)
    except OSError:
        # Another process stored the same data first. Both are complete, so either may stay.
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _reopened(file: Path, written: os.stat_result, images: np.ndarray) -> np.ndarray:
    """Maps the published images under their lasting name, unless another process replaced them."""
    try:
        if os.path.samestat(file.stat(), written):
            return np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError:
        pass
    return images
