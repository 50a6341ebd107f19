"""Progressive generation: Figures 6 and 7 of Ho et al. 2020 (2006.11239, §4.3) for a trained run.

python experiments/progressive.py --run-dir runs/digits

x_0_hat.png follows the estimate x̂_0(x_t) of several samples over reverse time; shared-*.png show
samples drawn from one x_t with fresh noise. Expect what is large to be decided first: samples that
share an early (noisy) x_t have nothing in common, those that share a late one differ in details.
The first x̂_0 of a network that predicts ε may be noise itself: where nothing of x_0 is left in x_t,
ε tells nothing of it.
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.studies.progressive import ProgressiveConfig, progressive

if __name__ == "__main__":
    run_program(progressive, ProgressiveConfig(), __doc__)
