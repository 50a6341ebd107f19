"""A DDPM on MNIST, padded to 32×32, with a smaller U-Net of the paper's kind (arXiv 2006.11239).

    ddpm-jax train mnist --data.download        # fetches the four IDX files, 12 MB
    ddpm-jax train mnist --data.path FOLDER     # the IDX files, plain or .gz

The paper has no MNIST experiment; this is its recipe at half the width. Not yet run to the end.
"""

from pathlib import Path

from ddpm_jax.programs.config import (
    DataConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    TrainConfig,
)
from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.train import train

CONFIG = TrainConfig(
    run_dir=Path("runs/mnist"),
    num_steps=50_000,
    batch_size=128,
    data=DataConfig(name="mnist"),
    network=NetworkConfig(channels=64, channel_multipliers=(1, 2, 2), attention_resolutions=(8,)),
    optimizer=OptimizerConfig(warmup_steps=1000, ema_decay=0.999),
    report=ReportConfig(sample_every=2500, checkpoint_every=2500),
)

if __name__ == "__main__":
    run_program(train, CONFIG, __doc__)
