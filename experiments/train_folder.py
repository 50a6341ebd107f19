"""A DDPM of your own pictures: a folder of images, with labels or without.

    ddpm-jax train folder --data.path PHOTOS --data.resolution 32
    ddpm-jax sample --run-dir runs/folder --sampler ddim --num-steps 50
    ddpm-jax sample --run-dir runs/folder --sampler ddim --num-steps 50 --guidance 3
    ddpm-jax train folder --data.name arrays --data.path MINE.npz

The network is class-conditional if there are labels: a folder for each class, a dataset.json in
PHOTOS, or `--data.labels FILE.csv` with the columns file and label. `--data.labels none` ignores
them. The network is small: 64 channels at the full resolution, 128 at a half and a quarter of it,
and attention at a quarter. For arrays, the resolution is read from the file. 20,000 steps take
hours on two CPU cores; for a first look add
`--num-steps 1000 --network.channels 32 --network.num-groups 8`.
"""

import dataclasses
from pathlib import Path

from ddpm_jax.data.folder import list_images
from ddpm_jax.data.images import size_of
from ddpm_jax.data.labels import read_labels
from ddpm_jax.files import user_path
from ddpm_jax.programs.build import load_data
from ddpm_jax.programs.config import (
    DataConfig,
    DiffusionConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    TrainConfig,
)
from ddpm_jax.programs.console import run_program, say
from ddpm_jax.programs.train import TrainingResult, train

CONFIG = TrainConfig(
    run_dir=Path("runs/folder"),
    num_steps=20_000,
    batch_size=64,
    data=DataConfig(name="folder", resolution=32),
    # Attention at a quarter of the resolution, which `fitted` sets.
    network=NetworkConfig(
        channels=64, channel_multipliers=(1, 2, 2), attention_resolutions=(), dropout=0.1
    ),
    diffusion=DiffusionConfig(schedule="cosine", timesteps="stratified"),
    optimizer=OptimizerConfig(warmup_steps=500, ema_decay=0.9995, ema_warmup=True),
    report=ReportConfig(guidance=2.0),
)


def fitted(config: TrainConfig) -> TrainConfig:
    """The configuration with the settings that depend on the data: classes and attention."""
    data, network, report = config.data, config.network, config.report
    if data.name == "folder" and data.path is not None:
        folder = user_path(data.path)
        images = [image.name for image in list_images(folder)]
        labels = read_labels(folder, images, data.labels)
        if labels is not None and not network.class_conditional:
            names = ", ".join(labels.names[:10]) + ", …" * (len(labels.names) > 10)
            say(f"{len(labels.names)} classes, {names}: the network is class-conditional")
            network = dataclasses.replace(network, class_conditional=True)
    if not network.class_conditional:
        report = dataclasses.replace(report, guidance=1.0)
    height = None if data.resolution is None else size_of(data.resolution)[0]
    if data.name == "arrays" and not network.attention_resolutions:
        height = load_data(data, "train").images.shape[1]
    if height is not None and not network.attention_resolutions:
        halvings = min(2, len(network.channel_multipliers) - 1)
        attended = height // max(1, network.patch_size) >> halvings
        network = dataclasses.replace(network, attention_resolutions=(attended,))
    return dataclasses.replace(config, network=network, report=report)


def train_folder(config: TrainConfig) -> TrainingResult | None:
    """Trains on a folder of pictures; see `train`."""
    return train(fitted(config))


if __name__ == "__main__":
    run_program(train_folder, CONFIG, __doc__)
