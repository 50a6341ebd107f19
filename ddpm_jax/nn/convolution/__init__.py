"""Convolutions: XLA's own, and on CPUs the faster programs this project writes out by hand."""

from ddpm_jax.nn.convolution.dispatch import convolution as convolution
from ddpm_jax.nn.convolution.dispatch import upsampled_convolution as upsampled_convolution
from ddpm_jax.nn.convolution.products import flat_product as flat_product
