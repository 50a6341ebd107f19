"""A trained run with its sampler as one StableHLO program, run by JAX without this package.

    python experiments/export.py --run-dir runs/digits --sampler ddim --num-steps 20 --out FILE

and elsewhere, with nothing but JAX and flatbuffers installed:

    program = jax.export.deserialize(bytearray(open(FILE, "rb").read()))
    images = program.call(jax.random.normal(jax.random.key(0), (16, 8, 8, 1)))   # uint8

The weights are in the file; the batch size is open unless --batch-size fixes it.
"""

from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.export import ExportConfig, export

if __name__ == "__main__":
    run_program(export, ExportConfig(), __doc__)
