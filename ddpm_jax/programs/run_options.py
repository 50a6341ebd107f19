"""The options of every program that opens a trained run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunOptions:
    """The run and step to load, its data, and the devices."""

    run_dir: Path = Path("runs/digits")
    """A run directory or a folder of weights, local or in a bucket (gs://…), or a model's name."""
    pretrained: str | None = None
    """Instead of --run-dir: a trained model of the package, such as digits or cifar10-small
    (`ddpm-jax list` names all), or a model on the hub, hub:OWNER/NAME@REVISION."""
    out: Path | None = None
    """Where to write; None for a folder in RUN_DIR named after the options. Replaces earlier
    results of the same program, and no other files."""
    seed: int = 0
    """Seed of all noise; image i depends on the seed and i alone."""
    checkpoint: int | None = None
    """Training step of the checkpoint to load; None for the newest."""
    ema: bool = True
    """Use the averaged parameters, as the paper does, rather than the last ones."""
    ema_decay: float | None = None
    """Decay of the average to use, if the run has several; None for --optimizer.ema-decay."""
    ema_sigma_rel: float | None = None
    """Use a power-function average of this relative width (EDM2), made from all kept checkpoints;
    the run needs --optimizer.ema-sigma-rel."""
    data_path: Path | None = None
    """Path of the run's data, if they have moved since training."""
    data_name: str | None = None
    """Name of the run's data, as --data.name in training. Required for your own function: a run's
    folder must not decide which code is executed."""
    num_devices: int | None = None
    """Devices to split each batch over; None for all. On a CPU each core is a device, up to eight.
    Changes the speed, not the results."""


def check_source(options: RunOptions) -> None:
    """Raises ValueError for options that name two models."""
    if options.pretrained is not None and options.run_dir != RunOptions.run_dir:
        raise ValueError(
            f"--run-dir {options.run_dir} and --pretrained {options.pretrained} name two models. "
            "Give one of them. --out chooses the folder of the results."
        )
