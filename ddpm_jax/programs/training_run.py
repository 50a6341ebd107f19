"""One training run: its model, data, devices and folder, and what can be asked of it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax.data import ImageDataset, ShuffledIndices, fits_on_device
from ddpm_jax.devices import processes
from ddpm_jax.devices.cpu import one_device_a_core
from ddpm_jax.keys import example_keys
from ddpm_jax.nn import count_parameters
from ddpm_jax.programs import pictures
from ddpm_jax.programs.build import build_model, build_sampler, heldout_plan, load_data
from ddpm_jax.programs.config import SamplerOptions, TrainConfig
from ddpm_jax.programs.console import quantity
from ddpm_jax.programs.generator import Generator, Stopped
from ddpm_jax.programs.model import Model, loss_name
from ddpm_jax.programs.run_directory import RunDirectory
from ddpm_jax.training import TrainState, choose_devices
from ddpm_jax.training.sharding import DataParallel
from ddpm_jax.types import Device


class HeldOut(NamedTuple):
    """What held-out data cost: the training loss, and an estimate of the bound in bits/dim."""

    loss: float
    bits_per_dim: float


class Run:
    """One training run being carried out: its model, data, devices and folder."""

    def __init__(self, config: TrainConfig):
        check_config(config)
        self.config = config
        devices = config.devices
        # A CPU's cores are devices of their own for sampling only: see there.
        every_core = devices.count is None and one_device_a_core() is not None
        self.parallel: DataParallel = choose_devices(
            devices.backend,
            1 if every_core else devices.count,
            parameter_shards=devices.parameter_shards,
        )
        self.sampling_devices: tuple[Device, ...] = (
            tuple(jax.local_devices()) if every_core else self.parallel.devices
        )
        self.parallel.check_batch_size(config.batch_size, devices.microbatches)
        self.train_data: ImageDataset = load_data(config.data, "train")
        self.heldout_data: ImageDataset = load_data(config.data, "heldout")
        data = self.train_data
        self.model: Model = build_model(config, data.images.shape[1:], data.num_classes)
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
        # Built now, so that steps they cannot take are refused before training and not after it.
        _ = self.generator, self.sheet_generator

    @property
    def facts(self) -> dict[str, Any]:
        """What the numbers depend on beside the configuration."""
        return {
            "data": {
                "name": self.train_data.name,
                "fingerprint": self.train_data.fingerprint,
                "image_shape": list(self.model.image_shape),
                "num_classes": self.train_data.num_classes,
            }
        }

    def indices(self) -> ShuffledIndices:
        """The order of the training data."""
        return ShuffledIndices(
            len(self.train_data.images), self.config.batch_size, self.config.seed
        )

    def describe(self, state: TrainState, flops: float | None) -> str:
        """What is about to run, in two lines."""
        c, devices, several = self.config, self.parallel.devices, processes.num_processes()
        cost = f"{quantity(flops, 'FLOP')} a step" if flops else "FLOPs unknown"
        return (
            f"{self.train_data.name}: {len(self.train_data.images):,} images of "
            f"{'×'.join(map(str, self.model.image_shape))}, {len(self.heldout_data.images):,} "
            "held out\n"
            f"{count_parameters(state.params):,} parameters, batch {c.batch_size}, {cost}, "
            f"{c.num_steps:,} steps on {len(devices)} × {devices[0].device_kind} "
            f"({self.parallel.backend}{f', {several} processes' if several > 1 else ''})"
        )

    @functools.cached_property
    def _heldout_fn(self) -> Callable[..., Any]:
        """The losses of a batch of images, each device computing those of its rows."""
        rows, whole = PartitionSpec(processes.AXES), PartitionSpec()

        def losses(params, images, labels, t, index):
            keys = example_keys(jax.random.key(0), index)
            return self.model.heldout_losses(params, images, labels, t, keys)

        mesh = self.parallel.mesh
        return jax.jit(
            jax.shard_map(
                losses, mesh=mesh, in_specs=(whole, rows, rows, rows, rows), out_specs=rows
            )
        )

    def heldout_loss(
        self,
        params: Any,
        data: ImageDataset,
        draws: int,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> HeldOut:
        """The mean loss over a fixed plan of images, steps and noise; Stopped when asked to."""
        which, t = heldout_plan(draws, len(data.images), self.model.schedule.num_timesteps)
        # No more images at once than a training step has on each device.
        count = len(self.parallel.devices)
        size = min(256, max(1, self.config.batch_size // count), -(-draws // count)) * count
        total = np.zeros(2)
        labels = None if self.model.num_classes is None else data.labels[which]
        params = processes.spread(params, self.parallel.replicated)
        rows = NamedSharding(self.parallel.mesh, PartitionSpec(processes.AXES))
        for first in range(0, draws, size):
            # The last batch is filled up with its last draw, which is not counted again.
            index = np.minimum(np.arange(first, first + size), draws - 1)
            if should_stop():
                raise Stopped
            batch = (
                data.images[which[index]],
                None if labels is None else labels[index],
                t[index],
                index.astype(np.uint32),
            )
            losses = processes.fetch(self._heldout_fn(params, *processes.put(batch, rows)))
            total += np.asarray(losses, np.float64)[: draws - first].sum(axis=0)
        return HeldOut(*(total / draws).tolist())

    def sheet(self, state: TrainState, step: int, should_stop: Callable[[], bool]) -> None:
        """Draws samples of the averaged parameters as they are now, by DDIM."""
        report = self.config.report
        try:
            made = pictures.draw_images(
                self.sheet_generator,
                state.ema_params,
                f"samples at step {step}",
                seed=self.config.seed,
                count=report.sample_count,
                batch_size=report.sample_count,
                labels=self.model.cycled_labels(report.sample_count),
                leave=False,
                should_stop=should_stop,
            )
        except Stopped:
            return
        if processes.is_leader():
            pictures.visualize.save_grid(self.sheet_path(step), made.images)

    def sheet_path(self, step: int) -> Path:
        """Where the sheet of a step lies."""
        return self.directory.sheets / f"step_{step:07d}.png"

    @functools.cached_property
    def sheet_generator(self) -> Generator:
        """The sampler of the sheets made on the way: DDIM, in few steps."""
        report = self.config.report
        num_steps = min(report.sample_steps, self.model.schedule.num_timesteps)
        options = SamplerOptions("ddim", num_steps=num_steps, spacing=report.spacing)
        sampler = build_sampler(self.model.schedule, options)
        return Generator(
            sampler,
            self.model.guided(report.guidance),
            self.model.image_shape,
            devices=self.sampling_devices,
            target_chunks=10,
        )

    @functools.cached_property
    def generator(self) -> Generator:
        """The sampler of the last pictures: ancestral, as in the paper, or NCSN's."""
        report = self.config.report
        options = SamplerOptions(
            report.final_sampler,
            num_steps=report.final_steps,
            spacing=report.spacing,
            langevin_steps=report.langevin_steps,
            langevin_rate=report.langevin_rate,
        )
        sampler = build_sampler(
            self.model.schedule, options, variance=self.config.diffusion.variance
        )
        return Generator(
            sampler,
            self.model.guided(report.guidance),
            self.model.image_shape,
            devices=self.sampling_devices,
        )

    def final_pictures(self, state: TrainState, should_stop: Callable[[], bool]) -> None:
        """The last sheet and the GIF, and the loss curve."""
        report, root = self.config.report, self.directory.root
        made = pictures.draw_images(
            self.generator,
            state.ema_params,
            "sampling",
            seed=self.config.seed,
            count=report.final_count,
            batch_size=report.final_count,
            labels=self.model.cycled_labels(report.final_count),
            frames_of=min(report.final_count, 36),
            should_stop=should_stop,
        )

        def save() -> None:
            pictures.visualize.save_grid(root / "samples.png", made.images)
            if made.frames is not None:
                pictures.visualize.save_gif(root / "denoising.gif", made.frames)
            pictures.save_loss_curve(
                root / "log.jsonl",
                root / "loss.png",
                f"{self.train_data.name}: {loss_name(self.config.diffusion)}",
            )

        processes.on_leader(save)


