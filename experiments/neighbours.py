"""Samples beside their nearest training images, as in the appendix of Ho et al. 2020
(2006.11239), with the distances of held-out images to judge them by.

python experiments/neighbours.py --run-dir runs/digits
python experiments/neighbours.py --run-dir runs/digits --samples SAMPLES.npz

neighbours.png draws the samples nearest to the training set, the most suspicious ones. Expect no
exact copies, and a curve in distances.png that does not run left of that of held-out images:
samples much nearer to the training set than new images are would be copies with noise.
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.studies.neighbours import NeighboursConfig, study_neighbours

if __name__ == "__main__":
    run_program(study_neighbours, NeighboursConfig(), __doc__)
