"""Samples from a trained run: a sheet, a GIF of the denoising, and the images themselves.

    ddpm-jax sample --run-dir runs/digits --sampler ddim --num-steps 20 --count 100
    ddpm-jax sample --pretrained cifar10-small --label ship --guidance 2

After an interruption, the same command continues.
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.sample import SampleConfig, sample

if __name__ == "__main__":
    run_program(sample, SampleConfig(), __doc__)
