"""Bits per dimension of a trained model: the bound, term by term, and the flow's likelihood.

    ddpm-jax likelihood --run-dir runs/digits

The bound (Ho, Jain, Abbeel 2020, arXiv 2006.11239, Eq. 5) is evaluated at every step, for each kind
of variance the model could be sampled with, from the same network outputs and the same noise. Its
terms also describe progressive lossy coding (§4.3 and Figure 5 there). The probability flow is that
of Song et al. 2021 (2011.13456), the analytic variance that of Bao et al. 2022 (2201.06503). Expect
most bits in the last few steps before the image. Of the fixed variances, the analytic one should
need the fewest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import isotonic_regression

from ddpm_jax import visualize
from ddpm_jax.data import prepare_images
from ddpm_jax.denoisers.optimal_variance import optimal_log_variance
from ddpm_jax.denoisers.prediction import Variance
from ddpm_jax.denoisers.sigma import sigma_range
from ddpm_jax.files import write_json
from ddpm_jax.forward import respace
from ddpm_jax.keys import example_keys, fold_in_each, make_key
from ddpm_jax.likelihood.coding import RateDistortion, mean_and_standard_error, rate_distortion
from ddpm_jax.likelihood.dequantization import bits_per_dim, dequantize
from ddpm_jax.likelihood.probability_flow import probability_flow_log_likelihood
from ddpm_jax.programs.bound import MeasuredBound, bound_row, measure_bound
from ddpm_jax.programs.config_values import check_least
from ddpm_jax.programs.console import bar, run_program, say
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun


@dataclass(frozen=True)
class LikelihoodConfig(RunOptions):
    """Bits per dimension of a trained model on held-out images."""

    count: int = 180
    """Held-out images; more of them lower the standard errors."""
    batch_size: int = 180
    """Images at a time; changes speed and memory, not the numbers."""
    steps_per_image: int | None = None
    """Steps to measure each image at, a divisor of T: fewer for many images. None for all T."""
    train_split: bool = False
    """Also measure as many training images: the gap between the two shows overfitting."""
    analytic: bool = True
    """Also use the analytic variance, measured once per checkpoint on 256 training images at all
    steps."""
    flow: bool = True
    """Also measure the likelihood of the probability-flow ODE, with Hutchinson's estimator."""
    flow_count: int = 60
    """Images for the flow, which takes about a hundred evaluations and derivatives per image."""
    tolerance: float = 1e-4
    """Relative and absolute tolerance of the ODE solver."""


class LikelihoodResult(NamedTuple):
    """What the study made.

    bounds   {split: the bound's terms for every variance}
    numbers  {split: the table, and for held-out images the curves and the flow}
    files    what was written
    """

    bounds: dict[str, MeasuredBound]
    numbers: dict[str, Any]
    files: list[Path]


def likelihood(config: LikelihoodConfig) -> LikelihoodResult:
    """Measures; writes likelihood.json, terms.png and rate_distortion.png.

    Raises ValueError for invalid options, and whatever `TrainedRun` raises.
    """
    check_least(config, 2, "count", "flow_count")
    check_least(config, 1, "batch_size")
    if not config.tolerance > 0:
        raise ValueError(f"--tolerance must be positive, got {config.tolerance}.")
    run = TrainedRun(config)
    splits = {"held out": run.need_heldout(2)}
    if config.train_split:
        splits["training"] = run.train_data
    out = run.study_folder("likelihood", ["terms.png", "rate_distortion.png"])
    variances = _variances(run, config.analytic)
    own = run.config.diffusion.variance
    bounds: dict[str, MeasuredBound] = {}
    numbers: dict[str, Any] = {}
    for name, data in splits.items():
        bounds[name] = measure_bound(
            run,
            variances,
            data,
            count=config.count,
            batch_size=config.batch_size,
            name=f"the bound, {name}",
            steps_per_image=config.steps_per_image,
        )
        rows = {kind: bound_row(bounds[name], kind) for kind in variances}
        numbers[name] = {"images": bounds[name].num_images, "bound": rows}
    heldout = bounds["held out"]
    curve = rate_distortion(heldout.variational_bound(own))
    numbers["held out"] |= {
        "terms": {kind: values.mean(axis=1).tolist() for kind, values in heldout.terms.items()},
        "beyond_own": {
            kind: dict(zip(("bits_per_dim", "standard_error"), beyond, strict=True))
            for kind, beyond in _beyond(heldout.terms, own).items()
        },
        "rate_distortion": {
            "variance": own,
            "rate_bits_per_dim": np.asarray(curve.rate).tolist(),
            "distortion_rmse_255": np.asarray(curve.distortion).tolist(),
        },
    }
    files = [out / name for name in ("likelihood.json", "terms.png", "rate_distortion.png")]
    _plot_terms(files[1], heldout.terms, own)
    shared = None if config.steps_per_image is None else heldout.prior.size
    _plot_rate_distortion(files[2], curve, own, shared)
    if config.flow:
        numbers["held out"]["flow"] = _flow(run, config)
    write_json(files[0], {**run.provenance(), **numbers})
    _print_table(numbers)
    for path in files:
        say(f"  {path}")
    return LikelihoodResult(bounds, numbers, files)


