"""One training run: its model, data, devices and folder; its held-out loss and its pictures."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from ddpm_jax.data import DataSet, ImageDataset, ShuffledIndices, fits_on_device
from ddpm_jax.data.registry import load_from
from ddpm_jax.devices import processes
from ddpm_jax.devices.batched import RowSplit, batches
from ddpm_jax.devices.cpu import keep_freed_memory, one_device_per_core
from ddpm_jax.devices.mesh import ROWS, WHOLE, fetch
from ddpm_jax.files import user_path
from ddpm_jax.keys import example_keys, make_key
from ddpm_jax.nn import count_parameters
from ddpm_jax.programs import pictures
from ddpm_jax.programs.averages import extra_emas
from ddpm_jax.programs.build import (
    build_model_of,
    build_sampler,
    check_splits,
    heldout_plan,
    load_data,
)
from ddpm_jax.programs.compilation import keep_compiled_programs
from ddpm_jax.programs.conditions import check_data
from ddpm_jax.programs.config import SamplerOptions, TrainConfig, check_config
from ddpm_jax.programs.diffusion import loss_name
from ddpm_jax.programs.generator import Conditions, Generated, Generator, Stopped
from ddpm_jax.programs.model import Model
from ddpm_jax.programs.run_directory import RunDirectory, check_facts, check_sizes
from ddpm_jax.training import TrainState, choose_devices, make_train_step
from ddpm_jax.training.sharding import DataParallel
from ddpm_jax.types import Device


class HeldOut(NamedTuple):
    """Means over held-out data: the training loss, and an estimate of the bound in bits/dim."""

    loss: float
    bits_per_dim: float


def data_facts(data: ImageDataset) -> dict[str, Any]:
    """What a run's numbers depend on besides its configuration, as config.json keeps it."""
    facts: dict[str, Any] = {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "image_shape": list(data.images.shape[1:]),
        "num_classes": data.num_classes,
    }
    if data.class_names is not None:
        facts["class_names"] = list(data.class_names)
    for name, condition in data.conditions.items():
        if name != "context_mask":
            facts[f"{name}_features"] = condition.shape[-1]
    return facts


def _warn_of_missing_classes(data: ImageDataset, labelled: bool) -> None:
    """Warns of classes that a class-conditional network is to draw and never sees."""
    if not labelled or data.num_classes is None:
        return
    missing = np.flatnonzero(np.bincount(data.labels, minlength=data.num_classes) == 0)
    if len(missing):
        names = data.class_names or range(data.num_classes)
        few = ", ".join(str(names[i]) for i in missing[:10]) + ", …" * (len(missing) > 10)
        warnings.warn(
            f"{len(missing)} of {data.num_classes} classes have no training image ({few}): samples "
            "of them will mean nothing. Number the classes from 0 without gaps, add images, or "
            "hold out fewer.",
            stacklevel=3,
        )


def _check_path(config: TrainConfig) -> None:
    """Raises ValueError for a --data.path that could not mean what it says.

    Digits have none. A folder of images may not hold the run directory: the run's pictures would
    join them, and no run resumes with other data.
    """
    if config.data.path is None:
        return
    if config.data.name == "digits":
        raise ValueError(
            "--data.name digits is part of scikit-learn and takes no --data.path, got "
            f"{config.data.path}. Your own images are the data set folder: ddpm-jax train folder."
        )
    if config.data.name != "folder":
        return
    run, images = config.run_dir.resolve(), user_path(config.data.path).resolve()
    inside = run.parts[len(images.parts) :] if run.is_relative_to(images) else (".",)
    if not any(part.startswith(".") for part in inside):  # as `list_images` leaves out
        raise ValueError(
            f"--run-dir {config.run_dir} lies in --data.path {config.data.path}, so that the "
            "pictures of the run would become data. Choose a --run-dir outside."
        )