def check_config(config: TrainConfig) -> None:
    """Raises ValueError for values that no run could use, before anything is loaded."""
    if config.num_steps < 1:
        raise ValueError(f"--num-steps must be at least 1, got {config.num_steps}.")
    if config.max_bad_steps < 1:
        raise ValueError(f"--max-bad-steps must be at least 1, got {config.max_bad_steps}.")
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"--seed must be in 0..2³²-1, got {config.seed}.")
    factor = config.optimizer.spike_factor
    if factor is not None and not factor > 1:
        raise ValueError(
            f"--optimizer.spike-factor must be more than 1, got {factor}: it is a multiple of the "
            "mean loss."
        )
    for name in ("parameter_shards", "microbatches"):
        if getattr(config.devices, name) < 1:
            raise ValueError(
                f"--devices.{name.replace('_', '-')} must be at least 1, got "
                f"{getattr(config.devices, name)}."
            )
    steps = config.devices.steps_per_dispatch
    if steps is not None and steps < 1:
        raise ValueError(f"--devices.steps-per-dispatch must be at least 1, got {steps}.")
    if not 0 <= config.devices.resident_gib < 2**20:
        raise ValueError(
            "--devices.resident-gib must be a number of GiB from 0, got "
            f"{config.devices.resident_gib}."
        )
    if not 0 <= config.devices.watchdog_seconds < 2**30:
        raise ValueError(
            "--devices.watchdog-seconds must be a number of seconds, 0 for no watchdog, got "
            f"{config.devices.watchdog_seconds}."
        )
    if not 0 <= config.optimizer.ema_decay < 1:
        raise ValueError(
            f"--optimizer.ema-decay must be in [0, 1), got {config.optimizer.ema_decay}. At 1 the "
            "average would never move."
        )
    for name, value in vars(config.report).items():
        if isinstance(value, int) and value < 0:
            raise ValueError(
                f"--report.{name.replace('_', '-')} must not be negative, got {value}."
            )
    for name in ("sample_count", "sample_steps", "final_count", "heldout_draws", "checkpoint_keep"):
        if getattr(config.report, name) < 1:
            raise ValueError(f"--report.{name.replace('_', '-')} must be at least 1, got 0.")
