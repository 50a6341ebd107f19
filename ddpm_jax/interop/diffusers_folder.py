"""Reads and writes a model's folder of diffusers: JSON files and safetensors.

model_index.json                               the classes of the parts, for DDPMPipeline
unet/config.json                               or, in repositories of 2022, without the folders:
unet/diffusion_pytorch_model.safetensors       config.json, diffusion_pytorch_model.safetensors
scheduler/scheduler_config.json                and scheduler_config.json beside model_index.json

A class-conditional model has no model_index.json: DDPMPipeline passes no labels to its network, so
UNet2DModel and a scheduler are loaded from their folders.

A network with `patch_size` p is saved as one of images of patches. Noise is independent between
pixels, so diffusers samples patches as it does pixels. `pixel_shuffle(x, p)` of torch.nn.functional
then puts the pixels in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.files import read_json_object, user_path, write_json
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_kind, check_text
from ddpm_jax.interop.diffusers import unet_params_from_diffusers, unet_params_to_diffusers
from ddpm_jax.interop.diffusers_scheduler import (
    Process,
    process_from_diffusers_config,
    process_to_diffusers_config,
)
from ddpm_jax.interop.diffusers_unet import unet_from_diffusers_config, unet_to_diffusers_config
from ddpm_jax.interop.tensors import PICKLES, read_safetensors, refuse_pickle, write_safetensors
from ddpm_jax.nn import UNet
from ddpm_jax.types import PyTree, describe

WEIGHTS = "diffusion_pytorch_model"


class PipelineFiles(NamedTuple):
    """The paths of a pipeline's parts, relative to its folder; model_index.json may be absent."""

    unet_config: str
    weights: str
    scheduler_config: str
    model_index: str | None


class ImportedModel(NamedTuple):
    """A model read from another library's files.

    Attributes:
        unet: the network.
        params: its parameters, float32.
        image_shape: of the images it makes, [H, W, C].
        process: its process, and what the network predicts.
    """

    unet: UNet
    params: PyTree
    image_shape: tuple[int, int, int]
    process: Process


def choose_pipeline_files(names: Iterable[str], where: str) -> PipelineFiles:
    """Picks the files of a pipeline among `names`, paths relative to the folder or repository.

    Raises ValueError, naming the folder `where`, if there is no such pipeline, only pickled
    weights, or weights in several files.
    """
    call = "choose_pipeline_files"
    check_text(call, "where", where)
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"{call} needs names, paths as strings, got {describe(names)}.")
    present = set()
    for name in names:
        check_text(call, "names", name)
        present.add(name)
    index = "model_index.json" if "model_index.json" in present else None
    for unet, scheduler in (("unet/", "scheduler/"), ("", ""), ("", "scheduler/")):
        config, settings = f"{unet}config.json", f"{scheduler}scheduler_config.json"
        if config not in present or settings not in present:
            continue
        weights = f"{unet}{WEIGHTS}.safetensors"
        if weights in present:
            return PipelineFiles(config, weights, settings, index)
        pickled = sorted(n for n in present if n.startswith(unet) and n.endswith(PICKLES))
        if pickled:
            refuse_pickle(Path(where) / pickled[0])
        sharded = sorted(n for n in present if n.startswith(f"{unet}{WEIGHTS}"))
        raise ValueError(
            f"{where} has no {weights}; it has {sharded or 'no weights'}. Save the model in one "
            "file of float32 without a variant."
        )
    raise ValueError(
        f"{where} is no folder of a DDPMPipeline: it needs unet/config.json and "
        "scheduler/scheduler_config.json, or both files at its top, and has "
        f"{sorted(present)[:8] or 'no files'}."
    )


def pipeline_files(folder: str | Path) -> PipelineFiles:
    """Finds the files of a pipeline in a folder; raises as `choose_pipeline_files` does."""
    folder = user_path(folder, "pipeline_files")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder. Name the one that holds unet/config.json.")
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return choose_pipeline_files(names, str(folder))


