"""The variational bound of a trained run, step by step, on many images and all devices.

Every step of the bound is evaluated for several variances of p_θ(x_{t-1} | x_t) at once, from the
same network outputs and the same noise (Ho et al. 2020, Eq. 5).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ddpm_jax.data import ImageDataset, prepare_images
from ddpm_jax.denoisers.prediction import (
    Variance,
    is_learned,
    p_mean_variance,
    predict_epsilon,
    split_output,
)
from ddpm_jax.devices.batched import RowSplit, batches
from ddpm_jax.devices.mesh import AXES, ROWS, WHOLE, fetch
from ddpm_jax.forward.process import q_sample
from ddpm_jax.forward.schedule import timesteps_at
from ddpm_jax.keys import example_keys, fold_in_each, make_key, normal_per_example
from ddpm_jax.likelihood.bound import bound_term, prior_term
from ddpm_jax.likelihood.coding import mean_and_standard_error
from ddpm_jax.likelihood.variational import VariationalBound
from ddpm_jax.programs.console import bar
from ddpm_jax.programs.model import Model
from ddpm_jax.programs.trained_run import TrainedRun
from ddpm_jax.types import mean_per_example


class MeasuredBound(NamedTuple):
    """The parts of the bound for N images, on the host.

    terms        {variance: [T, N]}, L_0 .. L_{T-1} in bits/dim
    x_0_mse      [T, N], ‖x_0 - x̂_0‖²/d
    epsilon_mse  [T, N], ‖ε - ε̂‖²/d
    prior        [N], L_T in bits/dim
    """

    terms: dict[str, np.ndarray]
    x_0_mse: np.ndarray
    epsilon_mse: np.ndarray
    prior: np.ndarray

    def variational_bound(self, variance: str) -> VariationalBound:
        """The bound for one of the variances, as `variational_bound` returns it."""
        terms, prior = jnp.asarray(self.terms[variance]), jnp.asarray(self.prior)
        errors = jnp.asarray(self.x_0_mse), jnp.asarray(self.epsilon_mse)
        return VariationalBound(prior, terms, prior + terms.sum(axis=0), *errors)


def measure_bound(
    run: TrainedRun,
    variances: dict[str, Variance],
    data: ImageDataset,
    *,
    count: int,
    batch_size: int,
    name: str,
) -> MeasuredBound:
    """Measures all T terms on the first `count` images of a data set.

    Args:
        run: its model, parameters, devices and seed.
        variances: {name: variance of p_θ}; each gets its own terms.
        data: the images, with labels for a class-conditional run.
        count: how many images; fewer if the data set has fewer.
        batch_size: images at a time over all devices; changes speed and memory only.
        name: label of the progress bar.
    """
    count = min(count, len(data.images))
    schedule = run.model.schedule
    T = schedule.num_timesteps
    split = RowSplit(run.devices)
    size = split.round_up(min(batch_size, count))
    params = split.replicate(run.params)

    def terms_at(params, images, conditions, t, index):
        keys = example_keys(make_key(run.options.seed), index)
        return _terms_at(run.model, variances, params, images, conditions, t, keys)

    def prior_at(images):
        return prior_term(schedule, prepare_images(images, None, flip=False))

    prior_of = split.map(prior_at, (ROWS,))
    step = split.map(terms_at, (WHOLE, ROWS, ROWS, WHOLE, ROWS), (ROWS, PartitionSpec(None, AXES)))
    terms = {kind: np.zeros((T, count)) for kind in variances}
    errors = np.zeros((2, T, count))
    prior = np.zeros(count)
    with bar(T * count, name, unit="img·step") as progress:
        for rows in batches(count, size):
            real = rows.stop - rows.start
            conditions = run.model.conditions(data, rows)
            index = np.arange(rows.start, rows.stop, dtype=np.uint32)
            images, conditions, index = split.put((data.images[rows], conditions, index), size)
            prior[rows] = fetch(prior_of(images))[:real]
            for t in range(T):
                values, squares = fetch(step(params, images, conditions, np.int32(t), index))
                for kind, value in values.items():
                    terms[kind][t, rows] = value[:real]
                errors[:, t, rows] = squares[:, :real]
                progress.update(real)
    return MeasuredBound(terms, errors[0], errors[1], prior)


def _terms_at(model: Model, variances, params, images, conditions, t, keys):
    """The terms of step t [] for every variance, and the squared errors of x̂_0 and ε̂ [2, b]."""
    schedule, diffusion = model.schedule, model.config.diffusion
    x_0 = prepare_images(images, None, flip=False)
    noise = normal_per_example(fold_in_each(keys, timesteps_at(schedule, t)), x_0.shape[1:])
    x_t = q_sample(schedule, x_0, t, noise)
    steps = jnp.broadcast_to(t, x_0.shape[:1])
    output = model.bind(params, **conditions)(x_t, steps)
    prediction, _ = split_output(output, x_t, diffusion.variance)
    terms, x_0_hat = {}, x_0
    for name, variance in variances.items():
        reverse = p_mean_variance(
            schedule,
            output if is_learned(variance) else prediction,
            x_t,
            steps,
            target=model.target,
            variance=variance,
            clip=diffusion.clip,
        )
        terms[name] = bound_term(schedule, reverse, x_0, x_t, steps)
        x_0_hat = reverse.x_0_hat
    epsilon_hat = predict_epsilon(schedule, prediction, x_t, steps, target=model.target)
    errors = (x_0 - x_0_hat, noise - epsilon_hat)
    return terms, jnp.stack([mean_per_example(jnp.square(error)) for error in errors])


def bound_row(measured: MeasuredBound, variance: str) -> dict[str, float]:
    """One row of a table, in bits/dim: the total with its standard error, and its parts."""
    terms = measured.terms[variance]
    mean, error = mean_and_standard_error(measured.prior + terms.sum(axis=0))
    return {
        "bits_per_dim": mean,
        "standard_error": error,
        "prior": float(measured.prior.mean()),
        "rate": float(measured.prior.mean() + terms[1:].sum(axis=0).mean()),
        "distortion": float(terms[0].mean()),
    }
