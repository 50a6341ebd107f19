"""The ablation of the paper, on the digits (Ho, Jain, Abbeel 2020, arXiv 2006.11239, Table 2).

    python experiments/ablation_digits.py epsilon-mse
    python experiments/ablation_digits.py mu-learned

What is predicted (mu, epsilon, x0, v) × what trains it (the bound with a learned diagonal or a
fixed isotropic variance, or the unweighted mean squared error); each row trains like
`train_digits.py`, in about three minutes, and ends with the same table.
"""

import dataclasses
from pathlib import Path

from train_digits import CONFIG

from ddpm_jax.programs.ablation import ablation
from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.digits_report import train_digits

ROWS = ablation(dataclasses.replace(CONFIG, run_dir=Path("runs/ablation_digits")))

if __name__ == "__main__":
    run_program(train_digits, ROWS, __doc__)
