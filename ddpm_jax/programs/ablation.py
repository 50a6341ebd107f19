"""The ablation of Ho et al. 2020, Table 2: what the network predicts × which loss trains it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ddpm_jax.denoisers.prediction import Target, VarianceKind
from ddpm_jax.programs.config import TrainConfig

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


def ablation(base: TrainConfig) -> dict[str, tuple[str, TrainConfig]]:
    """Every row of the table as {name: (what it is, config)}, each with a folder of its own.

    The rows differ from `base` in the target, the loss and the variance, and where the mean is
    predicted also in that x̂_0 is not clipped (as in the authors' code, where it takes no part).
    """
    rows = {}
    for short, (target, predicts) in PREDICTIONS.items():
        for kind, (loss, variance, trains) in OBJECTIVES.items():
            name = f"{short}-{kind}"
            # A predicted mean is used as it is: clipping the x̂_0 it implies would replace it where
            # x_0 hardly enters it.
            diffusion = dataclasses.replace(
                base.diffusion,
                target=target,
                loss=loss,
                variance=variance,
                clip=base.diffusion.clip and target != "previous_mean",
            )
            config = dataclasses.replace(base, run_dir=base.run_dir / name, diffusion=diffusion)
            rows[name] = (f"{predicts}; {trains}.", config)
    return rows
