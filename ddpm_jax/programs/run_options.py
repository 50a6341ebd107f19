"""Which trained run a program opens: the options that all such programs share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunOptions:
    """Which run and step to load, and where its data and devices are."""

    run_dir: Path = Path("runs/digits")
    """A run directory or folder of weights, local or in a bucket (gs://…); or a model's name."""
    pretrained: str | None = None
    """Instead of a run: a trained model shipped with the package, such as digits, or one on the
    hub, hub:OWNER/NAME@REVISION."""
    out: Path | None = None
    """Where to write; None for a folder in RUN_DIR named after the options."""
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
    """Where the run's data are, if they have moved since training."""
    data_name: str | None = None
    """The run's data, as --data.name in training. Required for a function of your own: a run's
    folder must not decide which code is executed."""
    num_devices: int | None = None
    """Devices to split each batch over; None for all. On a CPU each core is a device, up to eight.
    Changes the speed, not the results."""
