"""Weights to and from other libraries, none of which is imported here."""

from ddpm_jax.interop.ddpm_tensorflow import tensorflow_name as tensorflow_name
from ddpm_jax.interop.ddpm_tensorflow import unet_from_tensorflow as unet_from_tensorflow
from ddpm_jax.interop.diffusers import unet_params_from_diffusers as unet_params_from_diffusers
from ddpm_jax.interop.diffusers import unet_params_to_diffusers as unet_params_to_diffusers
from ddpm_jax.interop.diffusers_folder import ImportedModel as ImportedModel
from ddpm_jax.interop.diffusers_folder import PipelineFiles as PipelineFiles
from ddpm_jax.interop.diffusers_folder import choose_pipeline_files as choose_pipeline_files
from ddpm_jax.interop.diffusers_folder import load_diffusers as load_diffusers
from ddpm_jax.interop.diffusers_folder import pipeline_files as pipeline_files
from ddpm_jax.interop.diffusers_folder import save_diffusers as save_diffusers
from ddpm_jax.interop.diffusers_scheduler import Process as Process
from ddpm_jax.interop.diffusers_scheduler import (
    process_from_diffusers_config as process_from_diffusers_config,
)
from ddpm_jax.interop.diffusers_scheduler import (
    process_to_diffusers_config as process_to_diffusers_config,
)
from ddpm_jax.interop.diffusers_unet import NetworkDescription as NetworkDescription
from ddpm_jax.interop.diffusers_unet import unet_from_diffusers_config as unet_from_diffusers_config
from ddpm_jax.interop.diffusers_unet import unet_to_diffusers_config as unet_to_diffusers_config
from ddpm_jax.interop.tensors import read_npz as read_npz
from ddpm_jax.interop.tensors import read_safetensors as read_safetensors
from ddpm_jax.interop.tensors import write_safetensors as write_safetensors
