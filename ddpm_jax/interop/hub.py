"""Models on the Hugging Face hub: files fetched at one commit, and published as one commit.

The library huggingface_hub speaks with the hub: tokens (`hf auth login`, HF_TOKEN), HF_ENDPOINT,
resumed downloads. Added here are digests, limits of size, a deadline and clear errors.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ddpm_jax.data import cache_root

T = TypeVar("T")
ANSWER_SECONDS = 4.0  # until the hub's first answer, including name look-up and connection
JSON_BYTES = 1 << 22
MAX_BYTES = 1 << 40
SUFFIXES = (".safetensors", ".json", ".png")
"""What is fetched: nothing that is executed when it is read."""
INSTALL = 'pip install "ddpm_jax[hub]"'
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN, with a token that"


class Fetched(NamedTuple):
    """A folder of fetched files, and the commit that they belong to, 40 hex digits."""

    folder: Path
    commit: str


def fetch_files(
    repository: str,
    revision: str | None,
    choose: Callable[[Iterable[str], str], Iterable[str | None]],
    *,
    cache_dir: Path | None = None,
) -> Fetched:
    """Fetches some files of a repository at one commit, unless the cache has them.

    repository  OWNER/NAME on the hub
    revision    a commit, branch or tag; None for `main`
    choose      `choose(names, where)`, the names to fetch; ValueError if they are not there
    cache_dir   None for the user's cache

    Without an answer, a commit is taken from the cache if it is complete there.

    Raises ImportError without huggingface_hub; ConnectionError without an answer within 4 s;
    FileNotFoundError, PermissionError or OSError for what the hub refuses; ValueError for files
    that are not what the hub says of them. A file that fails its check is removed.
    """
    _check(repository)
    api, where = _api(), f"{repository} at {revision or 'main'}"
    cache = (cache_dir or cache_root()) / "hub"
    try:
        with _explained(f"fetch {where}"):
            info = _within(
                lambda: api.model_info(
                    repository, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS
                )
            )
            listed = {file.rfilename: file for file in info.siblings or ()}
    except ConnectionError:
        folder = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / str(revision)
        if not folder.is_dir():
            raise
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        list(choose(names, where))
        return Fetched(folder, folder.name)
    if not re.fullmatch(r"[0-9a-f]{40}", str(info.sha)):
        raise ValueError(f"the hub does not say which commit {where} is, but {info.sha!r}.")
    chosen = [name for name in choose(listed, where) if name is not None]
    for name in chosen:
        _check_listed(listed[name], where)
    folder = None
    for name in chosen:
        folder = _fetch(api, repository, info.sha, listed[name], cache)
    if folder is None:
        raise ValueError(f"{where} has none of the files that are needed.")
    return Fetched(folder, info.sha)


def _check_listed(file: Any, where: str) -> None:
    """Raises ValueError for a file of another kind, too large, or without size and digest."""
    name, digest = file.rfilename, file.lfs.sha256 if file.lfs else file.blob_id
    limit = MAX_BYTES if name.endswith(".safetensors") else JSON_BYTES
    inside = not name.startswith("/") and ".." not in Path(name).parts
    if not (inside and name.endswith(SUFFIXES) and type(file.size) is int and type(digest) is str):
        raise ValueError(
            f"{name!r} of {where} is not fetched: only {', '.join(SUFFIXES)} with a size and a "
            "digest are."
        )
    if not 0 <= file.size <= limit:
        raise ValueError(f"{name} of {where} has {file.size:,} bytes; the limit is {limit:,}.")


def _fetch(api: Any, repository: str, commit: str, file: Any, cache: Path) -> Path:
    """Fetches one file, checks it against its digest, and returns the folder of the commit."""
    name, wanted = file.rfilename, file.lfs.sha256 if file.lfs else file.blob_id
    for force in (False, True):
        with _explained(f"fetch {name} of {repository} at {commit}"):
            path = Path(
                api.hf_hub_download(
                    repository,
                    name,
                    revision=commit,
                    cache_dir=cache,
                    etag_timeout=ANSWER_SECONDS,
                    force_download=force,
                )
            )
        size, found = path.stat().st_size, None
        if size == file.size:
            found = _digest(path, git=file.lfs is None)
        if found == wanted:
            return path.parents[name.count("/")]
        # The file and the link to it, or a damaged file of the cache would be taken again.
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    raise ValueError(
        f"{name} of {repository} at {commit} arrived with {size:,} bytes, digest {found}, not "
        f"{file.size:,} bytes, {wanted}. Nothing was kept. A proxy or captive portal may have "
        "answered."
    )


def publish(
    repository: str,
    files: Mapping[str, Path],
    message: str,
    *,
    private: bool = True,
    branch: str | None = None,
    tag: str | None = None,
) -> str:
    """Publishes files as one commit and returns it; makes the repository or branch if needed.

    private  whether a repository that is made here is private; an existing one stays as it is
    tag      a name for the commit

    Raises what `check_push` does, and OSError if the hub refuses. If it fails, no file of the
    repository has changed.
    """
    api = check_push(repository)
    from huggingface_hub import CommitOperationAdd

    with _explained(f"push to {repository}"):
        # A token may be allowed to write here, and not to make repositories.
        if not api.repo_exists(repository):
            api.create_repo(repository, private=private)
        if branch is not None:
            api.create_branch(repository, branch=branch, exist_ok=True)
        commit = api.create_commit(
            repository,
            [CommitOperationAdd(name, str(path)) for name, path in files.items()],
            commit_message=message,
            revision=branch,
        ).oid
    if tag is not None:
        with _explained(f"tag {repository} at {commit}, which was pushed, as {tag}"):
            api.create_tag(repository, tag=tag, revision=commit)
    return commit


def check_push(repository: str) -> Any:
    """Returns huggingface_hub's interface if there is a token and the hub accepts it.

    Raises ValueError for no OWNER/NAME, ImportError without huggingface_hub, PermissionError
    without a valid token, ConnectionError without an answer within 4 s.
    """
    _check(repository)
    api = _api()
    from huggingface_hub import get_token

    if get_token() is None:
        raise PermissionError(f"cannot push to {repository} without a token. {LOG_IN} may write.")
    with _explained(f"push to {repository}"):
        _within(api.whoami)
    return api


def _check(repository: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or ".." in repository:
        raise ValueError(f"a repository of the hub is OWNER/NAME, got {repository!r}.")


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ImportError(
            f"the hub needs huggingface_hub, which is not installed ({error}). Run: {INSTALL}"
        ) from error
    # huggingface_hub reads the variable only when it is imported.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="ddpm_jax")


def _within(call: Callable[[], T]) -> T:
    """What `call` returns or raises, if it does so within a few seconds."""
    # In a thread: the time-out of a socket does not cover the look-up of its name.
    answer: queue.SimpleQueue = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put((call(), None))
        except Exception as error:
            answer.put((None, error))

    threading.Thread(target=ask, daemon=True).start()
    try:
        value, error = answer.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise ConnectionError(f"no answer within {ANSWER_SECONDS:g} s") from None
    if error is not None:
        raise error
    return value


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns errors of huggingface_hub and of the network into built-in ones with a remedy."""
    try:
        yield
    except Exception as error:
        # An error of an upload hides behind a RuntimeError that only names the file.
        found = (error.__cause__ if isinstance(error, RuntimeError) else None) or error
        kind, why = _explanation(found)
        raise kind(f"cannot {what}: {why}") from error


