"""How many bits a trained model needs: the bound by terms, the flow's likelihood, rate–distortion.

The bound is evaluated at every step, for each kind of variance the model could be sampled with, all
from the same evaluations of the network and the same noise (Ho et al. 2020, Eq. 5 and §4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ddpm_jax import visualize
from ddpm_jax.data import ImageDataset, prepare_images
from ddpm_jax.denoisers.optimal_variance import optimal_log_variance
from ddpm_jax.denoisers.prediction import (
    Variance,
    is_learned,
    p_mean_variance,
    predict_epsilon,
    split_output,
)
from ddpm_jax.denoisers.sigma import sigma_denoiser, sigma_range
from ddpm_jax.devices import processes
from ddpm_jax.files import write_json
from ddpm_jax.forward.process import q_sample
from ddpm_jax.keys import example_keys, fold_in_each, normal_per_example
from ddpm_jax.likelihood.bound import bound_term, prior_term
from ddpm_jax.likelihood.probability_flow import (
    bits_per_dim,
    dequantize,
    probability_flow_log_likelihood,
)
from ddpm_jax.likelihood.variational import (
    VariationalBound,
    mean_and_standard_error,
    rate_distortion,
)
from ddpm_jax.programs.console import bar, say
from ddpm_jax.programs.model import Model
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from ddpm_jax.types import Array, mean_per_example


@dataclass(frozen=True)
class LikelihoodConfig(RunOptions):
    """Bits per dimension of a trained run on held-out images."""

    count: int = 180
    """Held-out images; the standard errors come from their number."""
    batch_size: int = 180
    """Images at a time; changes speed and memory, not the figures."""
    train_split: bool = False
    """Also measure as many training images: how far the two are apart shows overfitting."""
    flow: bool = True
    """Also measure the likelihood of the probability-flow ODE, by Hutchinson's trace."""
    flow_count: int = 60
    """Images for the flow, which takes a hundred evaluations and their derivatives each."""
    tolerance: float = 1e-4
    """Relative and absolute tolerance of the ODE solver."""


class Measured(NamedTuple):
    """Per variance the terms [T, N] in bits/dim; the squared errors [T, N], the prior [N]."""

    terms: dict[str, np.ndarray]
    x_0_mse: np.ndarray
    epsilon_mse: np.ndarray
    prior: np.ndarray


def likelihood(config: LikelihoodConfig) -> None:
    """Measures, and writes likelihood.json, terms.png and rate_distortion.png.

    Raises ValueError for counts below two, RunDirectoryError and others as `TrainedRun` does.
    """
    if config.count < 2 or config.batch_size < 1 or config.flow_count < 2:
        raise ValueError(
            "--count and --flow-count must be at least 2 and --batch-size at least 1, got "
            f"{config.count}, {config.flow_count} and {config.batch_size}."
        )
    if not config.tolerance > 0:
        raise ValueError(f"--tolerance must be positive, got {config.tolerance}.")
    run = TrainedRun(config)
    out = run.folder("likelihood")
    splits = {"held out": run.heldout_data}
    if config.train_split:
        splits["training"] = run.train_data
    variances = _variances(run)
    results: dict[str, Any] = {}
    own = run.config.diffusion.variance
    curves: dict[str, Any] = {}
    for name, data in splits.items():
        measured = measure_bound(
            run,
            variances,
            data,
            count=config.count,
            batch_size=config.batch_size,
            name=f"the bound, {name}",
        )
        rows = {kind: bound_row(measured, kind) for kind in variances}
        results[name] = {"images": measured.prior.size, "bound": rows}
        if name == "held out":
            curves = {kind: terms.mean(axis=1) for kind, terms in measured.terms.items()}
            curve = rate_distortion(_as_bound(measured, own))
            _draw(out, curves, curve, own)
            results[name]["terms"] = {kind: values.tolist() for kind, values in curves.items()}
            results[name]["rate_distortion"] = {
                "variance": own,
                "rate_bits_per_dim": np.asarray(curve.rate).tolist(),
                "distortion_rmse_255": np.asarray(curve.distortion).tolist(),
            }
    if config.flow:
        results["held out"]["flow"] = _flow(run, config)
    write_json(out / "likelihood.json", {**run.provenance(), **results})
    _tell(results)
    for name in ("likelihood.json", "terms.png", "rate_distortion.png"):
        say(f"  {out / name}")


