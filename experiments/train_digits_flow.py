"""A rectified flow on scikit-learn's 1,797 digits, with the network of `train_digits.py`.

    ddpm-jax train digits_flow

Liu et al. 2022 (arXiv 2209.03003): x_t = (1-t) x_0 + t ε with t in [0, 1], and the network predicts
the velocity ε - x_0. Times are logit-normal as in Esser et al. 2024 (2403.03206, Eq. 19). The last
sheet and the report take 50 steps of Heun's method in t, 99 evaluations of the network.
docs/results/digits compares the report with the DDPM's.
"""

import dataclasses
from pathlib import Path

import train_digits
from ddpm_jax.programs.config import DiffusionConfig
from ddpm_jax.programs.console import run_program
from digits_report import train_and_report

CONFIG = dataclasses.replace(
    train_digits.CONFIG,
    run_dir=Path("runs/digits_flow"),
    num_steps=4000,
    diffusion=DiffusionConfig(process="flow", target="velocity", timesteps="logit_normal"),
    optimizer=dataclasses.replace(
        train_digits.CONFIG.optimizer, learning_rate=3e-3, decay="cosine"
    ),
    report=dataclasses.replace(
        train_digits.CONFIG.report, final_sampler="probability_flow_heun", final_steps=50
    ),
)


if __name__ == "__main__":
    run_program(train_and_report, CONFIG, __doc__)
