"""Builds the objects that a configuration names; the only place where names become functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from ddpm_jax import forward
from ddpm_jax.data import DataOptions, ImageDataset, load_named
from ddpm_jax.denoisers.optimal_variance import optimal_log_variance
from ddpm_jax.denoisers.prediction import Variance, is_learned
from ddpm_jax.forward import ContinuousProcess, NoiseSchedule
from ddpm_jax.nn import UNet
from ddpm_jax.nn.unet import parameter_shapes
from ddpm_jax.programs.buckets import check_fetched
from ddpm_jax.programs.config import (
    DataConfig,
    DiffusionConfig,
    NetworkConfig,
    SamplerOptions,
    TrainConfig,
)
from ddpm_jax.programs.continuous import build_process, table_of_times
from ddpm_jax.programs.diffusion import check_diffusion
from ddpm_jax.programs.inputs import input_shape, network_cond_features
from ddpm_jax.programs.model import Model
from ddpm_jax.programs.named import SAMPLERS, SCHEDULES, SamplerInputs, named
from ddpm_jax.samplers import Sampler
from ddpm_jax.training import learning_rate_schedule, make_optimizer


def build_schedule(config: DiffusionConfig) -> NoiseSchedule:
    """The noise schedule a configuration names."""
    schedule = named("--diffusion.schedule", SCHEDULES, config.schedule)(config)
    if config.zero_terminal_snr:
        schedule = forward.rescale_zero_terminal_snr(schedule)
    stretched = " with --diffusion.zero-terminal-snr" if config.zero_terminal_snr else ""
    if float(schedule.signal_scale[-1]) == 0.0 and config.target in ("epsilon", "score"):
        raise ValueError(
            f"--diffusion.schedule {config.schedule}{stretched} ends without signal, where "
            f"--diffusion.target {config.target} does not determine x_0. Use the target v or x_0."
        )
    if float(schedule.signal_scale[-1]) == 0.0 and config.exploding:
        raise ValueError(
            "--diffusion.exploding gives the network x_0 + σ noise, and σ is infinite at the end "
            f"of --diffusion.schedule {config.schedule}{stretched}. Leave one of the two out."
        )
    return schedule


def build_sampler(
    schedule: NoiseSchedule,
    options: SamplerOptions,
    *,
    variance: Variance = "fixed_large",
    x_0_mse: np.ndarray | None = None,
    process: ContinuousProcess | None = None,
    times: np.ndarray | None = None,
) -> Sampler:
    """The sampler that the options name, over `num_steps` of the schedule's steps (None for all).

    `variance` is the one the network was trained with; the analytic variance is computed from
    `x_0_mse` [T]. A continuous process has `times` [T], its table's. Raises ValueError for
    options that do not go together.
    """
    grid = build_grid(schedule, options)
    name = options.sampler
    if options.eta and name != "ddim":
        raise ValueError(f"--eta {options.eta:g} belongs to --sampler ddim, got {name}.")
    if options.churn and name != "heun":
        raise ValueError(f"--churn {options.churn:g} belongs to --sampler heun, got {name}.")
    if options.variance is not None and name not in ("ancestral", "predictor_corrector"):
        raise ValueError(
            f"--variance {options.variance} belongs to --sampler ancestral or predictor_corrector, "
            f"got {name}, which has its own noise."
        )
    if options.variance == "analytic":
        if x_0_mse is None:
            raise ValueError("the analytic variance needs the denoiser's measured errors.")
        variance = optimal_log_variance(grid, x_0_mse)
    elif options.variance is not None:
        variance = options.variance

    at_grid = None if times is None else times[np.asarray(grid.timesteps)]
    inputs = SamplerInputs(grid, schedule, options, variance, process, at_grid)
    return named("--sampler", SAMPLERS, name)(inputs)


def check_unused(options: SamplerOptions) -> None:
    """Raises ValueError for options that change nothing beside the others."""
    if options.num_steps is None and options.spacing != SamplerOptions.spacing:
        raise ValueError(
            f"--spacing {options.spacing} chooses some of the steps, and without --num-steps all "
            "are taken. Give --num-steps 50, say, or leave --spacing out."
        )
    for name in ("langevin_steps", "langevin_rate"):
        value = getattr(options, name)
        if options.sampler != "annealed_langevin" and value != getattr(SamplerOptions, name):
            raise ValueError(
                f"--{name.replace('_', '-')} {value:g} belongs to --sampler annealed_langevin, got "
                f"{options.sampler}."
            )


def build_grid(schedule: NoiseSchedule, options: SamplerOptions) -> NoiseSchedule:
    """The steps of the schedule that a sampler with these options uses."""
    if options.num_steps is None:
        return schedule
    if options.spacing in ("karras", "log_snr"):
        # EDM's σ_max; the cosine schedule ends at thousands, where a Heun step is wasted.
        rho = 7.0 if options.spacing == "karras" else math.inf
        steps = forward.karras_timesteps(schedule, options.num_steps, rho, sigma_max=80.0)
    else:
        steps = forward.spaced_timesteps(schedule.num_timesteps, options.num_steps, options.spacing)
    return forward.respace(schedule, steps)


def load_data(
    config: DataConfig, split: Literal["train", "heldout"], *, labelled: bool = True
) -> ImageDataset:
    """The "train" or "heldout" split of the data a configuration names.

    `labelled`: whether the network takes labels. If not, the labels of a user's own images are read
    only if the configuration names their file.
    """
    check_fetched(config.path)
    labels = config.labels if labelled or config.labels != "auto" else "none"
    options = DataOptions(*(getattr(config, name) for name in DataOptions._fields))
    return load_named(config.name, split, options._replace(labels=labels))


def check_splits(train: ImageDataset, heldout: ImageDataset, *, labelled: bool) -> None:
    """Raises ValueError if held-out images are not of the training images' shape and classes.

    Each split is read by itself: in one of them, all images may be grey, or of another size.
    """
    if not len(heldout.images):
        return
    shapes = ["×".join(map(str, data.images.shape[1:])) for data in (train, heldout)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{train.name} has images of {shapes[0]}, and {heldout.name}, on which the model is "
            f"measured, of {shapes[1]}. Give them one shape with --data.resolution and "
            "--data.channels, or hold out a share of the training images."
        )
    known, found = train.num_classes, heldout.num_classes
    if labelled and known is not None and (found is None or heldout.labels.max() >= known):
        have = "no labels" if found is None else f"the label {heldout.labels.max()}"
        raise ValueError(
            f"{train.name} has {known} classes, and {heldout.name} has {have}. Number the classes "
            f"of both from 0 to {known - 1}, or hold out a share of the training images."
        )


def build_network(config: NetworkConfig, **others: Any) -> UNet:
    """The U-Net of a configuration, and of its `others` fields.

    Raises ValueError for as many groups as channels: normalising each channel by itself removes
    the time embedding, so that the network could not know its step.
    """
    if config.num_groups >= config.channels and not config.scale_shift:
        suited = [n for n in (2, 4, 8, 16, 32) if n < config.channels and not config.channels % n]
        raise ValueError(
            f"--network.num-groups {config.num_groups} must be less than --network.channels "
            f"{config.channels}, and divide it: with one channel per group, normalisation removes "
            f"the time embedding.{f' {suited[-1]} would do.' if suited else ''}"
        )
    options: dict[str, Any] = {**vars(config), "dtype": jnp.dtype(config.dtype)}
    del options["class_conditional"]
    for name in ("channel_multipliers", "attention_resolutions"):
        options[name] = tuple(options[name])
    return UNet(**options, **others)


def build_model(
    config: TrainConfig,
    image_shape: tuple[int, ...],
    num_classes: int | None,
    cond_features: int | None = None,
    context_features: int | None = None,
    concat_features: int | None = None,
) -> Model:
    """The model of a configuration; checks the network on the image shape without computing.

    Raises ValueError for a configuration that no run could use, before anything is compiled.
    """
    channels, spatial_rank = image_shape[-1], len(image_shape) - 1
    check_diffusion(config.diffusion)
    if config.data.augment == "edm" and spatial_rank != 2:
        raise ValueError(
            "--data.augment edm rotates and stretches images, and these data have "
            f"{spatial_rank} spatial axes. Use flip, pad_crop or none."
        )
    if not config.network.class_conditional:
        num_classes = None
    elif num_classes is None:
        raise ValueError(
            "--network.class-conditional needs data with labels, and these have none. Put the "
            "images of each class into a folder of its own, pass their labels as --data.labels "
            "FILE.csv, or train without labels."
        )
    process = build_process(config.diffusion)
    times = None
    if process is None:
        schedule = build_schedule(config.diffusion)
    else:
        times = table_of_times(config.diffusion)
        schedule = forward.schedule_from_process(process, times)
    network = build_network(
        config.network,
        out_channels=2 * channels if is_learned(config.diffusion.variance) else channels,
        num_classes=num_classes,
        cond_features=network_cond_features(config, cond_features),
        context_features=context_features,
        spatial_rank=spatial_rank,
        remat=config.devices.remat,
    )
    # Raises an error for a network that cannot take these images.
    parameter_shapes(network, input_shape(image_shape, concat_features))
    optimizer = make_optimizer(
        learning_rate_schedule(
            config.optimizer.learning_rate,
            warmup_steps=config.optimizer.warmup_steps,
            num_steps=config.num_steps,
            decay=config.optimizer.decay,
            decay_steps=config.optimizer.decay_steps,
        ),
        clip_norm=config.optimizer.clip_norm,
        b1=config.optimizer.betas[0],
        b2=config.optimizer.betas[1],
        weight_decay=config.optimizer.weight_decay,
    )
    return Model(
        config=config,
        image_shape=tuple(image_shape),
        num_classes=num_classes,
        cond_features=cond_features,
        context_features=context_features,
        concat_features=concat_features,
        schedule=schedule,
        process=process,
        times=times,
        network=network,
        optimizer=optimizer,
    )


def build_model_of(config: TrainConfig, data: Mapping[str, Any]) -> Model:
    """The model of a configuration and of the facts `data` about its data set, `data_facts`."""
    known = ("num_classes", "cond_features", "context_features", "concat_features")
    return build_model(config, tuple(data["image_shape"]), *map(data.get, known))


def as_rows(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] as rows [N, H·W·C], the form of a data set on the device.

    A TPU's compiler changes the layout of u8[N, H, W, C] before it can look up images: one copy of
    the whole data set per dispatch (benchmarks/NOTES.md). Rows need none.
    """
    return images.reshape(len(images), -1)


