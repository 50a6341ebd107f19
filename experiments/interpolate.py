"""Interpolation between images: Figure 8 of Ho et al. 2020 (2006.11239, §4.4) and Figure 6 of Song,
Meng, Ermon 2020 (2010.02502, §5.3), side by side for a trained run.

python experiments/interpolate.py --run-dir runs/digits
python experiments/interpolate.py --run-dir runs/digits --first 0 40 --second 100 200

One picture a pair, its rows: pixels faded into one another; x_t mixed after few and after many
steps, decoded by ancestral sampling; DDIM's latents mixed along the sphere. Expect few steps to
superpose the two images, many to invent others and forget the sources, and DDIM to start and arrive
exactly and to pass through images of the data's kind.
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.studies.interpolate import InterpolateConfig, interpolate

if __name__ == "__main__":
    run_program(interpolate, InterpolateConfig(), __doc__)
