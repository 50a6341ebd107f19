"""Samples a trained run and measures the samples: FID, KID, IS, precision, recall, bits/dim.

    ddpm-jax evaluate --run-dir runs/digits
    ddpm-jax evaluate --run-dir runs/cifar10 --sampler ddim --num-steps 50 --download

Samples are stored in shards, so that a killed evaluation resumes where it stopped. Images below
32×32 are compared by their pixels, others by Inception-v3 features. Held-out images are
measured beside the samples as a reference, in equal number where there are enough.
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.evaluate import EvaluateConfig, evaluate

if __name__ == "__main__":
    run_program(evaluate, EvaluateConfig(), __doc__)
