"""Publishing a trained model on the Hugging Face hub, and fetching one into a folder."""

from __future__ import annotations

import re
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tyro.conf import Positional

from ddpm_jax.files import read_json_object, user_path, write_json
from ddpm_jax.interop import hub
from ddpm_jax.programs import weights
from ddpm_jax.programs.buckets import files_behind, shown
from ddpm_jax.programs.config_values import check_least, with_types
from ddpm_jax.programs.console import quantity, say
from ddpm_jax.programs.convert import write_weights
from ddpm_jax.programs.model_card import SHEET_STEPS, model_card
from ddpm_jax.programs.pictures import save_sheet
from ddpm_jax.programs.run_directory import RunDirectoryError, make_writable
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from ddpm_jax.programs.weights import WeightsDtype

NAMES = ("README.md", "config.json", weights.SHEET, weights.WEIGHTS)
"""What `push` publishes."""


@dataclass(frozen=True)
class PushConfig(RunOptions):
    """Publishes a trained model on the Hugging Face hub, as one commit."""

    repository: Positional[str] = ""
    """OWNER/NAME on the hub; created if it does not exist."""
    public: bool = False
    """Whether a new repository is public; otherwise only its owner sees it. An existing repository
    keeps its setting."""
    branch: str | None = None
    """Branch to push to, created if it does not exist; None for main."""
    tag: str | None = None
    """A name for the commit, such as v1.0."""
    license: str = "unknown"
    """License of the weights, in the hub's spelling, such as apache-2.0."""
    message: str | None = None
    """Message of the commit; None for the training step."""
    dtype: WeightsDtype = "float32"
    """Precision of the stored weights; float16 halves the file. Computation stays in float32."""
    sheet_count: int = 16
    """Images on the sample sheet; 0 for no sheet."""
    out: Path | None = None
    """Folder for a copy of the pushed files; None for no copy."""


@dataclass(frozen=True)
class PullConfig:
    """Fetches a published model from the Hugging Face hub into a folder."""

    repository: Positional[str] = ""
    """OWNER/NAME on the hub."""
    revision: str | None = None
    """A commit, branch or tag; None for main. config.json records the commit."""
    out: Path | None = None
    """The folder to create; None for runs/NAME."""
    cache_dir: Path | None = None
    """Where to keep downloaded files; None for the user's cache folder."""


class Published(NamedTuple):
    """A published model: the commit, 40 hex digits, and the names of its files."""

    commit: str
    files: list[str]


def push(config: PushConfig) -> Published:
    """Writes weights, config.json, a sample sheet and a model card, and publishes them together.

    Raises the errors of `TrainedRun` and `interop.hub.publish`, RunDirectoryError if --out holds
    other files of these names, and ValueError for invalid options; the repository is then
    unchanged.
    """
    config = with_types("push", config, PushConfig)
    check_least(config, 0, "sheet_count")
    hub.check_references("push", config.branch, config.tag)
    if not re.fullmatch(r"[\w.+-]+", config.license):
        raise ValueError(
            "--license must be one identifier in the hub's spelling, such as apache-2.0, got "
            f"{config.license!r}."
        )
    # First: without a token, there is no use in loading and sampling.
    hub.check_push(config.repository)
    run = TrainedRun(config)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if config.out is None else run.options.out
        assert folder is not None
        weights.check_weights_folder(folder, NAMES)
        make_writable(folder)
        paths = write_weights(run, folder, config.dtype)
        about = read_json_object(paths[0])["weights"]
        if config.sheet_count:
            steps = min(SHEET_STEPS, run.schedule.num_timesteps)
            images = run.sample(
                config.sheet_count, sampler="ddim", num_steps=steps, seed=config.seed
            )
            save_sheet(folder / weights.SHEET, images)
            paths.append(folder / weights.SHEET)
        card = model_card(run, config.repository, config.license, config.sheet_count, about)
        (folder / "README.md").write_text(card, encoding="utf-8")
        paths.append(folder / "README.md")
        for path in paths:
            say(f"  {path.name} ({quantity(path.stat().st_size, 'B')})")
        commit = hub.publish(
            config.repository,
            {path.name: path for path in paths},
            config.message or f"Training step {run.step:,}",
            private=not config.public,
            branch=config.branch,
            tag=config.tag,
        )
    say(f"{run.title}: pushed to {config.repository}")
    say(f"  ddpm-jax sample --pretrained {weights.HUB}{config.repository}@{commit}")
    return Published(commit, [path.name for path in paths])


def pull(config: PullConfig) -> Path:
    """Fetches a model into a folder that every --run-dir accepts, and returns the folder.

    Raises the errors of `TrainedRun` and `interop.hub.fetch_files`, and RunDirectoryError if the
    folder is not empty. The folder appears complete or not at all.
    """
    config = with_types("pull", config, PullConfig)
    hub.check_repository(config.repository)
    out = user_path(config.out or Path("runs") / config.repository.rpartition("/")[2])
    if (out.exists() and (not out.is_dir() or any(out.iterdir()))) or files_behind(out):
        raise RunDirectoryError(f"{shown(out)} is not empty. Choose another folder with --out.")
    fetched = hub.fetch_files(
        config.repository, config.revision, weights.choose_weights, cache_dir=config.cache_dir
    )
    run = TrainedRun(RunOptions(fetched.folder))
    draft = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        draft.mkdir(parents=True)
        names = [path.name for path in fetched.folder.iterdir()]
        for name in weights.choose_weights(names, str(out)):
            shutil.copyfile(fetched.folder / name, draft / name)
        source = {"repository": config.repository, "commit": fetched.commit}
        write_json(
            draft / "config.json", {**read_json_object(draft / "config.json"), "pulled": source}
        )
        if out.exists():
            out.rmdir()
        draft.rename(out)
    except OSError as error:
        raise RunDirectoryError(
            f"{out} cannot be written ({error}). Choose another with --out."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    say(f"{config.repository} at {fetched.commit}, step {run.step:,}: now in {out}")
    say(f"  ddpm-jax sample --run-dir {out}")
    return out
