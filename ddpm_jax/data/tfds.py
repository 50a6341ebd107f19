"""Reads any image data set that TFDS prepared as array_record, without TensorFlow."""

from __future__ import annotations

import os
from typing import Literal

from ddpm_jax.data import tfds_reader
from ddpm_jax.data.cache import cache_root, signature
from ddpm_jax.data.dataset import ImageDataset
from ddpm_jax.data.encoded import Encoded, choose_column, choose_split, decode_dataset, hold_out
from ddpm_jax.data.streamed import Stream
from ddpm_jax.files import user_path
from ddpm_jax.forward.checks import check_choice


def load_tfds(
    name: str,
    split: Literal["train", "heldout"],
    *,
    path: str | os.PathLike[str] | None = None,
    resolution: int | str | None = None,
    channels: Literal["auto", 1, 3] = "auto",
    labels: str = "auto",
    holdout: float = 0.1,
    cache_dir: str | os.PathLike[str] | None = None,
    stream: Stream = "auto",
) -> ImageDataset:
    """Loads a prepared data set, such as "oxford_flowers102" or "imagenet_resized/32x32".

    path        TFDS's data_dir, by default TFDS_DATA_DIR or ~/tensorflow_datasets
    resolution  needed if the images differ in size
    labels      "auto", or "none" to leave them out
    holdout     share of `train` to hold out if the data set has neither `test` nor `validation`
    stream      as in `load_folder`

    The images are the feature `image`, or else the only feature that is an image. The labels are
    the feature `label`, or else the only one with classes, if any.

    Raises ImportError if TFDS is not installed; FileNotFoundError for a data set that is not
    prepared; ValueError for one without images or with damaged images.
    """
    check_choice("load_tfds", "labels (--data.labels)", labels, ("auto", "none"))
    data_dir = tfds_reader.default_data_dir() if path is None else user_path(path)
    folder = tfds_reader.find_prepared(name, data_dir)
    if folder is None:
        raise FileNotFoundError(
            f"tfds:{name} is not prepared as array_record in {data_dir}"
            f"{tfds_reader.explain_unreadable(name, data_dir)}. Prepare it where TFDS can download "
            f'it: tfds.builder("{name}", file_format="array_record").download_and_prepare(), or '
            "name its data_dir with --data.path."
        )
    tfds = tfds_reader.import_tfds()
    builder = tfds.builder_from_directory(folder)
    stored, share = choose_split(list(builder.info.splits), split, f"tfds:{name}")
    columns = builder.info.features
    remedy = "Choose in a function of your own: --data.name package.module:function."
    image = choose_column(columns, tfds.features.Image, "image", f"tfds:{name}", remedy)
    if image is None:
        raise ValueError(f"tfds:{name} has no images among its features {sorted(columns)}.")
    label = None
    if labels != "none":
        label = choose_column(columns, tfds.features.ClassLabel, "label", f"tfds:{name}", remedy)
    files = tfds_reader.record_files(folder, stored)
    root = cache_root(cache_dir)
    source = Encoded(
        content=f"{signature('tfds', folder, files)} {image} {label}",
        count=builder.info.splits[stored].num_examples,
        fetch=tfds_reader.fetcher(folder, stored, image, label),
        class_names=None if label is None else tuple(columns[label].names),
    )
    dataset = decode_dataset(
        source,
        f"tfds:{name}/{stored}",
        root,
        resolution=resolution,
        channels=channels,
        stream=stream,
    )
    return hold_out(dataset, split, holdout, f"tfds:{name}/{split}", root) if share else dataset
