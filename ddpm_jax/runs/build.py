"""From a configuration to the objects it names. Strings are turned into functions here and nowhere
else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax.data import ImageDataset, prepare_images
from ddpm_jax.keys import fold_in_each, normal_per_example, split_each
from ddpm_jax.losses import simple_loss, stratified_timesteps, uniform_timesteps
from ddpm_jax.nn import UNet
from ddpm_jax.prediction import make_denoiser
from ddpm_jax.runs.config import DataConfig, DiffusionConfig, NetworkConfig, TrainConfig
from ddpm_jax.samplers import Sampler, ancestral, ddim
from ddpm_jax.schedules import (
    NoiseSchedule,
    Spacing,
    constant_schedule,
    cosine_schedule,
    jsd_schedule,
    linear_schedule,
    quadratic_schedule,
    respace,
    sigmoid_schedule,
    spaced_timesteps,
    warmup_schedule,
)
from ddpm_jax.training import TrainState, init_state, learning_rate_schedule, make_optimizer
from ddpm_jax.types import ApplyFn, Array, Denoiser, Key, PyTree


def build_schedule(config: DiffusionConfig) -> NoiseSchedule:
    """The noise schedule a configuration names."""
    T, start, end = config.num_timesteps, config.beta_start, config.beta_end
    makers = {
        "linear": lambda: linear_schedule(T, start, end),
        "quadratic": lambda: quadratic_schedule(T, start, end),
        "sigmoid": lambda: sigmoid_schedule(T, start, end),
        "constant": lambda: constant_schedule(T, end),
        "warmup10": lambda: warmup_schedule(T, start, end, 0.1),
        "warmup50": lambda: warmup_schedule(T, start, end, 0.5),
        "cosine": lambda: cosine_schedule(T),
        "jsd": lambda: jsd_schedule(T),
    }
    if config.schedule not in makers:
        raise ValueError(f"--diffusion.schedule knows {sorted(makers)}, got {config.schedule!r}.")
    schedule = makers[config.schedule]()
    if float(schedule.signal_scale[-1]) == 0.0 and config.target in ("epsilon", "score"):
        raise ValueError(
            f"--diffusion.schedule {config.schedule} ends with nothing left of x_0, where "
            f"--diffusion.target {config.target} says nothing about it. Use the target v or x_0."
        )
    return schedule


def build_sampler(
    schedule: NoiseSchedule,
    name: str,
    *,
    num_steps: int | None = None,
    spacing: Spacing = "fractional",
    eta: float = 0.0,
    variance: Any = "fixed_large",
) -> Sampler:
    """The sampler of this name over `num_steps` of the schedule's steps, all of them when None."""
    grid = schedule
    if num_steps is not None:
        grid = respace(schedule, spaced_timesteps(schedule.num_timesteps, num_steps, spacing))
    if name == "ancestral":
        return ancestral(grid, variance=variance)
    if name == "ddim":
        return ddim(grid, eta=eta)
    raise ValueError(f"--sampler knows 'ancestral' and 'ddim', got {name!r}.")


def load_data(config: DataConfig, split: Literal["train", "heldout"]) -> ImageDataset:
    """The "train" or "heldout" split of the data a configuration names.

    The held-out split of CIFAR-10 and MNIST is their test set, that of a folder every tenth image.
    """
    from ddpm_jax import data

    official = "test" if split == "heldout" else "train"
    path, cache_dir, download = config.path, config.cache_dir, config.download
    if config.name == "digits":
        return data.load_digits(split)
    if config.name == "cifar10":
        return data.load_cifar10(official, path=path, cache_dir=cache_dir, download=download)
    if config.name == "mnist":
        return data.load_mnist(
            official, path=path, cache_dir=cache_dir, download=download, pad_to=32
        )
    if config.name == "folder":
        if path is None or config.resolution is None:
            raise ValueError(
                "a folder of images needs --data.path FOLDER and --data.resolution PIXELS, got "
                f"path {path} and resolution {config.resolution}."
            )
        return data.load_folder(path, config.resolution, split=split, cache_dir=cache_dir)
    raise ValueError(f"--data.name knows digits, cifar10, mnist and folder, got {config.name!r}.")


