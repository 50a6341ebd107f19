"""NCSN: a score network for a sequence of noise levels, sampled by annealed Langevin dynamics.

    ddpm-jax train ncsn                                     # digits, in minutes
    ddpm-jax train ncsn cifar10 --data.download             # the paper's levels
    ddpm-jax train ncsn cifar10-v2 --data.path FOLDER       # NCSNv2's
    ddpm-jax sample --run-dir runs/ncsn_digits --sampler annealed_langevin

Song, Ermon 2019 (arXiv 1907.05600) and 2020 (2006.09011). Program, network and checkpoints are
DDPM's: the network sees x_0 + σ ε and predicts ε, which is -σ times the score, so its mean squared
error equals the papers' ½ Σ σ² ‖s + z/σ‖² up to a factor. Data are in [-1, 1] here and in [0, 1] in
the papers, so the noise levels are twice theirs. The U-Net is DDPM's, not the papers' RefineNet.
They report FID 25.32 (NCSN) and 10.87 (NCSNv2) on CIFAR-10; not yet run here.
"""

import dataclasses
from pathlib import Path
from typing import Any

from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.train import train
from digits_report import train_and_report
from train_cifar import CONFIG as CIFAR
from train_digits import CONFIG as DIGITS


def ncsn(
    base: TrainConfig, name: str, sigmas: tuple[float, float, int], langevin: tuple[int, float]
) -> TrainConfig:
    """The configuration of noise levels (σ_1, σ_L, L) and (steps per level, their size ε/σ²)."""
    sigma_max, sigma_min, num_levels = sigmas
    steps, rate = langevin
    return dataclasses.replace(
        base,
        run_dir=Path("runs") / name,
        diffusion=dataclasses.replace(
            base.diffusion,
            schedule="geometric",
            sigma_max=sigma_max,
            sigma_min=sigma_min,
            num_timesteps=num_levels,
            exploding=True,
            clip=False,
        ),
        report=dataclasses.replace(
            base.report,
            final_sampler="annealed_langevin",
            langevin_steps=steps,
            langevin_rate=rate,
        ),
    )


ROWS = {
    "digits": (
        "scikit-learn's digits.",
        ncsn(
            dataclasses.replace(
                DIGITS,
                num_steps=4000,
                optimizer=dataclasses.replace(DIGITS.optimizer, learning_rate=3e-3, decay="cosine"),
            ),
            "ncsn_digits",
            (10.0, 0.05, 18),
            (20, 0.2),
        ),
    ),
    "cifar10": (
        "CIFAR-10, 10 levels from 1 to 0.01 of [0, 1], as in the paper.",
        ncsn(
            dataclasses.replace(
                CIFAR,
                num_steps=200_000,
                optimizer=dataclasses.replace(CIFAR.optimizer, learning_rate=1e-3, ema_decay=0.999),
            ),
            "ncsn_cifar10",
            (2.0, 0.02, 10),
            (100, 0.2),
        ),
    ),
    "cifar10-v2": (
        "CIFAR-10, 232 levels from 50 to 0.01 of [0, 1], as in NCSNv2.",
        ncsn(
            dataclasses.replace(
                CIFAR,
                num_steps=300_000,
                optimizer=dataclasses.replace(CIFAR.optimizer, learning_rate=1e-4, ema_decay=0.999),
            ),
            "ncsnv2_cifar10",
            (100.0, 0.02, 232),
            (5, 0.124),
        ),
    ),
}


def program(config: TrainConfig) -> Any:
    """Trains; the digits end with their report."""
    return (train_and_report if config.data.name == "digits" else train)(config)


if __name__ == "__main__":
    run_program(program, ROWS, __doc__, first="digits")
