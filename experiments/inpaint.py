"""Inpainting with a run that was trained on whole images: Song et al. 2020 (2011.13456, §I.2), with
the resampling of RePaint (Lugmayr et al. 2022, 2201.09865).

python experiments/inpaint.py --run-dir runs/digits --mask bottom
python experiments/inpaint.py --run-dir runs/digits --mask my_mask.png --images 3 14 15

completions.png shows each image, what was known of it, and several completions. Expect the known
part to be kept exactly, and completions that differ where it leaves a choice; ideally as much from
one another as from the truth. With --num-resamples 1 they fit the known part less well.
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.studies.inpaint import InpaintConfig, study_inpainting

if __name__ == "__main__":
    run_program(study_inpainting, InpaintConfig(), __doc__)