def build_network(config: NetworkConfig, image_channels: int) -> UNet:
    """The U-Net of a configuration, for images of so many channels.

    Raises ValueError for as many groups as channels: normalising each channel by itself takes out
    the time embedding, and such a network does not know which step it is at.
    """
    if config.num_groups >= config.channels:
        raise ValueError(
            f"--network.num-groups {config.num_groups} must be less than --network.channels "
            f"{config.channels}: groups of one channel normalise the time embedding away."
        )
    return UNet(
        channels=config.channels,
        channel_multipliers=tuple(config.channel_multipliers),
        num_res_blocks=config.num_res_blocks,
        attention_resolutions=tuple(config.attention_resolutions),
        dropout=config.dropout,
        out_channels=image_channels,
        num_groups=config.num_groups,
        dtype=jnp.dtype(config.dtype),
    )


@dataclass(frozen=True)
class Model:
    """A network together with its process: what is trained, sampled and measured.

    Attributes:
        config: the run's configuration.
        image_shape: [H, W, C].
        schedule: the full process.
        network: the Flax module.
        optimizer: the Optax transformation.
    """

    config: TrainConfig
    image_shape: tuple[int, int, int]
    schedule: NoiseSchedule
    network: UNet
    optimizer: optax.GradientTransformation

    def init(self) -> TrainState:
        """The state before the first step, a function of the seed."""
        root = jax.random.key(self.config.seed)
        key_init, key_train = jax.random.split(root)
        x = jnp.zeros((1, *self.image_shape))
        params = jax.jit(self.network.init)(key_init, x, jnp.zeros((1,), jnp.int32))["params"]
        return init_state(params, self.optimizer, key_train)

    def training_losses(self, params: PyTree, batch: Any, keys: Key) -> Array:
        """L_simple per example [b], with t, ε, flip and dropout drawn from each example's key."""
        key_t, key_noise, key_flip, key_dropout = split_each(keys, 4)
        x_0 = prepare_images(batch["image"], key_flip, flip=self.config.data.flip)
        T = self.schedule.num_timesteps
        if self.config.diffusion.timesteps == "stratified":
            t = stratified_timesteps(key_t, batch["index"], self.config.batch_size, T)
        else:
            t = uniform_timesteps(key_t, T)
        noise = normal_per_example(key_noise, x_0.shape[1:])

        apply_fn = self._bound(params, dropout_keys=key_dropout)
        target = self.config.diffusion.target
        return simple_loss(self.schedule, apply_fn, x_0, t, noise, target=target)

    def heldout_losses(self, params: PyTree, images: Array, t: Array, keys: Key) -> Array:
        """L_simple per example [b] at the given steps, without flip and dropout."""
        x_0 = prepare_images(images, None, flip=False)
        noise = normal_per_example(fold_in_each(keys, 0), x_0.shape[1:])

        target = self.config.diffusion.target
        return simple_loss(self.schedule, self._bound(params), x_0, t, noise, target=target)

    def denoiser_of(self, params: PyTree, labels: Array | None) -> Denoiser:
        """The denoiser with these parameters, as `generation.Generator` wants it."""
        diffusion = self.config.diffusion
        return make_denoiser(
            self.schedule,
            self._bound(params, label=labels),
            target=diffusion.target,
            clip=diffusion.clip,
        )

    def _bound(self, params: PyTree, **options: Any) -> ApplyFn:
        """The network with its parameters and options bound: `(x_t, timesteps) -> output`."""

        def apply_fn(x_t: Array, timesteps: Array) -> Any:
            return self.network.apply({"params": params}, x_t, timesteps, **options)

        return apply_fn


def build_model(config: TrainConfig, image_shape: tuple[int, ...]) -> Model:
    """Everything but the data and the devices; checks the network on the image shape without
    computing.

    Raises ValueError for a configuration no run could use, before anything is compiled.
    """
    height, width, channels = image_shape
    network = build_network(config.network, channels)
    jax.eval_shape(
        network.init, jax.random.key(0), jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
    )
    optimizer = make_optimizer(
        learning_rate_schedule(
            config.optimizer.learning_rate,
            warmup_steps=config.optimizer.warmup_steps,
            num_steps=config.num_steps,
            decay=config.optimizer.decay,
        ),
        clip_norm=config.optimizer.clip_norm,
    )
    return Model(
        config, (height, width, channels), build_schedule(config.diffusion), network, optimizer
    )


def fetch(dataset: Any, batch: Any) -> Any:
    """Looks up the images of a batch that holds only their places in a data set on the device."""
    if "image" in batch:
        return batch
    return {**batch, "image": dataset["image"][batch["example"]]}


def heldout_plan(draws: int, num_images: int, num_timesteps: int) -> tuple[np.ndarray, np.ndarray]:
    """Which (image, t) pairs the held-out loss averages over: [draws] each, t spread evenly over
    0..T-1."""
    index = np.arange(draws)
    return (index % num_images).astype(np.int32), (index * num_timesteps // draws).astype(np.int32)
