"""The workload: the network and the complete training step of `experiments/train_cifar.py`.

The step is that of the training program, with the same parts: random flip, t, ε, dropout, loss,
gradients, clipping, Adam and the moving average, from uint8 images on the device.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sizes import Plan
from ddpm_jax.devices.cpu import keep_freed_memory
from ddpm_jax.nn import UNet
from ddpm_jax.programs.build import as_rows, build_model, fetch
from ddpm_jax.programs.config import DataConfig, NetworkConfig, TrainConfig
from ddpm_jax.programs.model import Model
from ddpm_jax.training import choose_devices, make_chunk, make_train_step
from ddpm_jax.types import PyTree

SEED = 0


def train_config(plan: Plan, **changes: Any) -> TrainConfig:
    """The configuration of CIFAR-10 with the plan's network; changes as "network.channels"."""
    network = NetworkConfig(
        channels=plan.channels,
        channel_multipliers=plan.multipliers,
        num_res_blocks=plan.num_res_blocks,
        attention_resolutions=plan.attention,
        num_groups=plan.num_groups,
        dtype=plan.dtype,  # type: ignore[arg-type]
    )
    config = TrainConfig(
        run_dir=Path("unused"),
        num_steps=800_000,
        batch_size=plan.batch_size,
        seed=SEED,
        data=DataConfig(name="cifar10", augment="flip"),
        network=network,
    )
    for name, value in changes.items():
        part, _, field = name.partition(".")
        if field:
            value = dataclasses.replace(getattr(config, part), **{field: value})
        config = dataclasses.replace(config, **{part: value})
    return config


def narrow(plan: Plan) -> dict[str, Any]:
    """The changes that make the network as narrow as the plan's `narrow_channels`."""
    groups = min(plan.num_groups, plan.narrow_channels // 4)
    return {"network.channels": plan.narrow_channels, "network.num_groups": groups}


def random_images(count: int, size: int, channels: int = 3) -> np.ndarray:
    """uint8 images of noise: the content of the pixels does not affect the times measured here."""
    rng = np.random.default_rng(SEED)
    return rng.integers(0, 256, (count, size, size, channels), np.uint8)


def moved_params(unet: UNet, shape: tuple[int, int, int]) -> PyTree:
    """Parameters with random offsets from their initial values, so that no branch outputs zero."""
    x = jnp.zeros((1, *shape))
    params = jax.jit(unet.init)(jax.random.key(SEED), x, jnp.zeros(1, jnp.int32))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(SEED + 1), len(leaves))
    moved = [x + 0.02 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


class Stepper:
    """A compiled chunk of training steps and its current state; a call runs one chunk.

    Attributes:
        model: network, process and optimiser.
        compiled: the compiled program.
        lowered: before compilation.
        state: the train state; replaced by each call.
        images_per_call: steps per chunk times the batch.

    With run=False it is only compiled. `remat` and `microbatches` are those of the package.
    """

    def __init__(
        self,
        config: TrainConfig,
        size: int,
        *,
        steps: int = 1,
        run: bool = True,
        images: int = 512,
        remat: bool = False,
        microbatches: int = 1,
    ):
        # As every program does; it has no effect once JAX has been used.
        keep_freed_memory(config.batch_size, (size, size), config.network.channels)
        devices = config.devices
        self.parallel = choose_devices(devices.backend, devices.count or 1)
        model = build_model(config, (size, size, 3), None)
        network = model.network.clone(remat=remat)
        self.model: Model = dataclasses.replace(model, network=network)
        train_step = make_train_step(
            self.model.training_losses,
            self.model.optimizer,
            ema_decay=config.optimizer.ema_decay,
            num_microbatches=microbatches,
        )
        chunk = self.parallel.wrap(make_chunk(train_step, fetch, packed=self.parallel.packed))
        self.steps, self.images_per_call = steps, steps * config.batch_size
        images = max(images, config.batch_size)
        order = np.random.default_rng(SEED).integers(0, images, (steps, config.batch_size))
        place = np.tile(np.arange(config.batch_size, dtype=np.int32), (steps, 1))
        batches = {"example": order.astype(np.int32), "index": place}
        self.batches = self.parallel.place_batches(batches)
        self.dataset: Any = self.parallel.replicate({"image": as_rows(random_images(images, size))})
        if run:
            self.state = self.parallel.place(self.model.init())
        else:
            # Shapes are enough to compile.
            self.state = self.parallel.placeholder(self.model.init_shapes())
        self.count = np.int32(steps)
        self.lowered = chunk.lower(self.state, self.dataset, self.batches, self.count)
        self.compiled = self.lowered.compile()

    def __call__(self) -> None:
        """Runs one chunk and waits for it."""
        self.state, metrics = self.compiled(self.state, self.dataset, self.batches, self.count)
        jax.block_until_ready(metrics)


def flops_of(stage: Any) -> float | None:
    """The floating-point operations XLA counts in a lowered or compiled program, if it does."""
    analysis = stage.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    value = analysis.get("flops")
    return float(value) if value and value > 0 else None
