"""Models on the Hugging Face hub: files fetched at one commit, and published as one commit.

The library huggingface_hub handles tokens (`hf auth login`, HF_TOKEN), HF_ENDPOINT and resumed
downloads. This module adds digests, size limits, a deadline and clear errors.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.data import cache_root
from ddpm_jax.data.download import ANSWER_SECONDS, within
from ddpm_jax.files import sha256_of, user_path
from ddpm_jax.forward.checks import check_flag, check_function, check_kind, check_text
from ddpm_jax.types import describe

COMMIT = re.compile("[0-9a-f]{40}")
NO_REFERENCE = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|@\{|^[-/.]|/\.|[/.]$|\.lock(/|$)|^@$")
"""What no branch or tag of Git contains (git-check-ref-format), nor ours at its beginning: -."""
JSON_BYTES = 1 << 22
MAX_BYTES = 1 << 40
SUFFIXES = (".safetensors", ".json", ".png")
"""Endings of the files that are fetched; none of them is executed when it is read."""
INSTALL = 'pip install "huggingface_hub>=1.0" (extra [hub])'
LOG_IN = "Log in with `hf auth login` or set HF_TOKEN, with a token that"


class Fetched(NamedTuple):
    """A folder of fetched files, and their commit, 40 hex digits."""

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
    choose      `choose(names, where)` returns the names to fetch; ValueError if files are missing
    cache_dir   None for the user's cache

    If the hub does not answer, a commit is read from the cache, provided that it is complete there.

    Raises ImportError without huggingface_hub; ConnectionError without an answer within 4 s;
    FileNotFoundError, PermissionError or OSError for requests that the hub refuses; ValueError for
    files that differ from the hub's description, and for an invalid repository or revision. A file
    that fails its check is removed.
    """
    check_repository(repository)
    _check_reference("fetch_files", "revision", revision)
    check_function("fetch_files", "choose", choose, "(names, where) -> names")
    api, where = _api(), f"{repository} at {revision or 'main'}"
    cache = cache_root(cache_dir) / "hub"
    try:
        with _explained(f"fetch {where}"):
            info = within(
                ANSWER_SECONDS,
                lambda: api.model_info(repository, revision=revision, files_metadata=True),
            )
            listed = {file.rfilename: file for file in info.siblings or ()}
    except ConnectionError:
        folder = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / str(revision)
        if not (COMMIT.fullmatch(str(revision)) and folder.is_dir()):
            raise
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        list(choose(names, where))
        return Fetched(folder, folder.name)
    if not COMMIT.fullmatch(str(info.sha)):
        raise ValueError(f"the hub names no commit for {where}, but {info.sha!r}.")
    chosen = [listed[name] for name in choose(listed, where) if name is not None]
    folders = {_fetch(api, repository, info.sha, file, cache) for file in chosen}
    return Fetched(folders.pop(), info.sha)


