"""The variational bound of a trained run, step by step, on many images and all devices.

Every step of the bound is evaluated for several variances of p_θ(x_{t-1} | x_t) at once, from the
same network outputs and the same noise (Ho et al. 2020, Eq. 5).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ddpm_jax.data import ImageDataset, prepare_images
from ddpm_jax.denoisers.prediction import Variance
from ddpm_jax.devices.batched import RowSplit, batches
from ddpm_jax.devices.mesh import AXES, ROWS, WHOLE, fetch
from ddpm_jax.forward.schedule import timesteps_at
from ddpm_jax.keys import example_keys, make_key, normal_per_example
from ddpm_jax.likelihood.bound import prior_term
from ddpm_jax.likelihood.coding import mean_and_standard_error
from ddpm_jax.likelihood.variational import VariationalBound, terms_of_step
from ddpm_jax.programs.console import bar
from ddpm_jax.programs.model import Model
from ddpm_jax.programs.trained_run import TrainedRun


class MeasuredBound(NamedTuple):
    """The parts of the bound for N images, or N groups of images, on the host.

    terms        {variance: [T, N]}, L_0 .. L_{T-1} in bits/dim
    x_0_mse      [T, N], ‖x_0 - x̂_0‖²/d
    epsilon_mse  [T, N], ‖ε - ε̂‖²/d
    prior        [N], L_T in bits/dim
    num_images   how many images there are in all
    """

    terms: dict[str, np.ndarray]
    x_0_mse: np.ndarray
    epsilon_mse: np.ndarray
    prior: np.ndarray
    num_images: int

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
    steps_per_image: int | None = None,
) -> MeasuredBound:
    """Measures all T terms on the first `count` images of a data set.

    With fewer steps per image, T / steps_per_image images in a row form a group: each is measured
    at every so many steps, beginning at another one, so that the group has every step once. If the
    images are in random order, the sum of a group's terms has the images' mean bound as expectation
    and groups are independent: what is computed from N images also holds for N groups.

    Args:
        run: its model, parameters, devices and seed.
        variances: {name: variance of p_θ}; each gets its own terms.
        data: the images, with labels for a class-conditional run.
        count: how many images; fewer if the data set has fewer, or to fill the groups.
        batch_size: images at a time over all devices; changes speed and memory only.
        name: label of the progress bar.
        steps_per_image: a divisor of T; None for all T steps.

    Raises ValueError if steps_per_image is no divisor of T, or leaves fewer than two groups.
    """
    count = min(count, len(data.images))
    schedule = run.model.schedule
    T = schedule.num_timesteps
    group = _group_size(T, steps_per_image, count)
    count -= count % group
    split = RowSplit(run.devices)
    size = split.round_up(min(batch_size, count))
    params = split.replicate(run.params)

    def terms_at(params, images, conditions, t, index):
        keys = example_keys(make_key(run.options.seed), index)
        return _terms_at(run.model, variances, params, images, conditions, t, keys)

    def prior_at(images):
        return prior_term(schedule, prepare_images(images, None, flip=False))

    prior_of = split.map(prior_at, (ROWS,))
    step = split.map(terms_at, (WHOLE, ROWS, ROWS, ROWS, ROWS), (ROWS, PartitionSpec(None, AXES)))
    terms = {kind: np.zeros((T, count // group)) for kind in variances}
    errors = np.zeros((2, T, count // group))
    prior = np.zeros(count)
    with bar(T * count // group, name, unit="img·step") as progress:
        for rows in batches(count, size):
            real = rows.stop - rows.start
            conditions = run.model.conditions(data, rows)
            numbers = np.arange(rows.start, rows.stop)
            batch = (data.images[rows], conditions, numbers.astype(np.uint32))
            images, conditions, index = split.put(batch, size)
            prior[rows] = fetch(prior_of(images))[:real]
            for first in range(0, T, group):
                t = first + numbers % group
                steps = split.put(t.astype(np.int32), size)
                values, squares = fetch(step(params, images, conditions, steps, index))
                for kind, value in values.items():
                    terms[kind][t, numbers // group] = value[:real]
                errors[:, t, numbers // group] = squares[:, :real]
                progress.update(real)
    prior = prior.reshape(-1, group).mean(axis=1)
    return MeasuredBound(terms, errors[0], errors[1], prior, count)


def _group_size(T: int, steps_per_image: int | None, count: int) -> int:
    if steps_per_image is None:
        return 1
    if not 1 <= steps_per_image <= T or T % steps_per_image:
        raise ValueError(
            f"the bound needs steps per image that divide T = {T}, got {steps_per_image}."
        )
    group = T // steps_per_image
    if count < 2 * group:
        raise ValueError(
            f"with {steps_per_image} of {T} steps per image the bound needs at least {2 * group} "
            f"images, got {count}. Take more images, or more steps for each."
        )
    return group


def _terms_at(model: Model, variances, params, images, conditions, t, keys):
    """The terms of steps t [b] for every variance, and the squared errors of x̂_0 and ε̂ [2, b]."""
    schedule, diffusion = model.schedule, model.config.diffusion
    x_0 = prepare_images(images, None, flip=False)
    keys = jax.vmap(jax.random.fold_in)(keys, timesteps_at(schedule, t))
    noise = normal_per_example(keys, x_0.shape[1:])
    terms, *errors = terms_of_step(
        schedule,
        model.bind(params, **conditions),
        x_0,
        t,
        noise,
        model.target,
        variances,
        diffusion.clip,
        diffusion.variance,
    )
    return terms, jnp.stack(errors)


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
