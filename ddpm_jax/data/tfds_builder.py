"""Prepares CIFAR-10 for TensorFlow Datasets (TFDS) without TensorFlow.

The stock builder of TFDS needs TensorFlow to unpack and encode. The builder here has the same name,
version, features and example keys, so `tfds.data_source("cifar10")` reads its output as that of the
stock builder, in the same order.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data import cifar10
from ddpm_jax.data.cache import cache_root
from ddpm_jax.data.download import Progress
from ddpm_jax.data.official import locate
from ddpm_jax.data.tfds_reader import default_data_dir, find_prepared, import_tfds
from ddpm_jax.files import user_path

VERSION = "3.0.2"


def prepare_cifar10_tfds(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Prepares CIFAR-10 as array_record in `data_dir` and returns the folder `cifar10/3.0.2` in it.

    data_dir  by default TFDS_DATA_DIR or ~/tensorflow_datasets
    path, cache_dir, download, progress  where the archive comes from, as in `load_cifar10`

    An existing data set is kept. Only the download of the archive uses the network. TFDS draws its
    own progress bars (`tfds.disable_progress_bar()`).

    Raises ImportError with the pip command if TFDS is not installed; FileExistsError if that
    version exists in another file format; otherwise what `load_cifar10` raises.
    """
    tfds = import_tfds()
    root = user_path(data_dir) if data_dir is not None else default_data_dir()
    folder = root / "cifar10" / VERSION
    if find_prepared("cifar10", folder) is not None:
        return folder
    if folder.exists():
        raise FileExistsError(
            f"prepare_cifar10_tfds found {folder} in another format than array_record, which TFDS "
            "does not replace. Pass another data_dir."
        )
    data, cache = cifar10.official_data(), cache_root(cache_dir)
    _, place = locate(data, "train", "archive", path, cache, download, progress)
    builder = _builder_class(tfds)(data_dir=root)
    builder.archive = place
    builder.download_and_prepare(
        file_format="array_record",
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
    return folder


def _builder_class(tfds: Any) -> Any:
    """Makes the builder class; a function, so that importing this module does not import TFDS."""

    # Not registered: TFDS already has a "cifar10" and refuses a second.
    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore
        VERSION = tfds.core.Version(VERSION)
        archive: Path

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="CIFAR-10: 60,000 colour images of 32×32 pixels in ten classes.",
                features=tfds.features.FeaturesDict(
                    {
                        "id": tfds.features.Text(),
                        "image": tfds.features.Image(shape=(32, 32, 3)),
                        "label": tfds.features.ClassLabel(names=list(cifar10.CLASSES)),
                    }
                ),
                supervised_keys=("image", "label"),
                homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in cifar10.FILES}

        def _generate_examples(self, split):
            images, labels = cifar10.read_batches(self.archive, split)
            # The key is the index, as in the stock builder: TFDS shuffles by split and key.
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                name = f"{split}_{i:05d}"
                yield i, {"id": name, "image": encode_png(image), "label": int(label)}

    return Cifar10


def encode_png(image: np.ndarray) -> bytes:
    """Encodes an image, uint8 [H, W, 3], as PNG; TFDS would need TensorFlow to do so."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
