"""A run's folder: its configuration, its lock, and where everything in it lies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO, Any

from ddpm_jax.files import read_json_object, write_json
from ddpm_jax.programs.config import TrainConfig, differences, from_json, to_json


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
            if _nameless(old_facts.get(name)) != _nameless(facts[name])
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
            values = read_json_object(self.config)
            config = from_json(TrainConfig, values.pop("config"), str(self.config))
            _check_sizes(config)
            _check_data(values["data"])
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


def _nameless(fact: Any) -> Any:
    """A fact without the name of the data, which are known by their fingerprint."""
    return {k: v for k, v in fact.items() if k != "name"} if isinstance(fact, dict) else fact


def _check_sizes(config: TrainConfig) -> None:
    """Raises ValueError for sizes of which to build the model would take hours or all memory."""
    network, T = config.network, config.diffusion.num_timesteps
    sizes = {
        "diffusion.num_timesteps": (T, 1_000_000),
        "network.channels": (network.channels, 1 << 16),
        "network.num_res_blocks": (network.num_res_blocks, 256),
        "network.num_groups": (network.num_groups, 1 << 16),
        "the number of network.channel_multipliers": (len(network.channel_multipliers), 16),
        **{f"a multiplier {m}": (m, 1 << 10) for m in network.channel_multipliers},
    }
    wrong = [
        f"{what} is {size}, not in 1..{most}"
        for what, (size, most) in sizes.items()
        if not 1 <= size <= most
    ]
    if wrong:
        raise ValueError("; ".join(wrong))


def _check_data(data: dict[str, Any]) -> None:
    """Raises ValueError unless these are the facts of a data set that a run writes."""
    shape, classes = data["image_shape"], data.get("num_classes")
    if len(shape) != 3 or not all(type(n) is int and 0 < n <= 1 << 16 for n in shape):
        raise ValueError(f"data.image_shape is {shape}, not [H, W, C]")
    if classes is not None and (type(classes) is not int or not 0 < classes <= 1_000_000):
        raise ValueError(f"data.num_classes is {classes!r}")
    for name in ("name", "fingerprint"):
        if not isinstance(data.get(name), str | None):
            raise ValueError(f"data.{name} is {data[name]!r}")
