"""uint8 images in, float batches in [-1, 1] out, addressed by training step."""

from ddpm_jax.data.cache import cache_root
from ddpm_jax.data.cifar10 import load_cifar10
from ddpm_jax.data.dataset import ImageDataset, fingerprint_of, make_dataset
from ddpm_jax.data.digits import load_digits
from ddpm_jax.data.folder import load_folder
from ddpm_jax.data.mnist import load_mnist
from ddpm_jax.data.pipeline import BatchChunk, PrefetchedBatches, fits_on_device, prepare_images
from ddpm_jax.data.shuffle import ShuffledIndices
from ddpm_jax.data.tfds_builder import prepare_cifar10_tfds

__all__ = [
    "BatchChunk",
    "ImageDataset",
    "PrefetchedBatches",
    "ShuffledIndices",
    "cache_root",
    "fingerprint_of",
    "fits_on_device",
    "load_cifar10",
    "load_digits",
    "load_folder",
    "load_mnist",
    "make_dataset",
    "prepare_cifar10_tfds",
    "prepare_images",
]
