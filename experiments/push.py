"""Publishes a trained model on the Hugging Face hub: weights, configuration, samples, model card.

    ddpm-jax push OWNER/NAME --run-dir runs/digits --license apache-2.0

New repositories are private unless --public is given. Log in with `hf auth login`, or set HF_TOKEN.
Needs the extra [hub].
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.publish import PushConfig, push

if __name__ == "__main__":
    run_program(push, PushConfig(), __doc__)
