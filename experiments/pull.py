"""Fetches a published model from the Hugging Face hub into a folder that every --run-dir accepts.

    ddpm-jax pull OWNER/NAME --revision COMMIT --out runs/theirs
    ddpm-jax sample --run-dir runs/theirs

Only safetensors, JSON and PNG files are fetched. No pull is needed to use a model once: pass
--pretrained hub:OWNER/NAME@COMMIT to another program. Needs the extra [hub].
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.publish import PullConfig, pull

if __name__ == "__main__":
    run_program(pull, PullConfig(), __doc__)
