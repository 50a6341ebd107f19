"""A small classifier of labelled images, with which samples are measured (CIFAR-10 by default).

    ddpm-jax train classifier --data.download
    ddpm-jax train classifier --out runs/pets --data.name folder --data.path FOLDER
    ddpm-jax evaluate --run-dir RUN --classifier runs/classifier

Its features give a Fréchet distance for images like its own (which is not the FID), and its
decisions say whether conditional samples show their class. It has 0.65 M parameters and takes
0.04 GFLOP per 32×32 image. The default 8 epochs took 27 to 29 minutes on two busy CPU cores and
classify 77.6 to 77.7 % of CIFAR-10's test images correctly (79.5 % of 5,000 training images, so
more epochs may help). The accuracy is that of the last step, on held-out images that were used for
no choice.
"""

from pathlib import Path

from ddpm_jax.programs.classifier import ClassifierConfig, train_classifier
from ddpm_jax.programs.config import DataConfig
from ddpm_jax.programs.console import run_program

CONFIG = ClassifierConfig(
    out=Path("runs/classifier"), data=DataConfig(name="cifar10", augment="flip_pad_crop")
)

if __name__ == "__main__":
    run_program(train_classifier, CONFIG, __doc__)
