"""The conversion program: imports models of other libraries as runs, and exports runs to them."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from ddpm_jax import interop
from ddpm_jax.files import sha256_of, unchanged, write_json
from ddpm_jax.interop import ImportedModel, Process
from ddpm_jax.interop.hub import fetch_files
from ddpm_jax.keys import make_key
from ddpm_jax.nn import UNet, count_parameters
from ddpm_jax.programs.averages import average_name
from ddpm_jax.programs.buckets import files_behind, shown, taken_in
from ddpm_jax.programs.build import build_model
from ddpm_jax.programs.config import DataConfig, DiffusionConfig, NetworkConfig, TrainConfig
from ddpm_jax.programs.config_values import to_json, with_types
from ddpm_jax.programs.console import quantity, say
from ddpm_jax.programs.diffusers_code import sampling_code
from ddpm_jax.programs.outputs import claim
from ddpm_jax.programs.paths import with_local_paths
from ddpm_jax.programs.run_directory import RunDirectory, RunDirectoryError
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from ddpm_jax.programs.weights import WeightsDtype, check_weights_folder, save_weights
from ddpm_jax.training import Checkpoints, init_state
from ddpm_jax.types import describe

ORIGIN = "ddpm_jax.json"
"""What tells an exported folder of diffusers from others: the run and step that it was made of."""
DataName = Literal["digits", "cifar10", "mnist", "folder"]


@dataclass(frozen=True)
class ImportOptions:
    """Where to make a run from imported weights, and which data they were trained on."""

    run_dir: Path = Path("runs/imported")
    """The run directory to make; it must not hold a run yet."""
    data_name: DataName | None = None
    """What the model was trained on, for analyses that need data. None: cifar10 for 32×32×3, else
    folder."""
    data_path: Path | None = None
    """Where those data are; can also be given later as --data-path."""


@dataclass(frozen=True)
class FromDiffusers(ImportOptions):
    """Import a model of diffusers, from a folder or from the hub, as a run.

    It is a DDPMPipeline, or a class-conditional UNet2DModel in unet/ with scheduler/ beside it.
    """

    folder: Path | None = None
    """The model's folder. Only .safetensors and JSON are read; pickles are refused."""
    download: str | None = None
    """Instead of a folder: OWNER/NAME on huggingface.co."""
    revision: str | None = None
    """Commit, branch or tag to download; None for main. config.json records the commit."""
    cache_dir: Path | None = None
    """Where to keep downloaded files; None for the user's cache folder."""


@dataclass(frozen=True)
class FromTensorFlow(ImportOptions):
    """Import variables of the DDPM authors' code, saved by name in an .npz or .safetensors file."""

    file: Path = Path("variables.npz")
    """The file; see `interop.ddpm_tensorflow` for the names."""
    resolution: int = 32
    """Height of the images, which determines the resolutions with attention."""
    average: bool = True
    """Use the moving averages if the file has them."""
    variance: Literal["fixed_large", "fixed_small"] = "fixed_large"
    """Variance for sampling; the authors' CIFAR-10 model uses fixed_large."""


@dataclass(frozen=True)
class ToDiffusers(RunOptions):
    """Export a run as a folder that diffusers.DDPMPipeline.from_pretrained loads.

    A class-conditional run is loaded by UNet2DModel and DDIMScheduler, since DDPMPipeline has no
    labels. With --network.patch-size p, diffusers samples images of patches, and PyTorch's
    pixel_shuffle turns them into pixels. The code that does so is printed.
    """


@dataclass(frozen=True)
class ToWeights(RunOptions):
    """Export a run as config.json and weights.safetensors: a folder for any --run-dir."""

    dtype: WeightsDtype = "float32"
    """Precision of the stored weights; float16 halves the file. Computation stays in float32."""


Conversion = FromDiffusers | FromTensorFlow | ToDiffusers | ToWeights


def convert(config: Conversion) -> None:
    """Carries out one conversion.

    Raises ValueError or OSError naming what the other format cannot express, and RunDirectoryError
    for a run directory that is in use. Nothing is left half written.
    """
    conversions: dict[type, Callable[[Any], None]] = {
        FromDiffusers: from_diffusers,
        FromTensorFlow: from_tensorflow,
        ToWeights: to_weights,
        ToDiffusers: to_diffusers,
    }
    if type(config) not in conversions:
        known = ", ".join(kind.__name__ for kind in conversions)
        raise TypeError(f"convert needs one of {known}, got {describe(config)}.")
    config = with_local_paths(with_types("convert", config, type(config)))
    conversions[type(config)](config)


