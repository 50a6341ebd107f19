"""Exports a trained model with its sampler as a StableHLO program that runs without this package.

    ddpm-jax export --run-dir runs/digits --sampler ddim --num-steps 20 --out FILE

Elsewhere, with only JAX and flatbuffers installed:

    program = jax.export.deserialize(bytearray(open(FILE, "rb").read()))
    images = program.call(jax.random.normal(jax.random.key(0), (16, 8, 8, 1)))   # uint8

The file contains the weights. Any batch size works unless --batch-size fixes it.
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.export import ExportConfig, export

if __name__ == "__main__":
    run_program(export, ExportConfig(), __doc__)
