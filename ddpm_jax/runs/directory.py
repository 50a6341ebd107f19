"""A run's folder: its configuration, its lock, and where everything in it lies."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from ddpm_jax.runs.config import TrainConfig, differences, from_json, to_json


class RunDirectoryError(RuntimeError):
    """A run's folder cannot be used as asked; nothing in it was changed."""


class RunDirectory:
    """Paths of one run.

    config.json   the resolved configuration, and the fingerprint of the data
    checkpoints/  see `training.checkpoints`
    log.jsonl, tensorboard/, samples/, samples.png, denoising.gif, loss.png, report.json
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.config = self.root / "config.json"
        self.checkpoints = self.root / "checkpoints"
        self.sheets = self.root / "samples"
        self._lock: IO[str] | None = None

    def acquire(self) -> None:
        """Takes the folder for this process until it ends, however it ends.

        Raises RunDirectoryError when another process has it, or when the folder cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("a+")
        except OSError as error:
            raise RunDirectoryError(
                f"the run directory {self.root} cannot be written ({error.strerror}). Choose "
                "another with --run-dir."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise RunDirectoryError(
                f"the run directory {self.root} is in use by process {holder}. Wait for it, stop "
                "it (it saves on SIGTERM), or choose another with --run-dir."
            ) from error
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def release(self) -> None:
        """Gives the folder up."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def check(self, config: TrainConfig, facts: dict[str, Any]) -> None:
        """Checks that this folder is free, or holds this very run.

        `facts` are what the configuration does not hold but the numbers depend on, such as the
        data's fingerprint. Raises RunDirectoryError for a folder of another configuration or other
        data. A folder without any checkpoint holds nothing yet that a change could spoil.
        """
        trained = self.checkpoints.exists() and any(self.checkpoints.iterdir())
        if not trained:
            return
        if not self.config.exists():
            raise RunDirectoryError(
                f"{self.root} has checkpoints but no config.json, so what they are is unknown. Put "
                "config.json back, or choose another folder with --run-dir. Nothing was changed."
            )
        old, old_facts = self.read()
        changed = differences(old, config)
        changed += [
            f"{name}: {old_facts.get(name)} → {facts[name]}"
            for name in facts
            if old_facts.get(name) != facts[name]
        ]
        if changed:
            raise RunDirectoryError(
                f"{self.root} holds a run of another configuration:\n  "
                + "\n  ".join(changed)
                + "\nUse the old values to resume it, or another folder with --run-dir. "
                "Nothing was changed."
            )

    def write(self, config: TrainConfig, facts: dict[str, Any]) -> None:
        """Writes config.json."""
        write_json(self.config, {"config": to_json(config), **facts})

    def read(self) -> tuple[TrainConfig, dict[str, Any]]:
        """The configuration and facts saved here.

        Raises RunDirectoryError when the folder is no run, or its config.json cannot be understood.
        """
        try:
            values = json.loads(self.config.read_text())
            config = from_json(TrainConfig, values.pop("config"), str(self.config))
            shape = values["data"]["image_shape"]
            if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
                raise ValueError(f"data.image_shape is {shape}, not [H, W, C]")
        except FileNotFoundError as error:
            raise RunDirectoryError(
                f"{self.root} is not a run directory: it has no config.json. Name the folder that "
                "a training script was given as --run-dir."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunDirectoryError(
                f"{self.config} cannot be understood ({error}). Nothing was changed."
            ) from error
        return config, values


def write_json(path: Path, values: Any) -> None:
    """Writes JSON in one move: a reader or a kill never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    os.replace(fresh, path)
