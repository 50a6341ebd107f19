"""The paper's ablation (Ho, Jain, Abbeel 2020, arXiv 2006.11239, Table 2), on digits or CIFAR-10.

    ddpm-jax ablation digits epsilon-mse
    ddpm-jax ablation cifar10 mu-learned --data.download
    ddpm-jax ablation cifar10 mu-learned --data.path FOLDER

A row is what the network predicts (mu, epsilon, x0, v) with what trains it (learned, fixed: the
bound with a learned diagonal or a fixed isotropic variance; mse: the unweighted mean squared
error). The digits train like `train_digits.py`, in about three minutes per row, and end with the
same table. CIFAR-10 trains like `train_cifar.py`, and has not been run yet. The paper's FID there:
mu-learned 23.69, mu-fixed 13.22, epsilon-fixed 13.51, epsilon-mse 3.17; mu-mse and epsilon-learned
were unstable, and the table has neither x_0 nor v.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Literal

import train_cifar
import train_digits
from ddpm_jax.denoisers.prediction import Target, VarianceKind
from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.train import train
from digits_report import train_and_report

Loss = Literal["simple", "bound"]

PREDICTIONS: dict[str, tuple[Target, str]] = {
    "mu": ("previous_mean", "μ̃ prediction, the baseline"),
    "epsilon": ("epsilon", "ε prediction, the paper's"),
    "x0": ("x_0", "x_0 prediction"),
    "v": ("v", "v prediction (Salimans, Ho 2022; not in the paper)"),
}
OBJECTIVES: dict[str, tuple[Loss, VarianceKind, str]] = {
    "learned": ("bound", "learned", "L, learned diagonal Σ"),
    "fixed": ("bound", "fixed_large", "L, fixed isotropic Σ"),
    "mse": ("simple", "fixed_large", "unweighted mean squared error"),
}


def ablation(base: TrainConfig, folder: Path) -> dict[str, tuple[str, TrainConfig]]:
    """All rows of the table as {name: (description, config)}, each with a run folder of its own.

    The rows differ from `base` in the target, the loss and the variance. Where the mean is
    predicted, x̂_0 is not clipped either: the mean is used as it is, as in the authors' code.
    Clipping the x̂_0 it implies would replace it at steps where x_0 hardly enters it.
    """
    rows = {}
    for short, (target, predicts) in PREDICTIONS.items():
        for kind, (loss, variance, trains) in OBJECTIVES.items():
            name = f"{short}-{kind}"
            diffusion = dataclasses.replace(
                base.diffusion,
                target=target,
                loss=loss,
                variance=variance,
                clip=base.diffusion.clip and target != "previous_mean",
            )
            config = dataclasses.replace(base, run_dir=folder / name, diffusion=diffusion)
            rows[name] = (f"{predicts}; {trains}.", config)
    return rows


ROWS = {
    "digits": ablation(train_digits.CONFIG, Path("runs/ablation_digits")),
    "cifar10": ablation(train_cifar.CONFIG, Path("runs/ablation_cifar")),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=ROWS, help="the data set; its rows follow, see DATA --help")
    data = parser.parse_args(sys.argv[1:2]).data
    # The rest of the line picks a row and sets its options.
    sys.argv[:2] = [f"{sys.argv[0]} {data}"]
    run_program(train_and_report if data == "digits" else train, ROWS[data], __doc__)
