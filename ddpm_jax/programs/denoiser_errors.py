"""How far a trained denoiser is off at each step, measured once and kept beside its run."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data import prepare_images
from ddpm_jax.devices import processes
from ddpm_jax.files import read_json_object, write_json
from ddpm_jax.forward.process import q_sample
from ddpm_jax.keys import example_keys, fold_in_each, make_key, normal_per_example
from ddpm_jax.programs.averages import average_name
from ddpm_jax.programs.console import bar, say
from ddpm_jax.programs.model import Model
from ddpm_jax.types import Array, mean_per_example, x_0_of

if TYPE_CHECKING:
    from ddpm_jax.programs.trained_run import TrainedRun


def measured_x_0_mse(run: TrainedRun) -> np.ndarray:
    """E‖x_0 - x̂_0(x_t)‖²/d for every step [T], on 256 training images; read, or measured now."""
    path = run.root / f"x_0_mse-{average_name(run.options)}-{run.step}.json"
    T = run.model.schedule.num_timesteps
    data = run.train_data
    count = min(len(data.images), 256)
    known_by = {
        "checkpoint_sha256": run.checkpoint_sha256,
        "data_fingerprint": data.fingerprint,
        "images": count,
    }

    known = functools.partial(_kept, path, known_by, T)
    if processes.on_leader(lambda: known() is not None):
        return np.asarray(known(), np.float64)
    # Spread over the data set, which may be sorted.
    chosen = np.linspace(0, len(data.images) - 1, count).astype(int)
    conditions = run.model.conditions(data, chosen)
    errors_of = jax.jit(functools.partial(_x_0_errors, run.model))
    # Of no seed of the user's: which image a seed gives must not depend on what ran before.
    keys = example_keys(make_key(0), jnp.arange(count, dtype=jnp.uint32))
    mse = np.zeros(T)
    with bar(T, "measuring the denoiser's errors", leave=False) as progress:
        for t in range(T):
            errors = errors_of(run.params, data.images[chosen], conditions, np.int32(t), keys)
            mse[t] = np.asarray(errors, np.float64).mean()
            progress.update()
    try:
        if processes.is_leader():
            write_json(path, {**known_by, "x_0_mse": mse.tolist()})
    except OSError as error:
        say(f"warning: {path} cannot be kept ({error.strerror}); it is measured again next time")
    return mse


def _kept(path: Path, known_by: dict[str, Any], num_timesteps: int) -> list[float] | None:
    """The errors in the file, if they are of this model and these data."""
    if not path.exists():
        return None
    try:
        values = read_json_object(path)
        errors = values.get("x_0_mse")
        if not known_by.items() <= values.items():
            return None
        if not isinstance(errors, list) or np.asarray(errors, np.float64).shape != (num_timesteps,):
            raise ValueError(f"it has no x_0_mse of {num_timesteps} numbers")
    except (OSError, ValueError, TypeError) as error:
        say(f"warning: {path} cannot be read ({error}); the errors are measured again")
        return None
    return errors


def _x_0_errors(model: Model, params, images, conditions, t, keys) -> Array:
    """‖x_0 - x̂_0‖²/d [b] at step t [], for one draw of noise an example."""
    x_0 = prepare_images(images, None, flip=False)
    noise = normal_per_example(fold_in_each(keys, t), x_0.shape[1:])
    steps = jnp.broadcast_to(t, x_0.shape[:1])
    others = {name: x for name, x in conditions.items() if name != "label"}
    denoise = model.denoiser_of(params, conditions.get("label"), **others)
    x_t = q_sample(model.schedule, x_0, t, noise)
    x_0_hat = x_0_of(denoise(x_t, steps), x_t)
    return mean_per_example(jnp.square(x_0 - x_0_hat))
