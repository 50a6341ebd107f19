"""DDPM on CIFAR-10 in the paper's configuration (Ho, Jain, Abbeel 2020, arXiv 2006.11239, App. B).

    ddpm-jax train cifar --data.download              # fetches CIFAR-10, 170 MB
    ddpm-jax train cifar --data.path FOLDER           # official archive or folder

35.7 M parameters, T = 1000, L_simple, batch 128, 800k steps. The paper: 10.6 hours on a TPU v3-8,
FID 3.17 and Inception Score 9.46. Here: not yet run to the end.
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
from ddpm_jax.programs.train import train

# The paper's numbers, written out although many are defaults, each with its place in the paper;
# "code" is what only the code published with it says (github.com/hojonathanho/diffusion).
CONFIG = TrainConfig(
    run_dir=Path("runs/cifar10"),
    num_steps=800_000,  # App. B
    batch_size=128,  # App. B
    data=DataConfig(name="cifar10", augment="flip"),  # App. B: random horizontal flips
    network=NetworkConfig(
        channels=128,  # code
        channel_multipliers=(1, 2, 2, 2),  # App. B: four resolutions, 32×32 to 4×4; code
        num_res_blocks=2,  # App. B: two per resolution
        attention_resolutions=(16,),  # App. B: self-attention at 16×16
        dropout=0.1,  # App. B: the best of 0.1, 0.2, 0.3, 0.4
        num_groups=32,  # code
    ),
    diffusion=DiffusionConfig(
        schedule="linear",  # §4
        num_timesteps=1000,  # §4
        beta_start=1e-4,  # §4: β_1
        beta_end=0.02,  # §4: β_T
        target="epsilon",  # §3.2, Eq. 12
        loss="simple",  # §3.4, Eq. 14
        variance="fixed_large",  # §3.2: σ_t² = β_t, one of two choices with similar results; code
    ),
    optimizer=OptimizerConfig(
        learning_rate=2e-4,  # App. B: Adam
        warmup_steps=5000,  # code
        clip_norm=1.0,  # code
        ema_decay=0.9999,  # App. B
    ),
    report=ReportConfig(
        log_every=100, heldout_every=5000, sample_every=10_000, checkpoint_every=5000
    ),
)

if __name__ == "__main__":
    run_program(train, CONFIG, __doc__)
