"""Samples a trained run and measures the samples: FID, KID, IS, precision, recall, bits/dim.

    python experiments/evaluate.py --run-dir runs/digits
    python experiments/evaluate.py --run-dir runs/cifar10 --sampler ddim --num-steps 50 --download

Samples are kept in shards, so that a killed evaluation goes on where it was. Images under 32×32 are
compared by their pixels, larger ones by Inception-v3. Held-out images stand beside the samples as
the floor, in equal number where there are enough.
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.evaluate import EvaluateConfig, evaluate

if __name__ == "__main__":
    run_program(evaluate, EvaluateConfig(), __doc__)
