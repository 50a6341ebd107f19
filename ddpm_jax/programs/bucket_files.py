"""The files of a bucket through fsspec, with one kind of error."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH = 8
"""Files in transfer at a time; s3fs reads files of up to 100 MB at once."""
Files = dict[str, dict[str, Any]]


class BucketError(OSError):
    """An operation on a bucket failed; local files are untouched."""


class Bucket:
    """The files below an address, by their names relative to it.

    Raises FileNotFoundError for a missing file, BucketError for any other failure.
    """

    def __init__(self, address: str):
        import fsspec

        self.address = address
        with self._reported("opened"):
            scheme = address.partition("://")[0]
            self._fs = fsspec.filesystem(scheme, use_listings_cache=False)
            self._key = str(self._fs._strip_protocol(address)).rstrip("/")
        self._options = {"batch_size": BATCH} if self._fs.async_impl else {}

    @contextlib.contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError, BucketError):
            raise
        except Exception as error:  # noqa: BLE001 - each file system has errors of its own
            reason = (str(error).strip().splitlines() or [""])[0][:300]
            raise BucketError(
                f"{self.address} could not be {what} ({type(error).__name__}: {reason}). Check its "
                "name, your credentials and their rights, its quota, and the network."
            ) from error

    def _path(self, name: str) -> str:
        return f"{self._key}/{name}" if name else self._key

    def files(self, below: str = "") -> Files:
        """Size and identity of every file by name; {"": …} for an address that is a file."""
        found: Files = {}
        with self._reported("read"):
            try:
                listing = self._fs.find(self._path(below), detail=True)
            except FileNotFoundError:
                return {}
            for key, info in listing.items():
                if info.get("type") != "file" or key.endswith("/"):
                    continue
                if key != self._key and not key.startswith(f"{self._key}/"):
                    continue
                name = key.removeprefix(self._key).removeprefix("/")
                if ".." in name.split("/"):
                    raise BucketError(f"{self.address} has a file named {name!r}, which is refused")
                found[name] = info
        return found

    def get(self, targets: dict[str, Path]) -> None:
        """Downloads files; each target file appears complete or not at all."""
        drafts = {n: p.with_name(f".{p.name}.{uuid.uuid4().hex[:8]}") for n, p in targets.items()}
        for path in targets.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._reported("read"):
                keys = list(map(self._path, drafts))
                self._fs.get(keys, list(map(str, drafts.values())), **self._options)
            for name, draft in drafts.items():
                os.replace(draft, targets[name])
        finally:
            for draft in drafts.values():
                draft.unlink(missing_ok=True)

    def put(self, sources: dict[str, Path]) -> None:
        """Uploads files; raises FileNotFoundError if one of them no longer exists."""
        if not sources:
            return
        with self._reported("written"):
            keys = list(map(self._path, sources))
            try:
                self._fs.put(list(map(str, sources.values())), keys, **self._options)
            except FileNotFoundError as error:
                if not all(path.exists() for path in sources.values()):
                    raise
                raise RuntimeError(f"there is no such bucket: {error}") from error

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        with self._reported("read"):
            return self._fs.cat_file(self._path(name))

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file, or replaces it."""
        with self._reported("written"):
            self._fs.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> None:
        """Writes a small file with a conditional put; FileExistsError if it already exists."""
        with self._reported("written"):
            try:
                self._fs.pipe_file(self._path(name), content, mode="create")
            except FileNotFoundError as error:
                raise RuntimeError(f"there is no such bucket: {error}") from error
            except FileExistsError:
                raise
            except OSError as error:
                # Some servers report the failed condition only in their message.
                said = f"{error} {error.__cause__}"
                if "PreconditionFailed" in said or "ConditionalRequestConflict" in said:
                    raise FileExistsError(name) from error
                raise

    def remove(self, names: list[str]) -> None:
        """Removes files, and ignores missing ones."""
        with self._reported("written"):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(self._path(name))
