"""uint8 images in, float batches in [-1, 1] out, addressed by training step."""

from ddpm_jax.data.arrays import from_arrays as from_arrays
from ddpm_jax.data.arrays import load_arrays as load_arrays
from ddpm_jax.data.cache import cache_root as cache_root
from ddpm_jax.data.cifar10 import load_cifar10 as load_cifar10
from ddpm_jax.data.cifar100 import load_cifar100 as load_cifar100
from ddpm_jax.data.dataset import ImageDataset as ImageDataset
from ddpm_jax.data.dataset import fingerprint_of as fingerprint_of
from ddpm_jax.data.dataset import make_dataset as make_dataset
from ddpm_jax.data.digits import load_digits as load_digits
from ddpm_jax.data.fashion_mnist import load_fashion_mnist as load_fashion_mnist
from ddpm_jax.data.folder import load_folder as load_folder
from ddpm_jax.data.hugging_face import load_hugging_face as load_hugging_face
from ddpm_jax.data.mnist import load_mnist as load_mnist
from ddpm_jax.data.pipeline import BatchChunk as BatchChunk
from ddpm_jax.data.pipeline import PrefetchedBatches as PrefetchedBatches
from ddpm_jax.data.pipeline import fits_on_device as fits_on_device
from ddpm_jax.data.pipeline import prepare_images as prepare_images
from ddpm_jax.data.registry import DataOptions as DataOptions
from ddpm_jax.data.registry import DataSet as DataSet
from ddpm_jax.data.registry import load_named as load_named
from ddpm_jax.data.shuffle import ShuffledIndices as ShuffledIndices
from ddpm_jax.data.streamed import StreamedImages as StreamedImages
from ddpm_jax.data.svhn import load_svhn as load_svhn
from ddpm_jax.data.tfds import load_tfds as load_tfds
from ddpm_jax.data.tfds_builder import prepare_cifar10_tfds as prepare_cifar10_tfds
