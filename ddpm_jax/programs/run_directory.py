"""A run's folder: its configuration, its lock, and where everything in it lies."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from ddpm_jax.data.dataset import MAX_CLASSES
from ddpm_jax.files import read_json_object, write_json
from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.programs.config_values import from_json, to_json
from ddpm_jax.programs.paths import local_path
from ddpm_jax.programs.run_lock import InUseError, RunLock

FREE_FIELDS = (
    "run_dir",
    "resume_with_changes",
    "max_bad_steps",
    "data.path",
    "data.cache_dir",
    "data.download",
    "data.labels",
    "data.channels",
    "data.stream",
    "devices.",
    "distributed.",
    "report.",
)
"""Fields that may change on resumption: a fingerprint identifies data, devices change rounding."""
CHANGEABLE_FIELDS = ("num_steps", "optimizer.", "network.dropout", "diffusion.label_dropout")
"""What may change beside these with --resume-with-changes: no array of the state depends on it."""
FIXED_FIELDS = ("optimizer.extra_ema_decays", "optimizer.ema_sigma_rel")
"""What may not: the state has an average for each of them."""
RECORDS = ("initial_weights", "changes")
"""What config.json says of a run's history."""
WRITTEN = ("config.json", "log.jsonl", "samples.png", "denoising.gif", "loss.png", "report.json")
"""Files that a run replaces."""
MAX_SIDE = 1 << 24
"""Of an image; a signal of six minutes at 44.1 kHz is as long."""


class RunDirectoryError(RuntimeError):
    """A run's folder cannot be used as asked; nothing in it was changed."""


