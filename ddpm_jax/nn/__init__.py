"""Flax networks, all called as `network.apply(variables, x, t, label, cond=…, dropout_keys=…)`."""

from ddpm_jax.nn.embeddings import sinusoidal_embedding
from ddpm_jax.nn.mlp import MLP
from ddpm_jax.nn.unet import UNet, count_parameters

__all__ = ["MLP", "UNet", "count_parameters", "sinusoidal_embedding"]
