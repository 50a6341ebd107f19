"""Flax networks, all called as `network.apply(variables, x, t, label, cond=…, dropout_keys=…)`."""

from ddpm_jax.nn.embeddings import sinusoidal_embedding as sinusoidal_embedding
from ddpm_jax.nn.gamma import Gamma as Gamma
from ddpm_jax.nn.gamma import GammaNetwork as GammaNetwork
from ddpm_jax.nn.mlp import MLP as MLP
from ddpm_jax.nn.unet import UNet as UNet
from ddpm_jax.nn.unet import count_parameters as count_parameters
