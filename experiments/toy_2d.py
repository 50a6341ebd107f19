"""The history of score matching on two-dimensional densities whose score is known, on one page.

    python experiments/toy_2d.py

Writes five pictures and toy_2d.json. What they show, from Hyvärinen 2005 to Ho et al. 2020 (arXiv
2006.11239); §3.2 and its figures are of Song, Ermon 2019 (NCSN, 1907.05600):

    field       a learned score is wrong where data are rare (§3.2.1, Figure 2)
    mixing      Langevin dynamics misses the weights of the modes even with the exact score;
                annealed Langevin dynamics finds them (§3.2.2, Figure 3)
    manifold    data on a plane have no score, and a little noise gives them one (Figure 1)
    objectives  exact, sliced (1905.07088) and denoising (Vincent 2011) matching reach one field;
                only the exact one costs more with every dimension
    models      DDPM and NCSN learn one density

Three minutes on two idle cores, no downloads. docs/results/toy_2d shows the page.
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.toys.page import ToyConfig, toy_2d

if __name__ == "__main__":
    run_program(toy_2d, ToyConfig(), __doc__)