def from_diffusers(config: FromDiffusers) -> None:
    """Makes a run directory from a model of diffusers."""
    source: dict[str, Any] = {"library": "diffusers"}
    if (config.folder is None) == (config.download is None):
        raise ValueError(
            f"from-diffusers needs --folder or --download, got {config.folder} and "
            f"{config.download}."
        )
    if config.download is not None:
        folder, commit = fetch_files(
            config.download,
            config.revision,
            interop.choose_pipeline_files,
            cache_dir=config.cache_dir,
        )
        source |= {"repository": config.download, "revision": commit}
    else:
        assert config.folder is not None
        folder = config.folder
    say(f"reading {folder}")
    paths = {name: folder / name for name in filter(None, interop.pipeline_files(folder))}
    with unchanged(*paths.values()):
        model = interop.load_diffusers(folder)
        digests = {name: sha256_of(path) for name, path in paths.items()}
    if (classes := model.unet.num_classes) is not None:
        say(f"  {classes + 1} embeddings of labels: {classes} classes, and the last for no label")
    write_run(config, model, source | {"folder": str(folder), "sha256": digests})


def from_tensorflow(config: FromTensorFlow) -> None:
    """Makes a run directory from the authors' variables, with the paper's process."""
    say(f"reading {config.file}")
    read = interop.read_npz if config.file.suffix.lower() == ".npz" else interop.read_safetensors
    if not config.file.is_file():
        read(config.file)  # says what is wrong
    with unchanged(config.file):
        variables, digest = read(config.file), sha256_of(config.file)
    try:
        unet, params = interop.unet_from_tensorflow(
            variables, config.resolution, average=config.average
        )
    except ValueError as error:
        raise ValueError(f"{config.file}: {error}") from error
    shape = (config.resolution, config.resolution, unet.out_channels or 3)
    process = Process("linear", 1000, 1e-4, 0.02, False, "epsilon", config.variance, clip=True)
    source = {"library": "diffusion_tf", "file": str(config.file), "sha256": digest}
    write_run(config, ImportedModel(unet, params, shape, process), source)


def to_diffusers(config: ToDiffusers) -> None:
    """Writes a run's parameters and process as a folder that diffusers loads."""
    run = TrainedRun(config)
    diffusion = run.config.diffusion
    if diffusion.process != "ddpm":
        raise ValueError(
            f"a run with --diffusion.process {diffusion.process} has no DDPMScheduler: its network "
            "takes other inputs. Export it as a program (export.py), or as weights (to-weights)."
        )
    shape = run.model.image_shape
    if len(shape) != 3 or run.model.concat_features is not None:
        raise ValueError(
            f"{run.name} makes arrays of shape {list(shape)}, with concat_features="
            f"{run.model.concat_features}; diffusers makes images [H, W, C] from x_t alone. "
            "Export it as weights (to-weights)."
        )
    if diffusion.exploding:
        raise ValueError(
            "the network of a run with --diffusion.exploding takes x_0 + σ ε; DDPMScheduler "
            "always gives it √ᾱ x_0 + √(1-ᾱ) ε."
        )
    process = Process(*(getattr(diffusion, name) for name in Process._fields))
    out = config.out or run.root / "diffusers"
    ours = config.out is None or bool(taken_in(out, [ORIGIN]))
    claim(out, taken_in(out, ("model_index.json", "unet", "scheduler", ORIGIN)), ours=ours)
    # save_diffusers checks everything before it writes: a run without counterpart leaves no folder.
    # The mark comes first, empty: after a kill the folder is known to be ours.
    written = interop.save_diffusers(
        out,
        run.model.network,
        run.params,
        shape,
        process,
        run.model.schedule,
        before_writing=lambda: write_json(out / ORIGIN, {}),
    )
    write_json(out / ORIGIN, _without_folders(run.provenance()))
    written.append(out / ORIGIN)
    which = _parameters(config)
    classes = run.model.num_classes
    kind = "DDPMPipeline" if classes is None else f"UNet2DModel with {classes} classes"
    say(f"{run.title}: {which} parameters, as a {kind} in {out}")
    for path in written:
        say(f"  {path} ({quantity(path.stat().st_size, 'B')})")
    if classes is not None or run.config.network.patch_size > 1:
        say("Sample it in diffusers with these lines:\n")
        say(textwrap.indent(sampling_code(run, out), "    "))


