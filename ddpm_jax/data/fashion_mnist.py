"""Fashion-MNIST (Xiao et al. 2017, 1708.07747): MNIST's format, ten kinds of clothes."""

from __future__ import annotations

import os

from ddpm_jax.data.dataset import ImageDataset
from ddpm_jax.data.download import Progress
from ddpm_jax.data.mnist import Source, Split, idx_data, load_idx_data

CLASSES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
DATA = idx_data(
    name="fashion_mnist",
    title="Fashion-MNIST",
    mirrors=(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    published={
        "train-images-idx3-ubyte": (
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        "train-labels-idx1-ubyte": (
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        "t10k-images-idx3-ubyte": (
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        "t10k-labels-idx1-ubyte": (
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    },
    class_counts={"train": (6000,) * 10, "test": (1000,) * 10},
    raw="FashionMNIST/raw",
)._replace(class_names=CLASSES)


def load_fashion_mnist(
    split: Split,
    *,
    source: Source = "auto",
    path: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    pad_to: int = 28,
    progress: Progress | None = None,
) -> ImageDataset:
    """Loads Fashion-MNIST: uint8 [60000, R, R, 1] or [10000, R, R, 1], as `load_mnist` does.

    KMNIST has the same file names and class counts, so local files of it would pass for this data
    set; a download is known by its sha256.
    """
    options = {"source": source, "path": path, "cache_dir": cache_dir}
    return load_idx_data(DATA, split, pad_to, **options, download=download, progress=progress)
