"""DDPM on LSUN at 256×256 in the paper's configuration (Ho et al. 2020, 2006.11239, App. B).

    ddpm-jax train lsun --data.path FOLDER_OF_IMAGES --run-dir runs/lsun_bedroom

The configuration of `train_celebahq.py`, with the paper's settings for bedroom: 2.4 M steps and no
flips. Church took 1.2 M steps with flips: `--num-steps 1200000 --data.augment flip`. The paper: FID
6.36 on bedroom, 7.89 on church. Not yet run.
"""

import dataclasses
from pathlib import Path

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.train import train
from train_celebahq import CONFIG as CELEBAHQ

CONFIG = dataclasses.replace(
    CELEBAHQ,
    run_dir=Path("runs/lsun"),
    num_steps=2_400_000,
    data=dataclasses.replace(CELEBAHQ.data, augment="none"),
)

if __name__ == "__main__":
    run_program(train, CONFIG, __doc__)
