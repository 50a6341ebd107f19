"""DDPM on CelebA-HQ at 256×256 in the paper's configuration (Ho et al. 2020, 2006.11239, App. B).

    ddpm-jax train celebahq --data.path FOLDER_OF_IMAGES

Images are resized and centre-cropped to 256×256 once. 113.7 M parameters, six levels, attention at
16×16, no dropout, batch 64, Adam at 2e-5. The paper reports samples but no FID. Not yet run.
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
    run_dir=Path("runs/celebahq"),
    num_steps=500_000,
    batch_size=64,
    data=DataConfig(name="folder", resolution=256, augment="flip"),
    network=NetworkConfig(channel_multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0),
    optimizer=OptimizerConfig(learning_rate=2e-5),
    report=ReportConfig(
        log_every=100,
        heldout_every=10_000,
        heldout_draws=512,
        sample_every=10_000,
        sample_count=16,
        checkpoint_every=5000,
        final_count=16,
    ),
)

if __name__ == "__main__":
    run_program(train, CONFIG, __doc__)
