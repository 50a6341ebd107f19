"""Weights to and from other libraries, none of which is imported here."""

from ddpm_jax.interop.ddpm_tensorflow import tensorflow_name, unet_from_tensorflow
from ddpm_jax.interop.diffusers import unet_params_from_diffusers, unet_params_to_diffusers
from ddpm_jax.interop.diffusers_folder import (
    ImportedModel,
    PipelineFiles,
    choose_pipeline_files,
    load_diffusers,
    pipeline_files,
    save_diffusers,
)
from ddpm_jax.interop.diffusers_scheduler import (
    Process,
    process_from_diffusers_config,
    process_to_diffusers_config,
)
from ddpm_jax.interop.diffusers_unet import (
    NetworkDescription,
    unet_from_diffusers_config,
    unet_to_diffusers_config,
)
from ddpm_jax.interop.tensors import read_npz, read_safetensors, write_safetensors

__all__ = [
    "ImportedModel",
    "NetworkDescription",
    "PipelineFiles",
    "Process",
    "choose_pipeline_files",
    "load_diffusers",
    "pipeline_files",
    "process_from_diffusers_config",
    "process_to_diffusers_config",
    "read_npz",
    "read_safetensors",
    "save_diffusers",
    "tensorflow_name",
    "unet_from_diffusers_config",
    "unet_from_tensorflow",
    "unet_params_from_diffusers",
    "unet_params_to_diffusers",
    "unet_to_diffusers_config",
    "write_safetensors",
]