def _variances(run: TrainedRun) -> dict[str, Variance]:
    """The kinds of variance this run can be measured with, its own first."""
    own = run.config.diffusion.variance
    kinds: dict[str, Variance] = {own: own, "fixed_large": "fixed_large"}
    kinds["fixed_small"] = "fixed_small"
    kinds["analytic"] = optimal_log_variance(run.model.schedule, run.x_0_mse)
    return kinds


def measure_bound(
    run: TrainedRun,
    variances: dict[str, Variance],
    data: ImageDataset,
    *,
    count: int,
    batch_size: int,
    name: str,
) -> Measured:
    """Every step's terms on the first images of a split, behind a progress bar of that name."""
    count = min(count, len(data.images))
    devices = len(run.devices)
    size = -(-min(batch_size, count) // devices) * devices
    T = run.model.schedule.num_timesteps
    mesh, whole, rows = (
        processes.make_mesh(run.devices),
        PartitionSpec(),
        PartitionSpec(processes.AXES),
    )
    split = NamedSharding(mesh, rows)
    params = processes.spread(run.params, NamedSharding(mesh, whole))

    def terms_at(params, images, labels, t, index):
        keys = example_keys(jax.random.key(run.options.seed), index)
        return _terms_at(run.model, variances, params, images, labels, t, keys)

    step = jax.jit(
        jax.shard_map(
            terms_at,
            mesh=mesh,
            in_specs=(whole, rows, rows, whole, rows),
            out_specs=(rows, PartitionSpec(None, processes.AXES)),
        )
    )
    schedule = run.model.schedule
    prior_of = jax.jit(lambda x: prior_term(schedule, prepare_images(x, None, flip=False)))
    terms = {kind: np.zeros((T, count)) for kind in variances}
    errors = np.zeros((2, T, count))
    prior = np.zeros(count)
    with bar(T * count, name, unit="img·step") as progress:
        for first in range(0, count, size):
            # The last batch is filled up with its last image, so that one program serves all.
            index = np.minimum(np.arange(first, first + size), count - 1)
            real = min(size, count - first)
            part = slice(first, first + real)
            labels = None if run.model.num_classes is None else data.labels[index]
            prior[part] = np.asarray(prior_of(data.images[index]))[:real]
            images, labels, index = processes.put(
                (data.images[index], labels, index.astype(np.uint32)), split
            )
            for t in range(T):
                values, squares = processes.fetch(step(params, images, labels, np.int32(t), index))
                for kind, value in values.items():
                    terms[kind][t, part] = value[:real]
                errors[:, t, part] = squares[:, :real]
                progress.update(real)
    return Measured(terms, errors[0], errors[1], prior)


def _terms_at(model: Model, variances, params, images, labels, t, keys):
    """The terms of step t [] for every variance, and the squared errors of x̂_0 and ε̂ [2, b]."""
    schedule, diffusion = model.schedule, model.config.diffusion
    x_0 = prepare_images(images, None, flip=False)
    noise = normal_per_example(fold_in_each(keys, schedule.timesteps[t]), x_0.shape[1:])
    x_t = q_sample(schedule, x_0, t, noise)
    steps = jnp.broadcast_to(t, x_0.shape[:1])
    output = model.bind(params, label=labels)(x_t, steps)
    prediction, _ = split_output(output, x_t, diffusion.variance)
    terms, x_0_hat = {}, x_0
    for name, variance in variances.items():
        reverse = p_mean_variance(
            schedule,
            output if is_learned(variance) else prediction,
            x_t,
            steps,
            target=diffusion.target,
            variance=variance,
            clip=diffusion.clip,
        )
        terms[name] = bound_term(schedule, reverse, x_0, x_t, steps)
        x_0_hat = reverse.x_0_hat
    epsilon_hat = predict_epsilon(schedule, prediction, x_t, steps, target=diffusion.target)
    errors = (x_0 - x_0_hat, noise - epsilon_hat)
    return terms, jnp.stack([mean_per_example(jnp.square(error)) for error in errors])


def _as_bound(measured: Measured, kind: str) -> VariationalBound:
    terms = jnp.asarray(measured.terms[kind])
    prior = jnp.asarray(measured.prior)
    errors = jnp.asarray(measured.x_0_mse), jnp.asarray(measured.epsilon_mse)
    return VariationalBound(prior, terms, prior + terms.sum(axis=0), *errors)


def bound_row(measured: Measured, kind: str) -> dict[str, float]:
    """A line of the table: totals with their standard error, and the parts."""
    terms = measured.terms[kind]
    mean, error = mean_and_standard_error(measured.prior + terms.sum(axis=0))
    return {
        "bits_per_dim": mean,
        "standard_error": error,
        "prior": float(measured.prior.mean()),
        "rate": float(measured.prior.mean() + terms[1:].sum(axis=0).mean()),
        "distortion": float(terms[0].mean()),
    }


def _flow(run: TrainedRun, config: LikelihoodConfig) -> dict[str, Any] | None:
    """Bits/dim of the probability flow on dequantised held-out images; None where it has none."""
    model, diffusion = run.model, run.config.diffusion
    if diffusion.target == "previous_mean" or float(model.schedule.signal_scale[-1]) == 0.0:
        say("no flow likelihood: it needs a target other than previous_mean, and ᾱ_T above 0")
        return None
    data = run.heldout_data
    count = min(config.flow_count, len(data.images))
    sigma_min, sigma_max = sigma_range(model.schedule)
    shape = model.image_shape

    @jax.jit
    def measure(params, images, labels, keys):
        x_0 = prepare_images(images, None, flip=False)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, shape))(fold_in_each(keys, 0))
        probes = jax.vmap(lambda key: jax.random.rademacher(key, shape, x_0.dtype))(
            fold_in_each(keys, 1)
        )

        def denoise(y, sigma, *conditions):
            apply_fn = model.bind_prediction(params, label=conditions[0] if conditions else None)
            return sigma_denoiser(model.schedule, apply_fn, target=diffusion.target)(y, sigma)

        flow = probability_flow_log_likelihood(
            denoise,
            dequantize(x_0, uniform),
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            probes=probes[None],
            rtol=config.tolerance,
            atol=config.tolerance,
            conditions=() if labels is None else (labels,),
        )
        return bits_per_dim(flow.log_likelihood, shape), flow.num_evaluations

    size = min(20, count)
    bits, evaluations = np.zeros(count), np.zeros(count)
    with bar(count, "the flow", unit="img") as progress:
        for first in range(0, count, size):
            part = slice(min(first, count - size), min(first, count - size) + size)
            labels = None if model.num_classes is None else data.labels[part]
            index = jnp.arange(part.start, part.stop, dtype=jnp.uint32)
            keys = example_keys(jax.random.key(config.seed), index)
            bits[part], evaluations[part] = map(
                np.asarray, measure(run.params, data.images[part], labels, keys)
            )
            progress.update(min(size, count - first))
    mean, error = mean_and_standard_error(bits)
    return {
        "images": count,
        "bits_per_dim": mean,
        "standard_error": error,
        "median_evaluations": float(np.median(evaluations)),
        "tolerance": config.tolerance,
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
    }