def fetch(dataset: Any, batch: Any) -> Any:
    """Looks up the images of a batch that holds only their indices in a data set on the device.

    They come as the data set holds them, whole or as rows; `Model.training_losses` takes both.
    """
    if "image" in batch:
        return batch
    return {**batch, **{name: values[batch["example"]] for name, values in dataset.items()}}


class HeldOutPlan(NamedTuple):
    """The pairs of an image and a step t that the held-out loss is a weighted mean over."""

    image: np.ndarray
    t: np.ndarray
    weight: np.ndarray


def heldout_plan(draws: int, num_images: int, num_timesteps: int) -> HeldOutPlan:
    """Plans the held-out loss: [draws] each, t evenly spaced in 0..T-1, weights of mean 1.

    Each step weighs the same, however often it occurs. With fewer draws than steps, t = 0 stands
    for itself alone, as its part of the bound is larger than that of hundreds of others.
    """
    index = np.arange(draws)
    if draws >= num_timesteps:
        t = index * num_timesteps // draws
        weight = 1 / np.bincount(t)[t]
    else:
        t = np.append(0, 1 + (2 * index[:-1] + 1) * (num_timesteps - 1) // (2 * max(draws - 1, 1)))
        weight = np.append(1.0, np.full(draws - 1, (num_timesteps - 1) / max(draws - 1, 1)))
    weight *= draws / weight.sum()
    return HeldOutPlan((index % num_images).astype(np.int32), t.astype(np.int32), weight)
