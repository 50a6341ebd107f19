"""The digits with their labels: a class-conditional DDPM, for classifier-free guidance.

    ddpm-jax train digits_conditional
    ddpm-jax sample --run-dir runs/digits_conditional --guidance 2 --label 3

Ho, Salimans 2022 (arXiv 2207.12598): one network with and without the label, which is dropped for
one image in ten during training. Everything else is as in `train_digits.py`. Sheets of samples
cycle through the classes.
"""

import dataclasses
from pathlib import Path

from ddpm_jax.programs.console import run_program
from digits_report import train_and_report
from train_digits import CONFIG as DIGITS

CONFIG = dataclasses.replace(
    DIGITS,
    run_dir=Path("runs/digits_conditional"),
    network=dataclasses.replace(DIGITS.network, class_conditional=True),
    diffusion=dataclasses.replace(DIGITS.diffusion, label_dropout=0.1),
)

if __name__ == "__main__":
    run_program(train_and_report, CONFIG, __doc__)
