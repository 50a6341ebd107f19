"""Converts weights: other libraries' models to runs, and runs to models of diffusers.

    ddpm-jax convert from-diffusers --folder FOLDER --run-dir runs/cifar10-google
    ddpm-jax convert from-diffusers --download google/ddpm-cifar10-32 \\
        --revision COMMIT --run-dir runs/cifar10-google
    ddpm-jax convert from-tensorflow --file variables.npz --run-dir runs/cifar10-2020
    ddpm-jax convert to-diffusers --run-dir runs/digits --out FOLDER
    ddpm-jax convert to-weights --run-dir runs/digits --out FOLDER --dtype float16

A converted model can be sampled and studied like any run: `ddpm-jax sample --run-dir RUN`. Only
safetensors, npz and JSON are read, never pickles. Settings that the other side cannot express raise
an error that names them.
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.convert import (
    Conversion,
    FromDiffusers,
    FromTensorFlow,
    ToDiffusers,
    ToWeights,
    convert,
)

CONVERSIONS: dict[str, tuple[str, Conversion]] = {
    "from-diffusers": ("a model of diffusers, from a folder or the hub, to a run", FromDiffusers()),
    "from-tensorflow": ("the DDPM authors' variables to a run", FromTensorFlow()),
    "to-diffusers": ("a run to a folder that diffusers loads", ToDiffusers()),
    "to-weights": ("a run to config.json and weights.safetensors", ToWeights()),
}

if __name__ == "__main__":
    run_program(convert, CONVERSIONS, __doc__)
