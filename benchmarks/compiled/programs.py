"""The programs compiled for chips: those of the package, of shapes instead of arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.flops import unet_flops
from benchmarks.sizes import Plan
from benchmarks.workload import train_config
from ddpm_jax.devices.batched import RowSplit
from ddpm_jax.devices.mesh import AXES, ROWS, WHOLE, make_mesh
from ddpm_jax.evaluation.inception_v3 import InceptionV3
from ddpm_jax.evaluation.preprocessing import TF1
from ddpm_jax.forward.respacing import respace, spaced_timesteps
from ddpm_jax.keys import example_keys, make_key
from ddpm_jax.programs.build import build_model, fetch
from ddpm_jax.programs.generator import Generator
from ddpm_jax.samplers import ancestral, ddim
from ddpm_jax.training import make_chunk, make_train_step
from ddpm_jax.training.fsdp import bytes_per_step
from ddpm_jax.training.sharding import DataParallel
from ddpm_jax.types import Device, PyTree


class Lowered(NamedTuple):
    """A program before compilation, and what is known of it by other means.

    Attributes:
        stage: JAX's lowered program.
        donated: the bytes of arguments whose memory the results must take over.
        flops: operations by kind of one step on one device, counted by hand.
        collectives: the bytes one device sends per step, by kind; {} on one device.
    """

    stage: Any
    donated: int
    flops: dict[str, float]
    collectives: dict[str, float]


def _bytes_per_device(tree: PyTree) -> int:
    """The bytes of placed shapes on each device; keys, a few bytes, are left out."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def _scaled(flops: dict[str, float], factor: float) -> dict[str, float]:
    return {name: factor * value for name, value in flops.items()}


def training(
    plan: Plan,
    devices: Sequence[Device],
    *,
    backend: Any = "jit",
    shards: int = 1,
    remat: bool = False,
    images: int = 50_000,
) -> Lowered:
    """A dispatch of `plan.steps` training steps, with the whole data set on the devices."""
    size = plan.image_size
    model = build_model(train_config(plan), (size, size, 3), None)
    model = dataclasses.replace(model, network=model.network.clone(remat=remat))
    parallel = DataParallel(backend, tuple(devices), shards)
    step = make_train_step(model.training_losses, model.optimizer)
    program = parallel.wrap(make_chunk(step, fetch, packed=parallel.packed))
    state = parallel.placeholder(model.init_shapes())
    rows = NamedSharding(parallel.mesh, PartitionSpec(None, AXES))
    shape = (plan.steps, plan.batch_size)
    if backend == "pmap":
        shape = (plan.steps, len(devices), plan.batch_size // len(devices))
        rows = NamedSharding(parallel.mesh, PartitionSpec(None, AXES[0]))
    index = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
    data = jax.ShapeDtypeStruct((images, 3 * size**2), jnp.uint8, sharding=parallel.replicated)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=parallel.replicated)
    stage = program.lower(state, {"image": data}, {"example": index, "index": index}, count)
    collectives = {}
    if len(devices) > 1:
        data_devices = len(devices) // shards
        collectives = bytes_per_step(state.params, data=data_devices, shards=shards)
    each = 3 * plan.batch_size / len(devices)
    flops = _scaled(unet_flops(model.network, size), each)
    return Lowered(stage, _bytes_per_device(state), flops, collectives)


def sampling(plan: Plan, devices: Sequence[Device], *, num_steps: int | None = None) -> Lowered:
    """A dispatch of ancestral sampling, or of DDIM with `num_steps`, by a `Generator`."""
    size = plan.image_size
    model = build_model(train_config(plan), (size, size, 3), None)
    sampler = ancestral(model.schedule)
    if num_steps is not None:
        steps = spaced_timesteps(model.schedule.num_timesteps, num_steps, "uniform")
        sampler = ddim(respace(model.schedule, steps))
    generator = Generator(sampler, model.denoiser_of, (size, size, 3), devices=devices)
    _, start, run = generator._programs_on(len(devices))
    seed, index = _shape((), jnp.uint32), _shape((plan.sample_batch,), jnp.uint32)
    keys, x, state = jax.eval_shape(start, seed, index)
    whole = (model.init_shapes().params, _shape((generator._chunk,), jnp.int32))
    params, steps = _placed(whole, devices, WHOLE)
    rows = _placed((x, state, keys), devices, ROWS)
    stage = run.lower(params, *rows, (None, {}), steps)
    each = plan.sample_batch / len(devices)
    return Lowered(stage, 0, _scaled(unet_flops(model.network, size), each), {})