class RunDirectory:
    """Paths of one run.

    config.json   the resolved configuration, and the fingerprint of the data
    checkpoints/  see `training.checkpoints`
    log.jsonl, tensorboard/, samples/, samples.png, denoising.gif, loss.png, report.json
    """

    def __init__(self, root: str | Path):
        self.root = local_path(root, "run_dir")
        self._lock = RunLock(self.root)

    @property
    def config(self) -> Path:
        """The file of the configuration."""
        return self.root / "config.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def sheets(self) -> Path:
        """The folder of the samples drawn during training."""
        return self.root / "samples"

    def acquire(self) -> None:
        """Takes the folder for this process until it ends, however it ends.

        Raises RunDirectoryError when another process has it, or when the folder cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except OSError as error:
            raise RunDirectoryError(
                f"the run directory {self.root} cannot be written ({error.strerror}). Choose "
                "another with --run-dir."
            ) from error
        except InUseError as error:
            raise RunDirectoryError(
                f"the run directory {self.root} is in use by {error}. Wait for it, stop it (it "
                "saves on SIGTERM), or choose another with --run-dir."
            ) from error

    def follow(self) -> Path:
        """Finds the acquired folder again if it was moved meanwhile, and returns its root.

        To be called before anything is written long after `acquire`: another run may have the name
        by now. Raises RunDirectoryError for a folder that is gone or has another's lock.
        """
        found = self._lock.folder()
        if found is None:
            raise RunDirectoryError(
                f"the run directory {self.root} was moved, removed or taken over while it was in "
                "use, so nothing more is written there. Put it back; the same command then "
                "continues from its newest checkpoint."
            )
        if found != self.root:
            warnings.warn(
                f"the run directory {self.root} was moved to {found}; the run goes on there.",
                stacklevel=2,
            )
            self.root = found
        return found

    def release(self) -> None:
        """Gives the folder up."""
        self._lock.release()

    def check(self, config: TrainConfig, facts: dict[str, Any]) -> list[str]:
        """Checks that this folder is free, or holds this very run; returns permitted changes.

        `facts` are what the configuration does not hold but the numbers depend on, such as the
        data's fingerprint. Raises RunDirectoryError for a folder of another configuration or other
        data. A folder without any checkpoint holds nothing yet that a change could spoil, unless
        its files are those of something else, such as exported weights.
        """
        trained = self.checkpoints.exists() and any(self.checkpoints.iterdir())
        if not trained:
            self._refuse_foreign()
            return []
        if not self.config.exists():
            raise RunDirectoryError(
                f"{self.root} has checkpoints but no config.json, so what they are is unknown. Put "
                "config.json back, or choose another folder with --run-dir. Nothing was changed."
            )
        old, old_facts = self.read()
        changed = differences(old, config)
        permitted = [change for change in changed if _is_changeable(change)]
        if config.resume_with_changes:
            changed = [change for change in changed if change not in permitted]
        hint = ", add --resume-with-changes" if permitted == changed and changed else ""
        before, after = (
            flatten_dict({name: without_names(given.get(name)) for name in facts}, sep=".")
            for given in (old_facts, facts)
        )
        changed += [
            f"{name}: {before.get(name)} → {after.get(name)}"
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]
        other_data = (
            "The images or labels are others than those it was trained on: to train its weights on "
            f"these, choose another folder and add --init-from {self.root}. "
        ) * (before.get("data.fingerprint") != after.get("data.fingerprint"))
        if changed:
            raise RunDirectoryError(
                f"{self.root} holds a run of another configuration:\n  "
                + "\n  ".join(changed)
                + f"\nUse the old values to resume it{hint}, or choose another folder with "
                f"--run-dir. {other_data}Nothing was changed."
            )
        return permitted

    def _refuse_foreign(self) -> None:
        """Raises RunDirectoryError for files that a run replaces and no run wrote."""
        taken = [name for name in WRITTEN if (self.root / name).exists()]
        with contextlib.suppress(RunDirectoryError):
            if not taken or "weights" not in self.read()[1]:
                return
        raise RunDirectoryError(
            f"{self.root} has {', '.join(taken)} of something else than a run. Choose another "
            "folder with --run-dir. Nothing was changed."
        )

    def records(self) -> dict[str, Any]:
        """What config.json says of the run's history: initial weights, changes when resumed."""
        if not self.config.exists():
            return {}
        return {k: v for k, v in self.read()[1].items() if k in RECORDS}

    def write(self, config: TrainConfig, facts: dict[str, Any]) -> None:
        """Writes config.json."""
        write_json(self.config, {"config": to_json(config), **facts})

    def read(self) -> tuple[TrainConfig, dict[str, Any]]:
        """The configuration and facts saved here.

        Raises RunDirectoryError when the folder is no run, or its config.json cannot be understood.
        """
        try:
            values = read_json_object(self.config)
            if not {"config", "data"} <= values.keys():
                raise ValueError("it belongs to no run: `config` or `data` is missing")
            config = from_json(TrainConfig, with_new_names(values.pop("config")), str(self.config))
            check_sizes(config)
            check_facts(values["data"])
        except (FileNotFoundError, NotADirectoryError) as error:
            lacks = "is a file" if self.root.exists() else "does not exist"
            lacks = "has no config.json" if self.root.is_dir() else lacks
            raise RunDirectoryError(
                f"{self.root} is not a run directory: it {lacks}. Name the folder that a training "
                "script was given as --run-dir, or a trained model, such as digits."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunDirectoryError(
                f"{self.config} cannot be understood ({error}). Nothing was changed."
            ) from error
        return config, values


def without_names(fact: Any) -> Any:
    """A fact without the names of data and classes: data are known by their fingerprint."""
    names = ("name", "class_names")
    return {k: v for k, v in fact.items() if k not in names} if isinstance(fact, dict) else fact


def with_new_names(config: Any) -> Any:
    """The values of a config.json, with the fields of earlier versions under their new names."""
    if not isinstance(config, dict) or not isinstance(data := config.get("data"), dict):
        return config
    if "channels" not in data and data.get("name") == "folder":
        data = {**data, "channels": 3}  # the only choice there was
    if type(data.get("flip")) is bool:
        augment = "flip" if data["flip"] else "none"
        data = {"augment": augment, **{k: v for k, v in data.items() if k != "flip"}}
    return {**config, "data": data}


def check_sizes(config: TrainConfig) -> None:
    """Raises ValueError for sizes of which to build the model would take hours or all memory."""
    network, T = config.network, config.diffusion.num_timesteps
    sizes = {
        "batch_size": (config.batch_size, 1 << 20),
        "diffusion.num_timesteps": (T, 1_000_000),
        "network.channels": (network.channels, 1 << 16),
        "network.num_res_blocks": (network.num_res_blocks, 256),
        "network.num_groups": (network.num_groups, 1 << 16),
        "the number of network.channel_multipliers": (len(network.channel_multipliers), 16),
        **{f"a multiplier {m}": (m, 1 << 10) for m in network.channel_multipliers},
    }
    wrong = [
        f"{what} is {size:,}, not in 1..{most:,}"
        for what, (size, most) in sizes.items()
        if not 1 <= size <= most
    ]
    if wrong:
        raise ValueError("; ".join(wrong) + ".")


def check_facts(data: Any) -> None:
    """Raises ValueError unless these are the facts of a data set that a run writes."""
    if not isinstance(data, dict):
        raise ValueError(f"data is {str(data)[:80]}, not an object of facts")
    shape, classes, names = map(data.get, ("image_shape", "num_classes", "class_names"))
    shape = shape if isinstance(shape, list) else []
    if len(shape) not in range(2, 5) or not all(
        type(n) is int and 0 < n <= MAX_SIDE for n in shape
    ):
        raise ValueError(
            f"data.image_shape is {data.get('image_shape')}, not [H, W, C], [L, C] or [D, H, W, C]"
        )
    for name in ("num_classes", "cond_features", "context_features", "concat_features"):
        size = data.get(name)
        if size is not None and (type(size) is not int or not 0 < size <= MAX_CLASSES):
            raise ValueError(f"data.{name} is {size!r}")
    if names is not None and (
        type(names) is not list or len(names) != classes or not all(type(n) is str for n in names)
    ):
        raise ValueError(f"data.class_names is {str(names)[:80]}, not the {classes} classes")
    for name in ("name", "fingerprint"):
        if not isinstance(data.get(name), str | None):
            raise ValueError(f"data.{name} is {data[name]!r}")


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """What differs between two configurations and would change the numbers of a resumed run."""
    before, after = (flatten_dict(to_json(config), sep=".") for config in (old, new))
    changed = []
    for name in sorted({*before, *after}):
        free = _is_one_of(name, FREE_FIELDS)
        # A constant learning rate does not know how long the run will be, so it may be made longer
        # or shorter.
        free |= name == "num_steps" and new.optimizer.decay == "constant"
        if before.get(name) != after.get(name) and not free:
            changed.append(f"--{name.replace('_', '-')}: {before.get(name)} → {after.get(name)}")
    return changed


def _is_changeable(change: str) -> bool:
    """Whether one of the `differences` is permitted by --resume-with-changes."""
    name = change.partition(":")[0].removeprefix("--").replace("-", "_")
    return name not in FIXED_FIELDS and _is_one_of(name, CHANGEABLE_FIELDS)


def _is_one_of(name: str, fields: tuple[str, ...]) -> bool:
    """Whether a field is among these; a name that ends in a dot stands for all below it."""
    return any(name == f or (f.endswith(".") and name.startswith(f)) for f in fields)


def make_writable(out: Path) -> None:
    """Makes an output folder; RunDirectoryError if it cannot be made or written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise RunDirectoryError(
            f"the output folder {out} cannot be written ({error.strerror}). Choose another with "
            "--out."
        ) from error