class TrainingRun:
    """A training run in progress: its model, data, devices and folder.

    Raises ValueError for a configuration that cannot be trained, OSError for unreadable data.
    """

    def __init__(self, config: TrainConfig, data_set: DataSet | None = None):
        check_config(config)
        check_sizes(config)
        if data_set is None:
            _check_path(config)
        self.config = config
        labelled = config.network.class_conditional

        def load(split: Literal["train", "heldout"]) -> ImageDataset:
            if data_set is not None:
                return load_from(data_set, split, "given to train")
            return load_data(config.data, split, labelled=labelled)

        self.train_data, self.heldout_data = load("train"), load("heldout")
        data, devices = self.train_data, config.devices
        image_shape = data.images.shape[1:]
        check_facts(data_facts(data))
        check_splits(data, self.heldout_data, labelled=labelled)
        _warn_of_missing_classes(data, labelled)
        processes.pin_random_numbers()
        # Before JAX starts its threads, which choosing the devices does.
        keep_freed_memory(config.batch_size, image_shape, config.network.channels)
        # A CPU's cores are separate devices only for sampling (`one_device_per_core`).
        every_core = devices.count is None and one_device_per_core() is not None
        self.parallel: DataParallel = choose_devices(
            devices.backend,
            1 if every_core else devices.count,
            parameter_shards=devices.parameter_shards,
        )
        self.sampling_devices: tuple[Device, ...] = (
            tuple(jax.local_devices()) if every_core else self.parallel.devices
        )
        self.model: Model = build_model_of(config, data_facts(data))
        if len(self.heldout_data.images):
            check_data(self.model.condition_shapes, self.heldout_data)
        self.train_step = make_train_step(
            self.model.training_losses,
            self.model.optimizer,
            ema_decay=config.optimizer.ema_decay,
            ema_warmup=config.optimizer.ema_warmup,
            update_loss_state=self.model.update_loss_state,
            num_microbatches=devices.microbatches,
            spike_factor=config.optimizer.spike_factor,
            extra_emas=extra_emas(config.optimizer),
        )
        self.parallel.check_batch_size(config.batch_size, devices.microbatches)
        self.directory = RunDirectory(config.run_dir)
        platform = self.parallel.devices[0].platform
        self.max_chunk = config.devices.steps_per_dispatch or (1 if platform == "cpu" else 10)
        self.resident = fits_on_device(self.train_data, int(config.devices.resident_gib * 2**30))
        kept = float(self.model.schedule.signal_scale[-1])
        if kept > 0.05 and not config.diffusion.exploding:
            warnings.warn(
                f"x_T keeps {kept:.0%} of x_0 (√ᾱ_T = {kept:.3f}), and sampling starts from pure "
                "noise. β of 1e-4 to 0.02 belongs to T = 1000: with T steps scale both by 1000/T.",
                stacklevel=2,
            )
        keep_compiled_programs()
        # Built now, so that invalid steps are refused before training rather than after it.
        _ = self.generator, self.sheet_generator

    @property
    def facts(self) -> dict[str, Any]:
        """What the run's numbers depend on besides its configuration."""
        return {"data": data_facts(self.train_data)}

    def indices(self) -> ShuffledIndices:
        """The order in which the training data is visited."""
        return ShuffledIndices(
            len(self.train_data.images), self.config.batch_size, self.config.seed
        )

    def describe(self, state: TrainState) -> str:
        """Two lines about what is going to run."""
        c, devices, several = self.config, self.parallel.devices, processes.num_processes()
        return (
            f"{self.train_data.name}: {len(self.train_data.images):,} images of "
            f"{'×'.join(map(str, self.model.image_shape))}, {len(self.heldout_data.images):,} "
            "held out\n"
            f"{count_parameters(state.params):,} parameters, batch {c.batch_size}, "
            f"{c.num_steps:,} steps on {len(devices)} × {devices[0].device_kind} "
            f"({self.parallel.backend}{f', {several} processes' if several > 1 else ''})"
        )

    @functools.cached_property
    def _heldout_losses(self) -> tuple[RowSplit, Callable[..., Any]]:
        """The devices that share a batch, and the function that returns its losses [B, 2]."""

        def losses(params, images, conditions, t, index):
            keys = example_keys(make_key(0), index)
            return self.model.heldout_losses(params, images, conditions, t, keys)

        split = RowSplit(self.parallel.devices)
        return split, split.map(losses, (WHOLE, ROWS, ROWS, ROWS, ROWS))

    def heldout_loss(
        self,
        params: Any,
        data: ImageDataset,
        draws: int,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> HeldOut:
        """The mean loss over a fixed plan of images, steps and noise; Stopped if should_stop()."""
        which, t, weight = heldout_plan(draws, len(data.images), self.model.schedule.num_timesteps)
        split, losses_of = self._heldout_losses
        # At most as many images at a time as a training step has on each device.
        count = len(self.parallel.devices)
        size = split.round_up(min(draws, count * min(256, max(1, self.config.batch_size // count))))
        params, total = split.replicate(params), np.zeros(2)
        for rows in batches(draws, size):
            if should_stop():
                raise Stopped
            batch = (
                data.images[which[rows]],
                self.model.conditions(data, which[rows]),
                t[rows],
                np.arange(rows.start, rows.stop, dtype=np.uint32),
            )
            losses = fetch(losses_of(params, *split.put(batch, size)))
            total += weight[rows] @ np.asarray(losses, np.float64)[: rows.stop - rows.start]
        return HeldOut(*(total / draws).tolist())

    def draw_sheet(self, state: TrainState, step: int, should_stop: Callable[[], bool]) -> None:
        """Draws samples of the averaged parameters with DDIM; nothing if should_stop()."""
        report = self.config.report
        try:
            made = self._draw(
                self.sheet_generator,
                state,
                f"samples at step {step}",
                report.sample_count,
                leave=False,
                should_stop=should_stop,
            )
        except Stopped:
            return
        if processes.is_leader():
            self.directory.follow()
            pictures.save_sheet(self.sheet_path(step), made.images)

    def _draw(
        self, generator: Generator, state: TrainState, title: str, count: int, **options: Any
    ) -> Generated:
        """Draws images of the averaged parameters, of all classes in turn."""
        return pictures.draw_images(
            generator,
            state.ema_params,
            title,
            seed=self.config.seed,
            count=count,
            batch_size=count,
            labels=self.model.cycled_labels(count),
            conditions=self.sample_conditions(count),
            **options,
        )

    def sample_conditions(self, count: int) -> Conditions:
        """What sheets of samples are conditioned on besides labels: held-out, or training's."""
        data = self.heldout_data if len(self.heldout_data.images) else self.train_data
        return self.model.other_conditions(data, np.arange(count) % len(data.images))

    def sheet_path(self, step: int) -> Path:
        """The file of a step's sheet of samples."""
        return self.directory.sheets / f"step_{step:07d}.png"

    def _generator(self, flags: str, options: SamplerOptions, **more: Any) -> Generator:
        model = self.model
        try:
            sampler = build_sampler(
                model.schedule,
                options,
                variance=self.config.diffusion.variance,
                process=model.process,
                times=model.times,
            )
        except ValueError as error:
            # The message names the options of sampling.
            message = str(error).replace("--sampler", "--report.final-sampler")
            raise ValueError(f"{flags}: {message}") from error
        guided = model.guided(self.config.report.guidance)
        return Generator(sampler, guided, model.image_shape, devices=self.sampling_devices, **more)

    @functools.cached_property
    def sheet_generator(self) -> Generator:
        """The sampler of the sheets drawn during training: DDIM in few steps."""
        report = self.config.report
        num_steps = min(report.sample_steps, self.model.schedule.num_timesteps)
        options = SamplerOptions("ddim", num_steps=num_steps, spacing=report.spacing)
        return self._generator("--report.sample-steps", options, target_chunks=10)

    @functools.cached_property
    def generator(self) -> Generator:
        """The sampler of the final pictures: ancestral, as in the paper, or NCSN's."""
        report = self.config.report
        options = SamplerOptions(
            report.final_sampler,
            num_steps=report.final_steps,
            spacing=report.spacing,
            langevin_steps=report.langevin_steps,
            langevin_rate=report.langevin_rate,
        )
        return self._generator("--report.final-sampler and --report.final-steps", options)

    def draw_final_pictures(
        self, state: TrainState, should_stop: Callable[[], bool]
    ) -> tuple[Path, ...]:
        """Draws samples, denoising GIF and, of a log with steps, the loss curve; their paths.

        Raises Stopped if should_stop().
        """
        report = self.config.report
        frames_of = min(report.final_count, 36)
        options = {"frames_of": frames_of, "should_stop": should_stop}
        made = self._draw(self.generator, state, "sampling", report.final_count, **options)

        def save() -> None:
            root = self.directory.follow()
            paths = _picture_paths(root)
            pictures.save_sheet(paths[0], made.images)
            if made.frames is not None:
                pictures.save_film(paths[1], made.frames)
            title = f"{self.train_data.name}: {loss_name(self.config.diffusion)}"
            pictures.save_loss_curve(root / "log.jsonl", paths[2], title)

        processes.on_leader(save)
        paths = _picture_paths(self.directory.root)
        return tuple(path for path in paths if path.exists())


def _picture_paths(root: Path) -> tuple[Path, Path, Path]:
    """Samples, denoising GIF and loss curve."""
    return root / "samples.png", root / "denoising.gif", root / "loss.png"
