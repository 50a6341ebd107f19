"""Class-conditional CIFAR-10 with label dropout, for classifier-free guidance (arXiv 2207.12598).

    ddpm-jax train cifar_conditional --data.download
    ddpm-jax sample --run-dir runs/cifar10_conditional --guidance 1.5 --label cat

The configuration of `train_cifar.py`, with the label embedded beside the step and one label in ten
dropped during training. Not yet run.
"""

import dataclasses
from pathlib import Path

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.train import train
from train_cifar import CONFIG as CIFAR

CONFIG = dataclasses.replace(
    CIFAR,
    run_dir=Path("runs/cifar10_conditional"),
    network=dataclasses.replace(CIFAR.network, class_conditional=True),
    diffusion=dataclasses.replace(CIFAR.diffusion, label_dropout=0.1),
)

if __name__ == "__main__":
    run_program(train, CONFIG, __doc__)
