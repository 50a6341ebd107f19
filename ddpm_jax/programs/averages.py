"""The averages of a run's parameters: those that training keeps, and the one to sample from."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from ddpm_jax.programs.config import OptimizerConfig
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.training import Checkpoints, MismatchedCheckpointError, TrainState, ema_decay_at
from ddpm_jax.training.power_ema import post_hoc_weights, power_ema_decay_at, power_gamma
from ddpm_jax.types import Array, PyTree

if TYPE_CHECKING:
    from ddpm_jax.programs.trained_run import RunOptions


def extra_emas(config: OptimizerConfig) -> list[Callable[[Array], Array]]:
    """The decays of the averages beside `ema_decay`, as functions of the step.

    Raises ValueError for values that no run could use.
    """
    for decay in config.extra_ema_decays:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"--optimizer.extra-ema-decays must be in [0, 1), got {decay}.")
    for width in config.ema_sigma_rel:
        power_gamma(width)
    decays = [
        functools.partial(ema_decay_at, decay=decay, warmup=config.ema_warmup)
        for decay in config.extra_ema_decays
    ]
    widths = [functools.partial(power_ema_decay_at, sigma_rel=w) for w in config.ema_sigma_rel]
    return [*decays, *widths]


def average_name(options: RunOptions) -> str:
    """The name of the parameters that the options choose: ema, last, ema0.99 or sigma0.08."""
    if options.ema_sigma_rel is not None:
        return f"sigma{options.ema_sigma_rel:g}"
    if options.ema_decay is not None:
        return f"ema{options.ema_decay:g}"
    return "ema" if options.ema else "last"


def restore_params(
    folder: Path, like: TrainState, options: RunOptions, config: OptimizerConfig
) -> tuple[PyTree, int, str]:
    """The parameters that the options choose, their step, and the sha256 of what they come from.

    Raises ValueError for an average that the run does not have, RunDirectoryError for a run without
    a checkpoint, and what `Checkpoints.restore` raises.
    """
    chosen = (not options.ema, options.ema_decay is not None, options.ema_sigma_rel is not None)
    if sum(chosen) > 1:
        raise ValueError("--no-ema, --ema-decay and --ema-sigma-rel exclude each other; give one.")
    with Checkpoints(folder, writable=False) as checkpoints:
        state = restore_state(checkpoints, like, options.checkpoint)
        if state is None:
            raise RunDirectoryError(
                f"{options.run_dir} has no checkpoint yet. Train for at least one checkpoint "
                "interval first."
            )
        step = int(state.step)
        # Read now: a run still in training may delete this checkpoint before the analysis ends.
        digest = hashlib.sha256(_manifest(folder, step))
        params = _stored_average(state, options, config)
        if params is None:
            del state
            assert options.ema_sigma_rel is not None
            params = _post_hoc(checkpoints, like, step, options.ema_sigma_rel, config, digest)
    return params, step, digest.hexdigest()


def _stored_average(
    state: TrainState, options: RunOptions, config: OptimizerConfig
) -> PyTree | None:
    """The parameters that the options choose, if the state has them."""
    decays, widths = config.extra_ema_decays, config.ema_sigma_rel
    if options.ema_sigma_rel is not None:
        if not widths:
            raise ValueError(
                f"--ema-sigma-rel {options.ema_sigma_rel:g}: {options.run_dir} was trained without "
                "power-function averages. Train with --optimizer.ema-sigma-rel 0.05 0.1."
            )
        if options.ema_sigma_rel not in widths:
            power_gamma(options.ema_sigma_rel)
            return None
        return state.extra_ema_params[len(decays) + widths.index(options.ema_sigma_rel)]
    if options.ema_decay is None or options.ema_decay == config.ema_decay:
        return state.ema_params if options.ema else state.params
    if options.ema_decay not in decays:
        known = ", ".join(f"{decay:g}" for decay in (config.ema_decay, *decays))
        raise ValueError(
            f"--ema-decay {options.ema_decay:g}: {options.run_dir} has the averages {known}."
        )
    return state.extra_ema_params[decays.index(options.ema_decay)]


def _post_hoc(
    checkpoints: Checkpoints,
    like: TrainState,
    step: int,
    sigma_rel: float,
    config: OptimizerConfig,
    digest: Any,
) -> PyTree:
    """The average of this width at `step`, from the averages of all checkpoints up to there."""
    steps = [s for s in checkpoints.steps() if 1 <= s <= step]
    widths = config.ema_sigma_rel
    stored = [(s, width) for s in steps for width in widths]
    found, error = post_hoc_weights(stored, step, sigma_rel)
    if error > 0.1:
        warnings.warn(
            f"{len(steps)} kept checkpoints determine the average of --ema-sigma-rel "
            f"{sigma_rel:g} only to {error:.0%} (distance of the profiles). Keep more with "
            "--report.keep-every, or choose a width nearer to those of the run.",
            stacklevel=2,
        )
    weights, total = iter(found.tolist()), None
    for s in steps:
        state = restore_state(checkpoints, like, s)
        assert state is not None
        digest.update(_manifest(checkpoints.folder, s))
        for average in state.extra_ema_params[-len(widths) :]:
            part = _scaled(next(weights), average)
            total = part if total is None else _sum(total, part)
    return total


@jax.jit
def _scaled(weight, tree):
    return jax.tree.map(lambda leaf: weight * leaf, tree)


@jax.jit
def _sum(a, b):
    return jax.tree.map(lambda x, y: x + y, a, b)


def _manifest(folder: Path, step: int) -> bytes:
    return (folder / str(step) / "manifest.json").read_bytes()


def restore_state(
    checkpoints: Checkpoints, like: TrainState, step: int | None = None
) -> TrainState | None:
    """`Checkpoints.restore` for the weights, whatever generator the random key belongs to.

    Runs trained under JAX_DEFAULT_PRNG_IMPL=rbg have keys that training cannot continue with.
    """
    try:
        return checkpoints.restore(like, step)
    except MismatchedCheckpointError as error:
        if "JAX_DEFAULT_PRNG_IMPL" not in str(error):
            raise
    key = jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
    key = jax.ShapeDtypeStruct((), key.dtype, sharding=like.key.sharding)
    return checkpoints.restore(dataclasses.replace(like, key=key), step)