def _fetch(api: Any, repository: str, commit: str, file: Any, cache: Path) -> Path:
    """Fetches one file, checks it against size and digest, and returns the commit's folder."""
    name, wanted = file.rfilename, file.lfs.sha256 if file.lfs else file.blob_id
    what = f"{name} of {repository} at {commit}"
    limit = MAX_BYTES if name.endswith(".safetensors") else JSON_BYTES
    if not (name.endswith(SUFFIXES) and type(file.size) is int and type(wanted) is str):
        raise ValueError(
            f"{what} is not fetched: only {', '.join(SUFFIXES)} files with a size and a digest are."
        )
    if not 0 <= file.size <= limit:
        raise ValueError(f"{what} has {file.size:,} bytes; the limit is {limit:,}.")
    size = found = None
    for force in (False, True):
        with _explained(f"fetch {what}"):
            got = api.hf_hub_download(
                repository,
                name,
                revision=commit,
                cache_dir=cache,
                etag_timeout=ANSWER_SECONDS,
                force_download=force,
            )
        path = Path(got)
        size = path.stat().st_size
        if size == file.size and (found := _digest(path, git=not file.lfs)) == wanted:
            return path.parents[name.count("/")]
        # Remove the file and the link to it, or the cache would return it again.
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    raise ValueError(
        f"{what} arrived with {size:,} bytes, digest {found}, not {file.size:,} bytes, {wanted}. "
        "Nothing was kept. A proxy or captive portal may have answered."
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
    """Publishes files as one commit and returns it; creates the repository or branch if needed.

    files    paths by their names in the repository
    private  whether a new repository is private; an existing one keeps its setting
    tag      a name for the commit

    Raises the errors of `check_push`, TypeError or ValueError for invalid arguments,
    FileNotFoundError for a missing file, and OSError if the hub refuses. If the push fails, no file
    of the repository has changed.
    """
    check_references("publish", branch, tag)
    check_kind("publish", "files", files, Mapping, "{name: path}")
    if not files:
        raise ValueError("publish needs files {name: path}, got none.")
    for name, path in files.items():
        check_text("publish", "files by name", name)
        if not user_path(path, "publish").is_file():
            raise FileNotFoundError(f"publish got files[{name!r}] = {path}, which is no file.")
    check_text("publish", "message", message)
    check_flag("publish", "private", private)
    api = check_push(repository)
    add = _library().CommitOperationAdd
    with _explained(f"push to {repository}"):
        # A token may have write access here without the right to create repositories.
        if not api.repo_exists(repository):
            api.create_repo(repository, private=private)
        if branch is not None:
            api.create_branch(repository, branch=branch, exist_ok=True)
        commit = api.create_commit(
            repository,
            [add(name, str(path)) for name, path in files.items()],
            commit_message=message,
            revision=branch,
        ).oid
    if tag is not None:
        with _explained(f"tag the pushed commit {commit} of {repository} as {tag}"):
            api.create_tag(repository, tag=tag, revision=commit)
    return commit


def check_push(repository: str) -> Any:
    """Returns huggingface_hub's interface if there is a token and the hub accepts it.

    Raises ValueError unless the repository is OWNER/NAME, ImportError without huggingface_hub,
    PermissionError without a valid token, ConnectionError without an answer within 4 s.
    """
    check_repository(repository)
    api = _api()
    if _library().get_token() is None:
        raise PermissionError(f"cannot push to {repository} without a token. {LOG_IN} may write.")
    with _explained(f"push to {repository}"):
        within(ANSWER_SECONDS, api.whoami)
    return api


def check_repository(repository: str) -> None:
    """Raises ValueError unless this is OWNER/NAME."""
    fits = isinstance(repository, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", repository)
    if not fits or ".." in repository:
        raise ValueError(f"a repository of the hub is OWNER/NAME, got {describe(repository)}.")


def check_references(call: str, branch: str | None, tag: str | None) -> None:
    """Raises TypeError or ValueError for a branch or tag that cannot be made."""
    _check_reference(call, "branch", branch)
    _check_reference(call, "tag", tag)


def _check_reference(call: str, what: str, name: str | None) -> None:
    if name is None:
        return
    check_text(call, what, name)
    if not name or NO_REFERENCE.search(name):
        raise ValueError(
            f"{call} needs {what}, a name that Git permits, such as v1.0, got {name!r}. It has no "
            "blanks and none of ~^:?*[\\."
        )


def _library() -> Any:
    try:
        import huggingface_hub.errors  # type: ignore
    except ImportError as error:
        raise ImportError(
            f"the hub needs huggingface_hub, which is not installed ({error}). Run: {INSTALL}"
        ) from error
    return huggingface_hub


def _api() -> Any:
    # huggingface_hub itself reads the variable only when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT") or None
    return _library().HfApi(endpoint=endpoint, library_name="ddpm_jax")


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns errors of huggingface_hub and of the network into built-in ones with a remedy."""
    try:
        yield
    except Exception as error:
        # The error of an upload is the cause of a RuntimeError that only names the file.
        found = (error.__cause__ if isinstance(error, RuntimeError) else None) or error
        kind, why = _explanation(found)
        raise kind(f"cannot {what}: {why}") from error


def _explanation(error: BaseException) -> tuple[type[Exception], str]:
    """The built-in error for an error, and the reason in words."""
    errors = _library().errors
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None) or str(error).strip().split("\n")[0]
    if isinstance(error, errors.GatedRepoError):
        return PermissionError, f"it is gated. Accept its terms on its page. {LOG_IN} may read it."
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError, "there is no such branch, tag or commit."
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError, f"it does not exist, or it is private. {LOG_IN} may read it."
    if status in (401, 403):
        return PermissionError, f"the hub does not permit it ({said}). {LOG_IN} may do so."
    if status in (402, 413, 507):
        return OSError, f"the files are too large, or the storage is full ({said})."
    if status is not None and status < 500:
        return OSError, f"the hub refuses: {said}"
    # The hub checks the model card's front matter, huggingface_hub names and revisions.
    if type(error) is ValueError or isinstance(error, errors.HFValidationError):
        return ValueError, " ".join(str(error).split())
    if isinstance(error, (ValueError, KeyError, TypeError, AttributeError)):
        return ValueError, (
            f"its answer cannot be understood ({error!r}). A proxy or captive portal may have "
            "answered."
        )
    if type(error) in (OSError, PermissionError):
        return OSError, f"{error}. Choose a writable --cache-dir with enough space."
    return ConnectionError, (
        f"{said or repr(error)}. Check the network. Without a network, copy the files here by "
        "other means and name their folder."
    )


def _digest(path: Path, *, git: bool) -> str:
    if git:
        content = path.read_bytes()
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    return sha256_of(path)