def load_diffusers(folder: str | Path) -> ImportedModel:
    """Reads a DDPMPipeline's folder of either layout, or that of a UNet2DModel with labels.

    Raises FileNotFoundError, or ValueError naming the file and what in it is wrong or has no
    counterpart: settings, names, shapes and dtypes of tensors, pickles, damaged files.
    """
    folder = user_path(folder, "load_diffusers")
    files = pipeline_files(folder)
    if files.model_index is not None:
        _check_index(folder / files.model_index)
    unet, image_shape = _of(
        folder / files.unet_config, unet_from_diffusers_config, "UNet2DModel's config"
    )
    process = _of(
        folder / files.scheduler_config, process_from_diffusers_config, "scheduler's config"
    )
    expected = image_shape[2] * (2 if process.variance == "learned_range" else 1)
    if unet.out_channels != expected:
        raise ValueError(
            f"{folder}: per pixel, out_channels={unet.out_channels} with "
            f"in_channels={image_shape[2]} and variance_type={process.variance!r}, which needs "
            f"{expected}. A learned variance doubles the channels of the output, a fixed one does "
            "not."
        )
    weights = folder / files.weights
    tensors = read_safetensors(weights)
    try:
        params = unet_params_from_diffusers(tensors, unet)
    except ValueError as error:
        raise ValueError(f"{weights} does not fit {files.unet_config}: {error}") from error
    return ImportedModel(unet, params, image_shape, process)


def save_diffusers(
    folder: str | Path,
    unet: UNet,
    params: PyTree,
    image_shape: tuple[int, int, int],
    process: Process,
    schedule: NoiseSchedule,
    before_writing: Callable[[], object] = lambda: None,
) -> list[Path]:
    """Writes a folder that `diffusers.DDPMPipeline.from_pretrained` loads; returns its files.

    For a network with `num_classes`, `UNet2DModel.from_pretrained(folder, subfolder="unet")` and a
    scheduler's `from_pretrained(folder, subfolder="scheduler")` load it instead. Its
    `class_labels` are those of `unet`: num_classes stands for "no label".

    With `unet.patch_size` p, what diffusers samples are images of patches, and
    `torch.nn.functional.pixel_shuffle(x, p)` puts their pixels in place.

    Everything is checked before anything is written, and then `before_writing` is called. Raises
    ValueError for what diffusers cannot express, naming it.
    """
    call = "save_diffusers"
    folder = user_path(folder, call)
    check_kind(call, "unet", unet, UNet, "such as dj.UNet()")
    network = unet_to_diffusers_config(unet, image_shape)
    scheduler = process_to_diffusers_config(process, schedule)
    tensors = unet_params_to_diffusers(params, unet)
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": network["_diffusers_version"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", network["_class_name"]],
    }
    before_writing()
    # That of an earlier model would make the new parts a pipeline.
    (folder / "model_index.json").unlink(missing_ok=True)
    for part in ("unet", "scheduler"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    written = [folder / "unet" / f"{WEIGHTS}.safetensors"]
    write_safetensors(written[0], tensors)
    files = {"unet/config.json": network, "scheduler/scheduler_config.json": scheduler}
    if unet.num_classes is None:
        files["model_index.json"] = index  # Last: this file makes the folder a pipeline.
    for name, values in files.items():
        write_json(folder / name, values, sort_keys=True, allow_nan=False, ensure_ascii=True)
        written.append(folder / name)
    return written


def _of(path: Path, read: Any, what: str) -> Any:
    """Applies `read` to a JSON file and puts the file's name before its errors."""
    try:
        try:
            values = read_json_object(path)
        except ValueError as error:
            raise ValueError(f"the {what} must be a JSON object and is {error}.") from error
        return read(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_index(path: Path) -> None:
    """Raises ValueError unless the index is that of a pipeline of pixels without conditions."""
    index = _of(path, dict, "index of the pipeline")
    parts = {name: value for name, value in index.items() if not name.startswith("_")}
    more = sorted(set(parts) - {"unet", "scheduler"})
    if more:
        raise ValueError(
            f"{path}: a {index.get('_class_name')} with the parts {more} beside unet and "
            "scheduler. Only pipelines of pixels without conditions are read, as DDPMPipeline is."
        )
