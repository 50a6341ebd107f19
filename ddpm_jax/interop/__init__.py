"""Weights to and from other libraries, none of which is imported here."""

from ddpm_jax.interop.diffusers import unet_params_from_diffusers, unet_params_to_diffusers

__all__ = ["unet_params_from_diffusers", "unet_params_to_diffusers"]
