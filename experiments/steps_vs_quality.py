"""Quality against the number of steps for every sampler: DDIM's Table 1, for a trained run.

    python experiments/steps_vs_quality.py --run-dir runs/digits

Song, Meng, Ermon 2020 (arXiv 2010.02502, Table 1), with the samplers that came after it: analytic
variances (2201.06503), DPM-Solver++ (2211.01095), Heun on EDM's grid (2206.00364). Quality is the
Fréchet distance of pixels, which needs no network and suits small images.
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.studies.steps_vs_quality import StepsConfig, steps_vs_quality

if __name__ == "__main__":
    run_program(steps_vs_quality, StepsConfig(), __doc__)
