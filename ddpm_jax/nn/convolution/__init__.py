"""3×3 convolutions: hand-written programs for CPUs, XLA's own elsewhere."""

from ddpm_jax.nn.convolution.dispatch import convolution as convolution
from ddpm_jax.nn.convolution.dispatch import upsampled_convolution as upsampled_convolution
from ddpm_jax.nn.convolution.products import matmul_last_axis as matmul_last_axis
