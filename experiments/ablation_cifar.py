"""The ablation of the paper on CIFAR-10 (Ho, Jain, Abbeel 2020, arXiv 2006.11239, Table 2).

    python experiments/ablation_cifar.py epsilon-mse --data.download
    python experiments/ablation_cifar.py mu-learned --data.path FOLDER

What is predicted (mu, epsilon, x0, v) × what trains it (the bound with a learned diagonal or a
fixed isotropic variance, or the unweighted mean squared error). The paper's FID: mu-learned 23.69,
mu-fixed 13.22, epsilon-fixed 13.51, epsilon-mse 3.17; mu-mse and epsilon-learned were unstable
there, and x_0 and v are not in its table. Here: not yet run.
"""

import dataclasses
from pathlib import Path

from train_cifar import CONFIG

from ddpm_jax.programs.ablation import ablation
from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.train import train

ROWS = ablation(dataclasses.replace(CONFIG, run_dir=Path("runs/ablation_cifar")))

if __name__ == "__main__":
    run_program(train, ROWS, __doc__)
