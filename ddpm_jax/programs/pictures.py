"""The pictures of a run: samples behind a progress bar, and the loss curve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpm_jax import visualize
from ddpm_jax.programs.console import bar
from ddpm_jax.programs.generator import Conditions, Generated, Generator
from ddpm_jax.training.logs import read_jsonl
from ddpm_jax.types import PyTree


def draw_images(
    generator: Generator,
    params: PyTree,
    title: str,
    *,
    seed: int,
    count: int,
    batch_size: int,
    labels: np.ndarray | None = None,
    conditions: Conditions | None = None,
    frames_of: int = 0,
    leave: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
) -> Generated:
    """Generates images behind a progress bar of that title; see `Generator`."""
    with bar(count * generator.num_steps, title, unit="img·step", leave=leave) as progress:
        return generator(
            params,
            seed=seed,
            count=count,
            batch_size=batch_size,
            labels=labels,
            conditions=conditions,
            frames_of=frames_of,
            on_progress=progress.update,
            should_stop=should_stop,
        )


def save_loss_curve(log: Path, path: Path, title: str) -> None:
    """Draws the loss curve of a run's log; nothing if the log has no steps yet."""
    records = read_jsonl(log)
    train = [(r["step"], r["loss"]) for r in records if r["kind"] == "train"]
    heldout = [(r["step"], r["loss"]) for r in records if r["kind"] == "heldout"]
    if not train:
        return
    steps, losses = np.asarray(train).T
    visualize.save_loss_curve(
        path, steps, losses, heldout=tuple(np.asarray(heldout).T) if heldout else None, title=title
    )
