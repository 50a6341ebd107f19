"""Data sets of images of the library `datasets` (Hugging Face): from the hub or from a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ddpm_jax.data.cache import cache_root
from ddpm_jax.data.dataset import ImageDataset
from ddpm_jax.data.encoded import Encoded, choose_column, choose_split, decode_dataset, hold_out
from ddpm_jax.data.streamed import Stream
from ddpm_jax.files import user_path

INSTALL = 'pip install "datasets>=4.0" (extra [hf])'


def load_hugging_face(
    name: str,
    split: Literal["train", "heldout"],
    *,
    resolution: int | str | None = None,
    channels: Literal["auto", 1, 3] = "auto",
    labels: str = "auto",
    holdout: float = 0.1,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    stream: Stream = "auto",
) -> ImageDataset:
    """Loads a data set of the hub ("OWNER/NAME") or a folder of parquet, image or arrow files.

    resolution  needed if the images differ in size
    labels      "auto", "none" to leave them out, or the name of their column
    holdout     share of `train` to hold out if there is neither `test` nor `validation`
    download    whether it may be fetched; else only what `datasets` has on this machine is read
    stream      as in `load_folder`

    The images are the column `image`, or the only column of images, and the labels `label`, or the
    only column with classes, if there is one. No code of a data set is run.

    Raises ImportError where `datasets` is not installed; FileNotFoundError for a data set that is
    not there; ValueError for one without images, or with damaged ones.
    """
    try:
        import datasets  # type: ignore
    except ImportError as error:
        raise ImportError(
            f"Data sets named hf:... need a package that is not installed ({error}). Run: {INSTALL}"
        ) from error
    title = f"hf:{name}"
    parts = _open(datasets, name, download)
    stored, share = choose_split(list(parts), split, title)
    data = parts[stored]
    remedy = (
        "Name the labels with --data.labels COLUMN, or write a function of the split that "
        "chooses: --data.name package.module:function."
    )
    image = choose_column(data.features, datasets.Image, "image", title, remedy)
    if image is None:
        raise ValueError(f"{title} has no images among its columns {data.column_names}.")
    label = None
    if labels == "auto":
        label = choose_column(data.features, datasets.ClassLabel, "label", title, remedy)
    elif labels != "none":
        label = labels
        if not isinstance(data.features.get(label), datasets.ClassLabel):
            raise ValueError(f"{title} has no column of classes {label!r} (--data.labels).")
    data = data.select_columns([image] if label is None else [image, label])
    data = data.cast_column(image, datasets.Image(decode=False))
    root = cache_root(cache_dir)
    source = Encoded(
        content=f"{data._fingerprint} {len(data)}",
        count=len(data),
        fetch=lambda indices: _fetch(data, indices, image, label),
        class_names=None if label is None else tuple(data.features[label].names),
    )
    dataset = decode_dataset(
        source, f"{title}/{stored}", root, resolution=resolution, channels=channels, stream=stream
    )
    return hold_out(dataset, split, holdout, f"{title}/{split}", root) if share else dataset


def _open(datasets: Any, name: str, download: bool) -> Any:
    """The splits by name."""
    folder = user_path(name)
    try:
        saved = ("dataset_dict.json", "state.json")  # marks of what `save_to_disk` wrote
        if folder.is_dir() and any((folder / f).is_file() for f in saved):
            found = datasets.load_from_disk(str(folder))
            return found if isinstance(found, datasets.DatasetDict) else {"train": found}
        config = datasets.DownloadConfig(local_files_only=not (download or folder.is_dir()))
        where = str(folder) if folder.is_dir() else name
        return datasets.load_dataset(where, download_config=config)
    except Exception as error:  # the library raises its own, the hub's and those of the network
        raise FileNotFoundError(
            f"hf:{name} could not be loaded: {type(error).__name__}: {error}. Name a folder of "
            "images, parquet or arrow files, or a data set of the hub, which --data.download "
            "allows to fetch."
        ) from error


def _fetch(
    data: Any, indices: Sequence[int], image: str, label: str | None
) -> list[tuple[bytes, int | None]]:
    rows = data[list(indices)]
    labels = [None] * len(indices) if label is None else rows[label]
    found = []
    for i, stored, its in zip(indices, rows[image], labels, strict=True):
        stored = stored or {}
        if stored.get("bytes") is not None:
            content = stored["bytes"]
        elif stored.get("path"):
            content = Path(stored["path"]).read_bytes()
        else:
            raise ValueError(f"row {i} of the data set has no image.")
        found.append((content, its))
    return found