def to_weights(config: ToWeights) -> None:
    """Writes a run's configuration and averaged parameters as two files."""
    run = TrainedRun(config)
    out = config.out or run.root / "weights"
    check_weights_folder(out)
    say(f"{run.title}: its weights in {out}")
    for path in write_weights(run, out, config.dtype):
        say(f"  {path} ({quantity(path.stat().st_size, 'B')})")


def write_weights(run: TrainedRun, out: Path, dtype: WeightsDtype) -> list[Path]:
    """Writes a run's parameters and configuration into a folder; returns the two files."""
    data = dataclasses.replace(run.config.data, path=None, cache_dir=None)
    name = Path("runs") / run.config.run_dir.name
    values = {
        **_without_folders(run.facts),
        "config": _without_folders(
            to_json(dataclasses.replace(run.config, run_dir=name, data=data))
        ),
        "weights": {
            "step": run.step,
            "checkpoint_sha256": run.checkpoint_sha256,
            "parameters": _parameters(run.options),
        },
    }
    return save_weights(out, run.params, values, dtype)


def _without_folders(value: Any) -> Any:
    """A JSON value with absolute paths cut to their last part: they mean nothing elsewhere.

    Names of classes stay: those of Open Images, such as /m/01yrx, look like absolute paths.
    """
    if isinstance(value, dict):
        return {
            name: inner if name == "class_names" else _without_folders(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _parameters(options: RunOptions) -> str:
    name = average_name(options)
    return {"ema": "averaged", "last": "last"}.get(name, f"averaged ({name})")


def train_config(options: ImportOptions, model: ImportedModel) -> TrainConfig:
    """The configuration of a run that would have made this model."""
    height, width, _ = model.image_shape
    unet, process = model.unet, model.process
    name = options.data_name
    if name is None:
        name = "cifar10" if model.image_shape == (32, 32, 3) else "folder"
    data = DataConfig(
        name=name,
        path=options.data_path,
        resolution=height if name == "folder" and height == width else None,
    )
    same = {f.name for f in dataclasses.fields(NetworkConfig)} - {"class_conditional", "dtype"}
    network = NetworkConfig(
        **{name: getattr(unet, name) for name in same},
        class_conditional=unet.num_classes is not None,
    )
    loss = "hybrid" if process.variance == "learned_range" else "simple"
    diffusion = DiffusionConfig(**process._asdict(), loss=loss)
    # No step was taken here, but a run needs at least one.
    return TrainConfig(
        options.run_dir, num_steps=1, data=data, network=network, diffusion=diffusion
    )


def write_run(options: ImportOptions, model: ImportedModel, source: dict[str, Any]) -> None:
    """Writes config.json and a checkpoint of step 0, whose average equals its parameters.

    Raises RunDirectoryError if the folder already holds a run.
    """
    config = train_config(options, model)
    built = build_model(config, model.image_shape, model.unet.num_classes)
    _check_same(built.network, model.unet)
    directory, name = RunDirectory(options.run_dir), shown(options.run_dir)
    directory.acquire()
    try:
        taken = directory.config.exists() or directory.checkpoints.exists()
        if taken or files_behind(directory.root):
            raise RunDirectoryError(
                f"{name} already holds a run. Choose another folder with --run-dir; nothing was "
                "changed."
            )
        say(f"writing {quantity(count_parameters(model.params))} parameters to {name}")
        key = jax.random.split(make_key(config.seed))[1]
        # As one program: leaf by leaf, every shape would be compiled separately.
        state = jax.jit(lambda params: init_state(params, built.optimizer, key))(model.params)
        with Checkpoints(directory.checkpoints) as checkpoints:
            checkpoints.save(0, state)
        data = {
            "name": f"{config.data.name}/train",
            # Unknown; so any data of the right shape are accepted.
            "fingerprint": None,
            "image_shape": list(model.image_shape),
            "num_classes": model.unet.num_classes,
        }
        directory.write(config, {"data": data, "source": source})
    finally:
        directory.release()
    say(f"  sample it with ddpm-jax sample --run-dir {name}")


def _check_same(ours: UNet, wanted: UNet) -> None:
    """Raises ValueError if the configuration lost a part of the network."""
    for name in wanted.__dataclass_fields__:
        if name not in ("dtype", "parent", "name") and getattr(ours, name) != getattr(wanted, name):
            raise ValueError(
                f"a run's configuration cannot express {name}={getattr(wanted, name)!r} of this "
                f"network; it would become {getattr(ours, name)!r}."
            )