def heldout(plan: Plan, devices: Sequence[Device]) -> Lowered:
    """The held-out loss and the estimate of the bound, of `plan.sample_batch` images."""
    size = plan.image_size
    model = build_model(train_config(plan), (size, size, 3), None)

    def losses(params, images, t, index):
        return model.heldout_losses(params, images, {}, t, example_keys(make_key(0), index))

    program = RowSplit(devices).map(losses, (WHOLE, ROWS, ROWS, ROWS))
    number = _shape((plan.sample_batch,), jnp.int32)
    images = _shape((plan.sample_batch, size, size, 3), jnp.uint8)
    params = _placed(model.init_shapes().params, devices, WHOLE)
    stage = program.lower(params, *_placed((images, number, number), devices, ROWS))
    each = plan.sample_batch / len(devices)
    return Lowered(stage, 0, _scaled(unet_flops(model.network, size), each), {})


def inception(plan: Plan, devices: Sequence[Device]) -> Lowered:
    """The Inception features of `plan.sample_batch` images, in float32 as FID needs them."""
    size = plan.image_size
    network = InceptionV3()

    def features(variables, pixels):
        with jax.default_matmul_precision("highest"):
            return network.apply(variables, TF1(pixels)).pool  # type: ignore[union-attr]

    variables = jax.eval_shape(network.init, make_key(0), _shape((1, 299, 299, 3), jnp.float32))
    program = RowSplit(devices).map(features, (WHOLE, ROWS))
    images = _shape((plan.sample_batch, size, size, 3), jnp.uint8)
    places = _placed(variables, devices, WHOLE), _placed(images, devices, ROWS)
    return Lowered(program.lower(*places), 0, {}, {})


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _placed(tree: PyTree, devices: Sequence[Device], spec: PartitionSpec) -> PyTree:
    """Shapes on the devices, as a `RowSplit` places arrays."""
    where = NamedSharding(make_mesh(devices), spec)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree
    )


LARGE: dict[str, Any] = {
    "image_size": 256,
    "channels": 128,
    "multipliers": (1, 1, 2, 2, 4, 4),
    "attention": (16,),
    "steps": 1,
}
"""The paper's network for 256×256 images (Ho et al. 2020, Appendix B)."""


def _on(count: int | None, build: Callable[..., Lowered], **options: Any) -> Any:
    """A program on the first `count` devices of a topology, or on all of them."""

    def lower(plan: Plan, devices: Sequence[Device]) -> Lowered:
        return build(plan, devices[:count], **options)

    return lower


def _large(plan: Plan, devices: Sequence[Device]) -> Lowered:
    """The 256×256 step with rematerialisation, 8 images per chip, parameters split over all."""
    plan = dataclasses.replace(plan, **LARGE, batch_size=8 * len(devices))
    return training(
        plan, devices, backend="shard_map", shards=len(devices), remat=True, images=1_000
    )


PROGRAMS: dict[str, Any] = {
    "training, 1 device": _on(1, training),
    "training, shard_map": _on(None, training, backend="shard_map"),
    "training, FSDP": lambda plan, devices: training(
        plan, devices, backend="shard_map", shards=len(devices)
    ),
    "training, pmap": _on(None, training, backend="pmap"),
    "ancestral sampling": _on(1, sampling),
    "DDIM sampling": _on(1, sampling, num_steps=50),
    "held-out loss": _on(1, heldout),
    "Inception features": _on(1, inception),
    "training, 256×256, remat, FSDP": _large,
}
"""By name, each a function of plan and devices."""
