"""Weights in and out: other libraries' models as runs, and runs as diffusers pipelines.

    python experiments/convert.py from-diffusers --folder FOLDER --run-dir runs/cifar10-google
    python experiments/convert.py from-diffusers --download google/ddpm-cifar10-32 \\
        --revision 40-HEX-DIGITS --run-dir runs/cifar10-google
    python experiments/convert.py from-tensorflow --file variables.npz --run-dir runs/cifar10-2020
    python experiments/convert.py to-diffusers --run-dir runs/digits --out FOLDER

What is made is sampled and studied like any run: experiments/sample.py --run-dir ... Only
safetensors, npz and JSON are read, never pickles. Settings that the other side cannot express are
refused by name.
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.convert import (
    Conversion,
    FromDiffusers,
    FromTensorFlow,
    ToDiffusers,
    convert,
)

CONVERSIONS: dict[str, tuple[str, Conversion]] = {
    "from-diffusers": ("a DDPMPipeline's folder, or the hub's, as a run", FromDiffusers()),
    "from-tensorflow": ("the DDPM authors' variables as a run", FromTensorFlow()),
    "to-diffusers": ("a run as a DDPMPipeline's folder", ToDiffusers()),
}

if __name__ == "__main__":
    run_program(convert, CONVERSIONS, __doc__)
