"""Bits per dimension of a trained run: the bound, term by term, and the flow's likelihood.

    python experiments/likelihood.py --run-dir runs/digits

Papers: the bound and progressive coding, Ho, Jain, Abbeel 2020 (arXiv 2006.11239, §4.3 and Figure
5); the probability flow, Song et al. 2021 (2011.13456); the analytic variance, Bao et al. 2022
(2201.06503). Expect most bits in the last few steps before the image, and the analytic variance to
need fewest of the fixed ones.
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.studies.likelihood import LikelihoodConfig, likelihood

if __name__ == "__main__":
    run_program(likelihood, LikelihoodConfig(), __doc__)
