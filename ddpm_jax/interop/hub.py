"""The files of a pipeline in a repository of the Hugging Face hub, at one commit, over plain HTTPS.

What the hub says of each file (its size and git's or sha256 digest) is asked once, for the commit;
every file is checked against it, so a file already here is not fetched again.
"""

from __future__ import annotations

import hashlib
import queue
import re
import threading
import urllib.request
from pathlib import Path
from typing import Any

from ddpm_jax.data import cache_root
from ddpm_jax.data.download import download_file
from ddpm_jax.files import parse_json_object, write_atomically, write_json
from ddpm_jax.interop import choose_pipeline_files

ENDPOINT = "https://huggingface.co"
ANSWER_SECONDS = 4.0
SMALL_BYTES = 1 << 22  # a list of files, a configuration
MAX_BYTES = 1 << 40


def fetch_pipeline(
    repository: str,
    revision: str,
    *,
    cache_dir: Path | None = None,
    endpoint: str = ENDPOINT,
) -> Path:
    """Fetches the JSON files and safetensors of a pipeline at a commit; returns their folder.

    repository  OWNER/NAME on the hub
    revision    a commit by its 40 hex digits: branches and tags can be moved to other weights
    cache_dir   above the folder; None for the user's cache

    Raises ValueError for another revision, a repository without safetensors, or a file that is not
    what the hub says of it; ConnectionError when the hub does not answer, after 4 s.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or ".." in repository:
        raise ValueError(f"--download needs a repository OWNER/NAME, got {repository!r}.")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"--revision must be a commit by its 40 hex digits, got {revision!r}. A branch or tag "
            "can be moved to other weights, and results would no longer say which they are of. "
            "The hub shows the commits of a repository under Files and versions, History."
        )
    where = f"{repository} at {revision}"
    listed = _listing(f"{endpoint}/api/models/{repository}/revision/{revision}?blobs=true", where)
    chosen = choose_pipeline_files(listed, where)
    folder = (cache_dir or cache_root()) / "hub" / repository.replace("/", "--") / revision
    for name in filter(None, chosen):
        _fetch(
            f"{endpoint}/{repository}/resolve/{revision}/{name}", folder / name, listed[name], where
        )
    write_json(
        folder / "source.json",
        {"repository": repository, "revision": revision, "files": list(filter(None, chosen))},
    )
    return folder


def _listing(url: str, where: str) -> dict[str, dict[str, Any]]:
    """What the hub says of every file, by name."""
    try:
        files = parse_json_object(_small(url))["siblings"]
        listed = {file["rfilename"]: dict(file) for file in files}
        if not all(type(name) is str for name in listed):
            raise TypeError("a name that is no text")
        return listed
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{url} did not answer with a list of the files of {where} ({error!r}). A proxy or "
            "captive portal may have answered."
        ) from error


def _fetch(url: str, destination: Path, said: dict[str, Any], where: str) -> None:
    """Fetches one file and checks it against what the hub says of it."""
    stored = said.get("lfs")
    try:
        size, digest = (stored or said)["size"], stored["sha256"] if stored else said["blobId"]
        if type(size) is not int or not 0 <= size <= MAX_BYTES or type(digest) is not str:
            raise ValueError(f"size {size!r}, digest {digest!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"the hub does not say which size and digest {destination.name} of {where} has, so it "
            "cannot be checked. Fetch the folder by other means and convert it from there."
        ) from error
    kind = "sha256" if stored else "git"
    if destination.is_file() and destination.stat().st_size == size:
        if _digest(destination, kind) == digest:
            return
    if stored:
        download_file([url], destination, size=size, sha256=digest)
        return
    content = _small(url)
    if len(content) != size or _git_digest(content) != digest:
        raise ValueError(
            f"{url} sent {len(content):,} bytes, not the {size:,} bytes of git blob {digest}. "
            "Nothing was kept. A proxy or captive portal may have answered."
        )
    write_atomically(destination, content)


def _digest(path: Path, kind: str) -> str:
    if kind == "git":
        return _git_digest(path.read_bytes())
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_digest(content: bytes) -> str:
    """The name git gives to this content."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _small(url: str) -> bytes:
    """The content at `url`, of a few MB at most, within a few seconds."""
    # In a thread: the time-out of a socket does not cover the look-up of its name.
    answer: queue.SimpleQueue = queue.SimpleQueue()

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as response:
                # One byte more than is taken shows that there are more.
                answer.put(response.read(SMALL_BYTES + 1))
        except Exception as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        content = answer.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        content = TimeoutError(f"no answer within {ANSWER_SECONDS:g} s")
    if isinstance(content, Exception):
        raise ConnectionError(
            f"{url} could not be fetched: {content}. Check repository and revision; without a "
            "network, copy the repository's files here by other means and name their folder."
        ) from content
    if len(content) > SMALL_BYTES:
        raise ValueError(f"{url} sent more than {SMALL_BYTES:,} bytes, which it should not.")
    return content
