"""Downloads a file over HTTP and verifies its size and sha256 before it gets its name."""

from __future__ import annotations

import functools
import hashlib
import os
import queue
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ddpm_jax.data.unfinished import remove_stale
from ddpm_jax.files import sync

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""`progress(done, total)`, called repeatedly: bytes of a download, images of a folder."""

ANSWER_SECONDS = 4.0  # until the server's first answer, including name look-up and connection
STALL_SECONDS = 30.0  # between two pieces of a download


def download_file(
    urls: Sequence[str],
    destination: Path,
    *,
    size: int,
    sha256: str,
    progress: Progress | None = None,
) -> Path:
    """Downloads one file to `destination` and returns it; a failed download leaves nothing.

    The next download into the folder removes what a killed one left, once that is a day old.

    urls      addresses of the file; the first that answers is used
    size      of the file in bytes
    sha256    of the file, 64 hex digits
    progress  called with (bytes so far, size); by default a tqdm bar, if stderr is a terminal

    Raises ConnectionError if no server answers within 4 s in total, or if the connection breaks
    off; ValueError if the content has another size or sha256; OSError if `destination` cannot be
    written.
    """
    partial = destination.with_name(f".{destination.name}.{uuid.uuid4().hex}.partial")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(destination.parent)
        opened = partial.open("xb")
    except OSError as error:
        raise OSError(
            f"download_file cannot write to {destination.parent} ({error}). "
            "Pass a writable cache_dir."
        ) from error
    try:
        with opened as file, _open(urls) as response:
            url, digest, done = response.url, hashlib.sha256(), 0
            with progress_bar(progress, destination.name, size, unit="B") as report:
                for piece in _pieces(response, url):
                    done += len(piece)
                    if done > size:
                        break
                    file.write(piece)
                    digest.update(piece)
                    report(done, size)
            sync(file)
        if done != size or digest.hexdigest() != sha256:
            raise ValueError(
                f"{url} sent {'more than ' if done > size else ''}{min(done, size):,} bytes with "
                f"sha256 {digest.hexdigest()}, not the {size:,} bytes with sha256 {sha256} that "
                "were published. Nothing was kept. A proxy or captive portal may have answered."
            )
        os.replace(partial, destination)
    finally:
        partial.unlink(missing_ok=True)
    return destination


@contextmanager
def progress_bar(
    progress: Progress | None, what: str, total: int, *, unit: str
) -> Iterator[Progress]:
    """Yields `progress`, or by default a function that moves a tqdm bar if stderr is a terminal."""
    if progress is not None:
        yield progress
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "B", disable=None) as bar:

        def report(done: int, total: int) -> None:
            bar.update(done - bar.n)

        yield report


def _open(urls: Sequence[str]):
    """Opens the first of `urls` that answers; each gets an equal part of the time."""
    failures, seconds = [], ANSWER_SECONDS / len(urls)
    for url in urls:
        try:
            opened = functools.partial(urllib.request.urlopen, url, timeout=STALL_SECONDS)
            return within(seconds, opened)
        except TimeoutError:
            failures.append(f"{url} did not answer within {seconds:g} s")
        except Exception as error:
            failures.append(f"{url} could not be opened: {error}")
    raise ConnectionError("; ".join(failures))


def within(seconds: float, call: Callable[[], T]) -> T:
    """Returns the result of `call`, or raises its error; TimeoutError if it takes longer."""
    # In a thread: the timeout of a socket does not cover the name look-up, which takes many times
    # as long on some machines without a network.
    answer: queue.SimpleQueue = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((call(), None))
        except Exception as error:
            answer.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value


def _pieces(response, url: str) -> Iterator[bytes]:
    try:
        while piece := response.read(1 << 18):
            yield piece
    except Exception as error:
        raise ConnectionError(f"{url} broke off: {error!r}") from error
