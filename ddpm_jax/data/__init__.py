"""uint8 images in, float batches in [-1, 1] out, addressed by training step."""

from ddpm_jax.data.arrays import from_arrays, load_arrays
from ddpm_jax.data.cache import cache_root
from ddpm_jax.data.cifar10 import load_cifar10
from ddpm_jax.data.cifar100 import load_cifar100
from ddpm_jax.data.dataset import ImageDataset, fingerprint_of, make_dataset
from ddpm_jax.data.digits import load_digits
from ddpm_jax.data.fashion_mnist import load_fashion_mnist
from ddpm_jax.data.folder import load_folder
from ddpm_jax.data.hugging_face import load_hugging_face
from ddpm_jax.data.mnist import load_mnist
from ddpm_jax.data.pipeline import BatchChunk, PrefetchedBatches, fits_on_device, prepare_images
from ddpm_jax.data.registry import DataOptions, DataSet, load_named
from ddpm_jax.data.shuffle import ShuffledIndices
from ddpm_jax.data.svhn import load_svhn
from ddpm_jax.data.tfds import load_tfds
from ddpm_jax.data.tfds_builder import prepare_cifar10_tfds

__all__ = [
    "BatchChunk",
    "DataOptions",
    "DataSet",
    "ImageDataset",
    "PrefetchedBatches",
    "ShuffledIndices",
    "cache_root",
    "fingerprint_of",
    "fits_on_device",
    "from_arrays",
    "load_arrays",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
    "load_folder",
    "load_hugging_face",
    "load_mnist",
    "load_named",
    "load_svhn",
    "load_tfds",
    "make_dataset",
    "prepare_cifar10_tfds",
    "prepare_images",
]
