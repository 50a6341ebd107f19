"""Group normalisation with what surrounds it: Triton kernels for NVIDIA GPUs, XLA's elsewhere."""

from ddpm_jax.nn.normalisation.dispatch import Form as Form
from ddpm_jax.nn.normalisation.dispatch import normalise as normalise