def _variances(run: TrainedRun, analytic: bool) -> dict[str, Variance]:
    """The variances this model could be sampled with, its own first."""
    own = run.config.diffusion.variance
    variances: dict[str, Variance] = {
        own: own,
        "fixed_large": "fixed_large",
        "fixed_small": "fixed_small",
    }
    if analytic:
        variances["analytic"] = optimal_log_variance(run.model.schedule, run.x_0_mse)
    return variances


def _flow(run: TrainedRun, config: LikelihoodConfig) -> dict[str, Any] | None:
    """Bits/dim of the probability flow on dequantised held-out images; None if it is undefined."""
    model, diffusion = run.model, run.config.diffusion
    schedule, T = model.schedule, model.schedule.num_timesteps
    ends = float(schedule.signal_scale[-1]) == 0.0
    if diffusion.target == "previous_mean" or (ends and (model.process is None or T < 2)):
        say("no flow likelihood: it needs a target other than previous_mean, and ᾱ_T > 0")
        return None
    if ends:  # σ is infinite at t = 1 of the flow: from the time before
        schedule = respace(schedule, np.arange(T - 1))
    data = run.heldout_data
    count = min(config.flow_count, len(data.images))
    sigma_min, sigma_max = sigma_range(schedule)
    shape = model.image_shape

    @jax.jit
    def measure(params, images, given, keys):
        x_0 = prepare_images(images, None, flip=False)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, shape))(fold_in_each(keys, 0))
        probes = jax.vmap(lambda key: jax.random.rademacher(key, shape, x_0.dtype))(
            fold_in_each(keys, 1)
        )

        def denoise(y, sigma, *conditions):
            bound = dict(zip(given, conditions, strict=True))
            return model.sigma_denoiser(params, **bound)(y, sigma)

        flow = probability_flow_log_likelihood(
            denoise,
            dequantize(x_0, uniform),
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            probes=probes[None],
            rtol=config.tolerance,
            atol=config.tolerance,
            conditions=tuple(given.values()),
        )
        return bits_per_dim(flow.log_likelihood, shape), flow.num_evaluations

    size = min(20, count)
    bits, evaluations = np.zeros(count), np.zeros(count)
    with bar(count, "the flow", unit="img") as progress:
        for first in range(0, count, size):
            part = slice(min(first, count - size), min(first, count - size) + size)
            given = model.conditions(data, part)
            index = jnp.arange(part.start, part.stop, dtype=jnp.uint32)
            keys = example_keys(make_key(config.seed), index)
            bits[part], evaluations[part] = map(
                np.asarray, measure(run.params, data.images[part], given, keys)
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


def _beyond(terms: dict[str, np.ndarray], own: str) -> dict[str, tuple[float, float]]:
    """Mean and standard error of the bits/dim that each variance needs more than the run's own.

    The error is that of paired differences: all variances share images and noise.
    """
    return {
        kind: mean_and_standard_error((values - terms[own]).sum(axis=0))
        for kind, values in terms.items()
        if kind != own
    }


def _plot_terms(path: Path, terms: dict[str, np.ndarray], own: str) -> None:
    """The run's own terms, and what the other variances add to them from the decoder on.

    terms  {variance: [T, N]}
    """
    T, N = terms[own].shape
    last = max(1, T // 10)
    mean = terms[own].mean(axis=1)
    steps = np.arange(1, T + 1)
    x = "step t + 1 (1: the decoder)"
    beyond = [visualize.Line(steps, np.zeros(T), _name(own), width=1.0)]
    for i, kind in enumerate(_beyond(terms, own), 1):
        sums = np.cumsum(terms[kind] - terms[own], axis=0)
        middle, error = sums.mean(axis=1), 1.96 * sums.std(axis=1, ddof=1) / np.sqrt(N)
        band = (middle - error, middle + error)
        beyond.append(visualize.Line(steps, middle, _name(kind), colour=i, band=band))
    panels = [
        visualize.Panel(
            f"The last {last} of {T} steps hold {mean[:last].sum() / mean.sum():.0%} of the bits",
            [visualize.Line(steps, np.where(mean > 0, mean, np.nan))],
            x,
            f"L_t with {_name(own)}, in bits/dim",
            logx=True,
            logy=True,
        ),
        visualize.Panel(
            _cheapest(_beyond(terms, own), own),
            beyond,
            x,
            f"bits/dim beyond {_name(own)}, up to step t",
            logx=True,
        ),
    ]
    visualize.save_panels(path, panels, size=(4.4, 3.5))


def _name(kind: str) -> str:
    return kind.replace("_", " ")


def _cheapest(beyond: dict[str, tuple[float, float]], own: str) -> str:
    """Says which variance needs the fewest bits: the run's own or the best of the others."""
    rival = min(beyond, key=lambda kind: beyond[kind][0])
    gap, error = beyond[rival]
    if abs(gap) < 2 * error:
        return f"{_name(own)} equals {_name(rival)} within the error".capitalize()
    best, other = (own, rival) if gap > 0 else (rival, own)
    return f"{_name(best)} saves {abs(gap):.2g} bits/dim over {_name(other)}".capitalize()


def _plot_rate_distortion(path: Path, curve: RateDistortion, own: str, shared: int | None) -> None:
    """The distortion against the rate from a thousandth of the bits on.

    shared  None if every image was measured at every step. Otherwise how many images were: then
            neighbouring steps have different images and scatter, and the curve is a fit to them,
            the nearest one that never rises.
    """
    rate, distortion = np.asarray(curve.rate), np.asarray(curve.distortion)
    shown = rate >= 1e-3 * rate[-1]
    layers: list[Any] = []
    if shared is not None:
        points = np.stack([rate, distortion], axis=1)[shown]
        label = f"each step, {shared:,} images"
        layers.append(visualize.Points(points, colour=5, size=6.0, label=label))
        distortion = isotonic_regression(distortion, increasing=False).x
    start, half, end = distortion[0], np.interp(0.5 * rate[-1], rate, distortion), distortion[-1]
    ends = [rate[shown][0], rate[-1]]
    label = _name(own) if shared is None else f"{_name(own)}, monotone fit"
    layers += [
        visualize.Line(rate[shown], distortion[shown], label),
        visualize.Line(ends, [start] * 2, "before the first bit", colour="#6b7078", style="--"),
    ]
    panel = visualize.Panel(
        f"Half of the {rate[-1]:.2f} bits/dim lower the error from {start:.0f} to {half:.1f} grey "
        f"levels, the rest to {end:.1f}",
        layers,
        "rate (bits/dim received)",
        "distortion (RMSE in grey levels of 255)",
        logx=True,
        logy=True,
    )
    visualize.save_panels(path, [panel], size=(6.4, 4.0))


def _print_table(numbers: dict[str, Any]) -> None:
    for name, result in numbers.items():
        say(f"\n{result['images']} images, {name}:")
        say(f"{'':14}  bound, bits/dim    rate  distortion  prior L_T")
        for kind, row in result["bound"].items():
            say(
                f"{kind:14}  {row['bits_per_dim']:.3f} ± {row['standard_error']:.3f}  "
                f"{row['rate']:9.3f}  {row['distortion']:10.3f}  {row['prior']:9.1e}"
            )
        flow = result.get("flow")
        if flow:
            say(
                f"{'flow (ODE)':14}  {flow['bits_per_dim']:.3f} ± {flow['standard_error']:.3f}  "
                f"({flow['images']} images, {flow['median_evaluations']:.0f} evaluations per image)"
            )
    say("")


if __name__ == "__main__":
    run_program(likelihood, LikelihoodConfig(), __doc__)
