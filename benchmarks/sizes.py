"""The sizes of all measurements: on a CPU, on an accelerator, and for a quick check."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """The sizes of all measurements; plain values, since it travels to other processes as JSON.

    Attributes:
        platform: "cpu" or "gpu", as JAX calls it.
        quick: sizes that only show that everything runs.
        channels, multipliers, num_res_blocks, attention, num_groups: the U-Net; the paper's for
            CIFAR-10 unless quick.
        image_size: height and width of the images.
        batch_size: images per training step.
        dtype: the precision of the network on both sides.
        rounds: number of rounds; in each, every contestant runs once.
        steps: training steps per turn, dispatched without waiting in between.
        torch_compile: whether torch.compile is among the rivals.
        narrow_channels: width of the network in the benchmarks that vary a size and compare its
        costs. batches, resolutions: the sizes varied there. memory_batches: batch sizes at which
        the memory of a step is measured. sample_batch, sample_steps, ddim_steps: images at a time,
        and steps, of the wide network. small_steps: ancestral steps of the digits' network. On a
        CPU both sides run only part of the 1000 steps (all steps take the same time), in more
        turns. precision_steps, precision_seeds: training steps and seeds of bfloat16 against
        float32.
    """

    platform: str
    quick: bool
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention: tuple[int, ...] = (16,)
    num_groups: int = 32
    image_size: int = 32
    batch_size: int = 16
    dtype: str = "float32"
    rounds: int = 7
    steps: int = 1
    torch_compile: bool = True
    narrow_channels: int = 32
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    resolutions: tuple[int, ...] = (16, 32, 64)
    memory_batches: tuple[int, ...] = (16, 64, 128)
    sample_batch: int = 4
    sample_steps: int = 10
    ddim_steps: int = 10
    small_steps: int = 1000
    precision_steps: int = 1000
    precision_seeds: int = 3


CPU = Plan("cpu", False, small_steps=200)
ACCELERATOR = Plan(
    "gpu",
    False,
    batch_size=128,
    dtype="bfloat16",
    rounds=9,
    steps=10,
    narrow_channels=128,
    batches=(32, 128, 512),
    resolutions=(32, 64),
    memory_batches=(128, 512),
    sample_batch=256,
    sample_steps=1000,
    ddim_steps=50,
    precision_steps=2000,
    precision_seeds=2,
)
QUICK = {
    "quick": True,
    "channels": 16,
    "multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention": (4,),
    "num_groups": 8,
    "image_size": 8,
    "batch_size": 4,
    "rounds": 2,
    "steps": 1,
    "torch_compile": False,
    "narrow_channels": 16,
    "batches": (2, 4),
    "resolutions": (8, 16),
    "memory_batches": (4, 8),
    "sample_batch": 2,
    "sample_steps": 4,
    "ddim_steps": 4,
    "small_steps": 8,
    "precision_steps": 20,
    "precision_seeds": 1,
}


def plan_for(platform: str, *, quick: bool, **changes: Any) -> Plan:
    """The plan of a platform ("cpu", or anything else for an accelerator), with these changes."""
    plan = CPU if platform == "cpu" else dataclasses.replace(ACCELERATOR, platform=platform)
    return dataclasses.replace(plan, **{**(QUICK if quick else {}), **changes})


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(plan).items()}


def from_json(values: dict[str, Any]) -> Plan:
    """The plan that `to_json` wrote."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Plan(**fields)