def _explanation(error: BaseException) -> tuple[type[Exception], str]:
    """The built-in error for an error, and the reason in words."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None) or str(error).strip().split("\n")[0]
    if isinstance(error, errors.GatedRepoError):
        return PermissionError, f"it is gated. Accept its terms on its page. {LOG_IN} may read it."
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError, "there is no such branch, tag or commit."
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError, f"there is none, or it is private. {LOG_IN} may read it."
    if status in (401, 403):
        return PermissionError, f"the hub does not permit it ({said}). {LOG_IN} may do so."
    if status in (402, 413, 507):
        return OSError, f"it is too large, or the storage is full ({said})."
    if status is not None and status < 500:
        return OSError, f"the hub refuses: {said}"
    if type(error) is ValueError:  # of the model card, whose front matter the hub checks
        return ValueError, " ".join(str(error).split())
    if isinstance(error, (ValueError, KeyError, TypeError, AttributeError)):
        return ValueError, (
            f"its answer cannot be understood ({error!r}). A proxy or captive portal may have "
            "answered."
        )
    if type(error) in (OSError, PermissionError):
        return OSError, f"{error}. Choose a writable --cache-dir with enough space."
    return ConnectionError, (
        f"{said or repr(error)}. Check the network; without one, copy the files here by other "
        "means and name their folder."
    )


def _digest(path: Path, *, git: bool) -> str:
    if git:
        content = path.read_bytes()
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
