"""Starting a new run from trained weights: another run's, or an imported pipeline's.

Only the parameters are taken. The optimiser starts anew, and the moving average starts from the
parameters. The network and its process must be those that the weights were trained for; data,
optimiser, loss, dropout and precision may differ. Where the number of classes or of output
channels differs, the parameters that belong to it are initialised as in a run from scratch.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.devices.mesh import fetch
from ddpm_jax.programs.averages import restore_state
from ddpm_jax.programs.buckets import readable_run, shown
from ddpm_jax.programs.build import build_model_of
from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.programs.console import say
from ddpm_jax.programs.model import Model
from ddpm_jax.programs.run_directory import RunDirectory
from ddpm_jax.programs.weights import (
    find_model,
    has_weights,
    is_model_name,
    pretrained_names,
    read_weights,
)
from ddpm_jax.training import Checkpoints, TrainState, choose_devices
from ddpm_jax.types import PyTree

HEAD = ("['conv_out']", "['label_embedding']")
"""Parameters that belong to the number of output channels or classes."""
FREE_NETWORK = ("dropout", "class_conditional", "dtype")
PROCESS = (
    *("process", "schedule", "num_timesteps", "beta_start", "beta_end", "sigma_max", "sigma_min"),
    *("sigma_data", "exploding", "target", "zero_terminal_snr"),
)
"""Fields of DiffusionConfig that decide what the network's inputs and outputs mean."""


class InitialWeights(NamedTuple):
    """Parameters that fit a configuration, and what config.json says of their origin."""

    params: PyTree
    origin: dict[str, Any]


def read_initial_weights(config: TrainConfig, model: Model) -> InitialWeights:
    """Reads the weights of `config.init_from`, without compiling anything.

    Raises ValueError if they do not fit the configuration, naming every difference, OSError or
    RunDirectoryError if they cannot be read.
    """
    assert config.init_from is not None
    trained, params, origin = _read(config.init_from, config.init_weights)
    wrong = _differences(trained, config)
    if wrong:
        raise ValueError(
            f"--init-from {config.init_from}: its network or process is another one:\n  "
            + "\n  ".join(wrong)
            + "\nUse its values. Data, optimiser, loss, dropout, precision, classes and the "
            "variance may differ."
        )
    _take(model.init_shapes().params, params, config.init_from)
    return InitialWeights(params, origin)


def begin_with_weights(
    config: TrainConfig, weights: InitialWeights, state: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """The state before the first step with these weights, and what was taken of them."""
    assert config.init_from is not None
    mine, fresh, dropped = _take(state.params, weights.params, config.init_from)
    record = {**weights.origin, "weights": config.init_weights, "fresh": fresh, "dropped": dropped}
    say(f"weights of {config.init_from}: {len(jax.tree.leaves(mine)) - len(fresh)} arrays taken")
    for title, names in (("initialised afresh", fresh), ("left out", dropped)):
        if names:
            say(f"  {title}: {', '.join(names)}")
    copy = jax.tree.map(np.array, mine)
    extra = tuple(jax.tree.map(np.array, mine) for _ in state.extra_ema_params)
    state = dataclasses.replace(state, params=mine, ema_params=copy, extra_ema_params=extra)
    return state, record


def _read(source: Path, weights: str) -> tuple[TrainConfig, PyTree, dict[str, Any]]:
    """The configuration, the parameters, and where they came from."""
    name = shown(source)
    if is_model_name(source):
        name, source, _ = find_model(name)
    source = readable_run(source)
    # The first pipelines had the network's config.json at the top, where a run has its own.
    scheduler = ("scheduler_config.json", "scheduler/scheduler_config.json")
    is_pipeline = any((source / name).is_file() for name in ("model_index.json", *scheduler))
    if weights == "raw" and (is_pipeline or has_weights(source)):
        raise ValueError(
            f"--init-from {name} holds only one set of weights. Leave out --init-weights raw: only "
            "a run directory has both sets."
        )
    if not is_pipeline and (source / "config.json").is_file():
        directory = RunDirectory(source)
        config, facts = directory.read()
        data = facts["data"]
        model = build_model_of(config, data)
        like = choose_devices(count=1).placeholder(model.init_shapes())
        if has_weights(source):
            params, step, digest = read_weights(source, facts.get("weights", {}), like.ema_params)
            about = {"from": name, "kind": "weights", "step": step, "sha256": digest}
            return config, fetch(params), {**about, "data": data}
        with Checkpoints(directory.checkpoints, writable=False) as checkpoints:
            state = restore_state(checkpoints, like)
        if state is None:
            raise ValueError(f"--init-from {name} is a run without a checkpoint yet.")
        params = state.ema_params if weights == "ema" else state.params
        about = {"from": name, "kind": "run", "step": int(state.step), "data": data}
        return config, fetch(params), about
    if not is_pipeline:
        raise ValueError(
            f"--init-from {name} is no run directory or folder of weights (config.json), no "
            "pipeline of diffusers (model_index.json), and no name of a model "
            f"({', '.join(pretrained_names())}, hub:OWNER/NAME@REVISION)."
        )
    from ddpm_jax.interop import load_diffusers
    from ddpm_jax.programs.convert import FromDiffusers, train_config

    model = load_diffusers(source)
    config = train_config(FromDiffusers(), model)
    return config, jax.device_get(model.params), {"from": name, "kind": "diffusers"}


def _differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    names = [f.name for f in dataclasses.fields(old.network) if f.name not in FREE_NETWORK]
    pairs = [("network", old.network, new.network, names)]
    pairs += [("diffusion", old.diffusion, new.diffusion, PROCESS)]
    return [
        f"--{part}.{name.replace('_', '-')}: {getattr(a, name)} there, {getattr(b, name)} here"
        for part, a, b, fields in pairs
        for name in fields
        if getattr(a, name) != getattr(b, name)
    ]


def _take(wanted: PyTree, given: PyTree, source: Path) -> tuple[PyTree, list[str], list[str]]:
    """`wanted` with the arrays of `given`; names of those kept fresh, and of those left out.

    `wanted` are arrays, or shapes for a trial.
    """
    have = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(given)}
    paths, structure = jax.tree_util.tree_flatten_with_path(wanted)
    leaves, fresh, wrong = [], [], []
    for path, leaf in paths:
        name = jax.tree_util.keystr(path)
        found = have.pop(name, None)
        if found is not None and found.shape == leaf.shape:
            leaves.append(np.asarray(found, leaf.dtype))
            continue
        leaves.append(leaf if isinstance(leaf, jax.ShapeDtypeStruct) else np.asarray(leaf))
        if name.startswith(HEAD):
            fresh.append(name)
        else:
            shape = "nothing" if found is None else list(found.shape)
            wrong.append(f"{name}: {shape} there, {list(leaf.shape)} here")
    dropped = [name for name in have if name.startswith(HEAD)]
    wrong += [f"{name}: nothing here" for name in have if name not in dropped]
    if wrong:
        more = [f"and {len(wrong) - 5} more"] if len(wrong) > 5 else []
        raise ValueError(
            f"--init-from {source} has weights of another network:\n  "
            + "\n  ".join([*wrong[:5], *more])
            + "\nUse the network, the image size and the channels that it was trained with."
        )
    return jax.tree_util.tree_unflatten(structure, leaves), fresh, dropped