def _draw(out, curves: dict[str, Array], curve: Any, own: str) -> None:
    T = len(next(iter(curves.values())))
    t = np.arange(1, T + 1)
    positive = {kind: np.where(values > 0, values, np.nan) for kind, values in curves.items()}
    visualize.save_curves(
        out / "terms.png",
        {kind: (t, values) for kind, values in positive.items()},
        "step t + 1 (1: the decoder)",
        "L_t in bits/dim",
        logx=True,
        logy=True,
        title="Where the bits are: the terms of the bound",
    )
    visualize.save_curves(
        out / "rate_distortion.png",
        {own: (np.asarray(curve.rate), np.asarray(curve.distortion))},
        "rate (bits/dim received)",
        "distortion (RMSE, 0..255)",
        title="Progressive lossy coding",
    )


def _tell(results: dict[str, Any]) -> None:
    for name, result in results.items():
        say(f"\n{result['images']} images, {name}:")
        say(f"{'':14}  bits/dim ≤         rate  distortion  prior L_T")
        for kind, row in result["bound"].items():
            say(
                f"{kind:14}  {row['bits_per_dim']:.3f} ± {row['standard_error']:.3f}  "
                f"{row['rate']:9.3f}  {row['distortion']:10.3f}  {row['prior']:9.1e}"
            )
        flow = result.get("flow")
        if flow:
            say(
                f"{'flow (ODE)':14}  {flow['bits_per_dim']:.3f} ± {flow['standard_error']:.3f}  "
                f"({flow['images']} images, {flow['median_evaluations']:.0f} evaluations each)"
            )
    say("")
