"""Images that are arrays already: in memory, in an .npy, or in an .npz with labels and others."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from ddpm_jax.data.cache import MEMORY_BYTES
from ddpm_jax.data.conditions import CONDITIONS
from ddpm_jax.data.dataset import ImageDataset, build_dataset, held_out_of, split_dataset
from ddpm_jax.data.images import shown
from ddpm_jax.files import map_npy, read_arrays, user_path
from ddpm_jax.forward.checks import (
    check_choice,
    check_number,
    check_text,
    host_numbers,
    spatial_axes,
)

NAMES = ("images", "labels", *CONDITIONS)


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    cond: np.ndarray | None = None,
    context: np.ndarray | None = None,
    context_mask: np.ndarray | None = None,
    concat: np.ndarray | None = None,
    spatial_rank: int = 2,
    holdout: float = 0.1,
    name: str = "arrays",
) -> Callable[[Literal["train", "heldout"]], ImageDataset]:
    """A data set of arrays: a function of the split, as `train(config, data=...)` takes it.

    images        uint8 [N, H, W, C], or [N, H, W] for grey ones
    labels        integers [N] from 0; their number of classes is the largest + 1
    cond          numbers [N, D], a vector per image that conditions the network
    context       numbers [N, L, D], L tokens per image that condition the network
    context_mask  bool [N, L], False for tokens that are not there; None for all
    concat        [N, H, W, C'], an array of the images' size, concatenated to x_t: uint8 pixels,
                  or other numbers, which are not scaled
    spatial_rank  1 if `images` are signals [N, L, C], 3 if they are volumes [N, D, H, W, C]; a
                  single channel needs no axis, as in grey images
    holdout       share of the images that is held out, evenly spaced; 0 for none

    Raises what `make_dataset` raises, and ValueError for a share that is not in [0, 1) or leaves
    nothing to train on.
    """
    call = "from_arrays"
    check_text(call, "name", name)
    if not isinstance(images, np.ndarray):
        images = host_numbers(call, "images", images)
    if images.ndim == 1 + len(spatial_axes(call, spatial_rank)):
        if spatial_rank == 2 and images.shape[-1] in (3, 4) and min(images.shape[:2]) > 4:
            raise ValueError(
                f"{call} needs images [N, H, W, C], got shape {images.shape}: one image in colour, "
                "which is images[None], or grey ones of this width, which are images[..., None]."
            )
        images = images[..., None]
    if labels is not None:
        labels = host_numbers(call, "labels", labels)
    classes = None if labels is None else 1
    if labels is not None and labels.size and labels.dtype.kind in "iu":
        classes = int(labels.max()) + 1
    given: dict[str, Any] = {"cond": cond, "context": context, "context_mask": context_mask}
    given |= {"concat": concat, "spatial_rank": spatial_rank}
    whole = build_dataset(call, images, labels, classes, f"{name}/all", "", **given)
    check_number(call, "holdout", holdout, within="[0, 1)")
    held_out = held_out_of(len(images), holdout)
    if held_out.all():
        raise ValueError(
            f"{call} got {len(images)} images, and {holdout=} leaves none of them to train on. Add "
            "images, or hold out none with holdout=0 (--data.holdout 0)."
        )

    def load(split: Literal["train", "heldout"]) -> ImageDataset:
        check_choice(name, "split", split, ("train", "heldout"))
        if split == "train" and not held_out.any():
            # A slice, unlike a mask, does not copy.
            return split_dataset(whole, slice(None), f"{name}/{split}")
        return split_dataset(whole, held_out == (split == "heldout"), f"{name}/{split}")

    return load


def load_arrays(
    split: Literal["train", "heldout"],
    *,
    path: str | os.PathLike[str],
    holdout: float = 0.1,
    spatial_rank: int = 2,
) -> ImageDataset:
    """Loads the split of an .npy of images, or of an .npz with the arrays of `from_arrays`.

    An .npy is mapped into memory; it is copied if images are held out, as an .npz always is.
    In an .npz, signals and volumes are also called `images`.

    Raises ValueError naming the file if it is damaged, holds other arrays, or has more than 4 GiB
    to copy; FileNotFoundError if it is missing.
    """
    call = "load_arrays"
    file = user_path(path, call)
    check_number(call, "holdout", holdout, within="[0, 1)")
    check_choice(call, "split", split, ("train", "heldout"))
    if not file.exists():
        raise FileNotFoundError(
            f"{call} got {shown(file)}, which does not exist. Pass an .npy or .npz file "
            "(--data.path)."
        )
    if file.is_dir():
        raise ValueError(
            f"{call} got {shown(file)}, which is a folder. Pass an .npy or .npz file "
            "(--data.path), or read images as the data set folder (--data.name folder)."
        )
    name = shown(file.stem)
    arrays: dict[str, np.ndarray]
    try:
        if file.suffix.lower() == ".npz":
            arrays = read_arrays(file, MEMORY_BYTES, NAMES)
            if "images" not in arrays:
                raise ValueError("it has no array `images`")
        else:
            arrays = {"images": map_npy(file)}
            if holdout and arrays["images"].nbytes > MEMORY_BYTES:
                raise ValueError(
                    f"it has more than {MEMORY_BYTES:,} bytes, and holding images out copies them; "
                    "map it whole with --data.holdout 0"
                )
        load = from_arrays(**arrays, spatial_rank=spatial_rank, holdout=holdout, name=name)
        return load(split)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{shown(file)} is no data set of arrays: {str(error).rstrip('. ')}. It needs to be an "
            ".npy of uint8 images [N, H, W, C] (with --data.spatial-rank 1 signals [N, L, C], with "
            "3 volumes [N, D, H, W, C]), or an .npz with `images` and, if there are any, integer "
            "`labels` [N], `cond` [N, D], `context` [N, L, D], `context_mask` [N, L] and `concat` "
            "[N, H, W, C]."
        ) from error
