"""DDPM on CIFAR-10 in the paper's configuration (Ho, Jain, Abbeel 2020, arXiv 2006.11239, App. B).

    python experiments/train_cifar.py --data.download              # fetches CIFAR-10, 170 MB
    python experiments/train_cifar.py --data.path FOLDER           # official archive or folder

35.7 M parameters, T = 1000, L_simple, batch 128, 800k steps. The paper: 10.6 hours on a TPU v3-8,
FID 3.17 and Inception Score 9.46. Here: not yet run to the end.
"""

from pathlib import Path

from ddpm_jax.programs.config import DataConfig, ReportConfig, TrainConfig
from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.train import train

CONFIG = TrainConfig(
    run_dir=Path("runs/cifar10"),
    num_steps=800_000,
    batch_size=128,
    data=DataConfig(name="cifar10", flip=True),
    report=ReportConfig(
        log_every=100, heldout_every=5000, sample_every=10_000, checkpoint_every=5000
    ),
)

if __name__ == "__main__":
    run_program(train, CONFIG, __doc__)
