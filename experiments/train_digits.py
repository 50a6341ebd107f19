"""A DDPM on scikit-learn's 1,797 handwritten digits of 8×8 pixels, trained in minutes.

    ddpm-jax train digits

Ho, Jain, Abbeel 2020 (arXiv 2006.11239), with a U-Net of two levels and 200 steps instead of 1000,
the cosine schedule of Nichol, Dhariwal 2021 (2102.09672), and steps t stratified over each batch
(Kingma et al. 2021, 2107.00630). The README shows the result, from the report.json that this script
writes.
"""

from pathlib import Path

from ddpm_jax.programs.config import (
    DataConfig,
    DiffusionConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    TrainConfig,
)
from ddpm_jax.programs.console import run_program
from digits_report import train_and_report

CONFIG = TrainConfig(
    run_dir=Path("runs/digits"),
    num_steps=3500,
    batch_size=32,
    data=DataConfig(name="digits"),
    # More channels than groups: a group of one channel would normalise the time embedding away.
    network=NetworkConfig(
        channels=32,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        dropout=0.0,
        num_groups=8,
    ),
    diffusion=DiffusionConfig(schedule="cosine", num_timesteps=200, timesteps="stratified"),
    optimizer=OptimizerConfig(
        learning_rate=4e-3, warmup_steps=100, decay="linear", ema_decay=0.995, ema_warmup=True
    ),
    report=ReportConfig(
        log_every=10, heldout_every=700, sample_every=1400, checkpoint_every=700, sample_steps=25
    ),
)


if __name__ == "__main__":
    run_program(train_and_report, CONFIG, __doc__)
