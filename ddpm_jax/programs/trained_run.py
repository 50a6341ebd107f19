"""A trained run, opened from its folder for sampling and analysis."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from ddpm_jax.data import ImageDataset
from ddpm_jax.data.labels import class_number, known_classes
from ddpm_jax.data.registry import is_function
from ddpm_jax.denoisers.guidance import Scale
from ddpm_jax.denoisers.prediction import Target
from ddpm_jax.denoisers.thresholds import Clip
from ddpm_jax.devices import processes
from ddpm_jax.devices.cpu import keep_freed_memory, one_device_per_core
from ddpm_jax.files import user_path
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_real, check_steps, check_text, check_whole
from ddpm_jax.programs.averages import average_name, restore_params
from ddpm_jax.programs.buckets import readable_run, shown
from ddpm_jax.programs.build import build_model_of, build_sampler, check_unused, load_data
from ddpm_jax.programs.compilation import keep_compiled_programs
from ddpm_jax.programs.conditions import check_data, conditions_for, in_turn
from ddpm_jax.programs.config import SamplerOptions, TrainConfig, check_seed
from ddpm_jax.programs.config_values import with_types
from ddpm_jax.programs.denoiser_errors import measured_x_0_mse
from ddpm_jax.programs.generator import Conditions, Generator
from ddpm_jax.programs.model import Model
from ddpm_jax.programs.outputs import study_folder
from ddpm_jax.programs.paths import with_local_paths
from ddpm_jax.programs.pictures import draw_images
from ddpm_jax.programs.run_directory import RunDirectory, RunDirectoryError, make_writable
from ddpm_jax.programs.run_options import RunOptions as RunOptions
from ddpm_jax.programs.run_options import check_source
from ddpm_jax.programs.weights import find_model, has_weights, is_model_name, read_weights
from ddpm_jax.samplers import Sampler
from ddpm_jax.training import DataParallel, choose_devices
from ddpm_jax.types import Array, ArrayLike, Denoiser, PyTree, as_array

DATA_OPTIONS = (
    (r"--data\.(path|name)\b", r"--data-\1"),
    (r"--data\.[a-z]", r"the training script's \g<0>"),
    ("download=True", "--data.download in training, which keeps the data in the cache"),
)
"""What the options of training that messages about data name are called in other programs."""


class TrainedRun:
    """A trained run: its model, its parameters at one step, and its data.

    Raises ValueError, RunDirectoryError, DamagedCheckpointError or MismatchedCheckpointError if the
    folder holds no run, or the options do not fit it.
    """

    def __init__(self, options: RunOptions):
        options = with_types("TrainedRun", options, RunOptions)
        check_source(options)
        check_seed(options.seed)
        self.options = options = with_local_paths(options)
        source = readable_run(options.run_dir, options.checkpoint, options.ema_sigma_rel)
        self.root, self.name = options.run_dir, shown(options.run_dir)
        if options.pretrained is not None or is_model_name(source):
            self.name, source, self.root = find_model(options.pretrained or self.name)
        self.directory = RunDirectory(source)
        self.config: TrainConfig
        self.config, self.facts = self.directory.read()
        data = self.facts["data"]
        image_shape = tuple(data["image_shape"])
        processes.pin_random_numbers()
        # These must come before the first use of JAX.
        keep_freed_memory(self.config.batch_size, image_shape, self.config.network.channels)
        one_device_per_core()
        keep_compiled_programs()
        self.model: Model = build_model_of(self.config, data)
        parallel = choose_devices(count=options.num_devices)
        self.devices = parallel.devices
        if processes.num_processes() == 1:
            parallel = DataParallel("jit", self.devices[:1])
        like = parallel.placeholder(self.model.init_shapes())
        self.params: PyTree
        if has_weights(source):
            if options.checkpoint is not None or average_name(options) != "ema":
                raise ValueError(
                    f"{self.name} holds only one average, of one step: leave out --checkpoint, "
                    "--no-ema, --ema-decay and --ema-sigma-rel."
                )
            about = self.facts.get("weights", {})
            self.params, self.step, self.checkpoint_sha256 = read_weights(
                source, about, like.ema_params
            )
            return
        self.params, self.step, self.checkpoint_sha256 = restore_params(
            self.directory.checkpoints, like, options, self.config.optimizer
        )

    @property
    def title(self) -> str:
        """The name and the step, for messages: "runs/digits at step 200 of 4,000"."""
        unfinished = self.step < self.config.num_steps
        return f"{self.name} at step {self.step:,}" + (
            f" of {self.config.num_steps:,}" if unfinished else ""
        )

    @property
    def schedule(self) -> NoiseSchedule:
        """The schedule of the full process."""
        return self.model.schedule

    @property
    def target(self) -> Target:
        """What `apply_fn` predicts; x_0 for a continuous process, whatever the network does."""
        return self.model.target

    @property
    def clip(self) -> bool:
        """Whether x̂_0 is clipped to [-1, 1]."""
        return self.config.diffusion.clip

    def apply_fn(
        self, x_t: Array, timesteps: Array, label: Array | None = None, **conditions: Array | None
    ) -> Array:
        """The trained network `(x_t, timesteps) -> output`, with the `Conditions` it takes.

        x_t is [B, H, W, C]; H and W may differ from the run's. Raises ValueError for other shapes.
        """
        check_real("TrainedRun.apply_fn", x_t=x_t)
        check_steps("TrainedRun.apply_fn", timesteps, self.schedule.num_timesteps)
        return self.model.bind(self.params, label=label, **conditions)(x_t, timesteps)

    def denoiser(
        self,
        label: ArrayLike | None = None,
        *,
        guidance: Scale = 1.0,
        clip: Clip | None = None,
        rescale: float = 0.0,
        **conditions: Array | None,
    ) -> Denoiser:
        """The denoiser `(x_t, t) -> x̂_0` for `Conditions`, guided like `classifier_free`."""
        labels = None if label is None else as_array("denoiser", "label", label)
        return self.model.guided(guidance, clip, rescale)(self.params, labels, **conditions)

    def sample(
        self,
        count: int,
        *,
        sampler: str = "ancestral",
        num_steps: int | None = None,
        label: int | str | None = None,
        conditions: Conditions | None = None,
        guidance: float = 1.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Draws uint8 images [count, H, W, C], or signals or volumes.

        Image i depends on the seed and i alone. Shows a progress bar on standard error.

        Args:
            count: number of images.
            sampler: a name from `ddpm-jax list`.
            num_steps: steps of the sampler; None for all T.
            label: class of all images by number or name; None to cycle through the classes.
            conditions: "cond" [M, D], "context" [M, L, D], "concat" [M, H, W, C], used in turn.
            guidance: scale of classifier-free guidance; 1 for none.
            seed: of all noise.
            batch_size: images per batch; changes only speed and memory.

        Raises ValueError for a count below 1, and for options that do not fit the run.
        """
        count = check_whole("sample", "count", count)
        batch_size = check_whole("sample", "batch_size", batch_size)
        options = SamplerOptions(cast(Any, sampler), num_steps=num_steps)
        generator = self.generator(self.sampler(options), guidance=guidance)
        given = {} if conditions is None else conditions
        given = conditions_for(self.model.condition_shapes, given, "sample")
        return draw_images(
            generator,
            self.params,
            count=count,
            seed=seed,
            batch_size=min(count, batch_size),
            labels=self.labels(count, label),
            conditions=in_turn(given, np.arange(count)),
        ).images

    def folder(self, name: str) -> Path:
        """Makes the output folder of a program; RunDirectoryError if that fails."""
        check_text("folder", "name", name)
        out = self.options.out or self.root / name
        processes.on_leader(lambda: make_writable(out))
        return out

    def study_folder(self, name: str, files: Sequence[str]) -> Path:
        """The folder of a study of this run, for these files; see `outputs.study_folder`."""
        return study_folder(name, files, self.options.out, self.root)

    def provenance(self) -> dict[str, Any]:
        """The origin of a result, stored with every result of this run."""
        name = average_name(self.options)
        return {
            "run": self.name,
            "data": self.facts["data"],
            "checkpoint_step": self.step,
            "checkpoint_sha256": self.checkpoint_sha256,
            "ema": self.options.ema,
            **({} if name in ("ema", "last") else {"average": name}),
            "seed": self.options.seed,
            "device": self.devices[0].device_kind,
            "jax": jax.__version__,
        }

    @functools.cached_property
    def train_data(self) -> ImageDataset:
        """The data the run was trained on; RunDirectoryError if they have changed since.

        The fingerprint of imported weights is unknown; any data of the right shape are accepted.
        """
        data = self._load("train")
        trained_on = self.facts["data"]["fingerprint"]
        if trained_on is not None and data.fingerprint != trained_on:
            raise RunDirectoryError(
                f"{data.name} is not what {self.name} was trained on (fingerprint now "
                f"{data.fingerprint}, then {trained_on}). Name the right data with --data-path."
            )
        return data

    @functools.cached_property
    def heldout_data(self) -> ImageDataset:
        """The held-out data."""
        return self._load("heldout")

    def need_heldout(self, least: int) -> ImageDataset:
        """The held-out data; RunDirectoryError if they are fewer than `least` images."""
        least, data = check_whole("need_heldout", "least", least, least=0), self.heldout_data
        if len(data.images) < least:
            raise RunDirectoryError(
                f"at least {least} held-out images are needed, and {self.name} holds out "
                f"{len(data.images)}. Train with a larger --data.holdout."
            )
        return data

    def _load(self, split: Any) -> ImageDataset:
        options = {"path": self.options.data_path, "name": self.options.data_name}
        given = {name: value for name, value in options.items() if value is not None}
        # The stored config may be someone else's: ignore its cache_dir, download and functions.
        config = dataclasses.replace(self.config.data, cache_dir=None, download=False, **given)
        if is_function(config.name) and "name" not in given:
            raise RunDirectoryError(
                f"{self.name} was trained on data of a function, {config.name}. Name a function "
                "that you trust: --data-name package.module:function."
            )
        try:
            data = load_data(config, split, labelled=self.model.num_classes is not None)
        except (ValueError, OSError) as error:
            # The message names the options of training; here nothing is downloaded.
            message = str(error)
            for option, here in DATA_OPTIONS:
                message = re.sub(option, here, message)
            if message == str(error):
                raise
            raise RunDirectoryError(message) from error
        if data.images.shape[1:] != self.model.image_shape:
            shapes = (data.images.shape[1:], self.model.image_shape)
            have, want = ("×".join(map(str, shape)) for shape in shapes)
            raise RunDirectoryError(
                f"{data.name} has images of {have}, and {self.name} makes images of "
                f"{want}. Name its own data with --data-path."
            )
        if len(data.images):
            check_data(self.model.condition_shapes, data)
        return data

    def labels(self, count: int, label: int | str | None = None) -> np.ndarray | None:
        """The labels [count]: one class, or all in turn; None if the network takes no labels.

        A class is given by number or name. Raises ValueError for one that the run does not have.
        """
        count = check_whole("labels", "count", count)
        classes, names = self.model.num_classes, self.facts["data"].get("class_names") or []
        if label is None:
            return self.model.cycled_labels(count)
        if classes is None:
            raise ValueError(
                f"--label {label}: {self.name} was trained without labels. Leave it out, or use a "
                "run with --network.class-conditional, as of ddpm-jax train digits_conditional."
            )
        number = class_number(label, classes, names)
        if number is None:
            known = known_classes(classes, names)
            raise ValueError(f"--label {label!r} is not a class of this run: {known}.")
        return np.full(count, number)

    def sampler(self, options: SamplerOptions) -> Sampler:
        """The sampler that the options name, with this run's variance unless they name another."""
        options = with_types("sampler", options, SamplerOptions)
        check_unused(options)
        mse = self.x_0_mse if options.variance == "analytic" else None
        return build_sampler(
            self.model.schedule,
            options,
            variance=self.config.diffusion.variance,
            x_0_mse=mse,
            process=self.model.process,
            times=self.model.times,
        )

    def generator(
        self,
        sampler: Sampler,
        *,
        guidance: Scale = 1.0,
        clip: Clip | None = None,
        rescale: float = 0.0,
        target_chunks: int = 40,
    ) -> Generator:
        """A generator of images on this run's devices; call it with this run's `params`."""
        return Generator(
            sampler,
            self.model.guided(guidance, clip, rescale),
            self.model.image_shape,
            devices=self.devices,
            target_chunks=target_chunks,
        )

    @functools.cached_property
    def x_0_mse(self) -> np.ndarray:
        """The denoiser's mean squared errors [T], from which the analytic variance follows."""
        return measured_x_0_mse(self)


def load_run(source: str | Path, **options: Any) -> TrainedRun:
    """Opens a trained model: a run directory, a folder of weights, or a model's name.

    A name is that of a model in the package, or `hub:OWNER/NAME@REVISION`, whose run's `name` then
    contains the commit. A folder takes precedence over a name. `options` are the other fields of
    `RunOptions`. Raises the errors of `TrainedRun`, and TypeError for unknown options.
    """
    user_path(source, "load_run")
    known = {f.name for f in dataclasses.fields(RunOptions)} - {"run_dir", "pretrained"}
    if unknown := sorted(options.keys() - known):
        raise TypeError(f"load_run got {unknown}. Its options are {sorted(known)}.")
    return TrainedRun(RunOptions(Path(source), **options))
