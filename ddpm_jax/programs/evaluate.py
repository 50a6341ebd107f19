"""The evaluation program: samples a trained run and measures the samples.

    samples   shards of images, written while sampling: a killed program resumes after the last one
    features  of Inception-v3 (then the Fréchet distance is the FID), of a classifier of the run's
              own data (then it is not), or the pixels themselves
    metrics   Fréchet distance, KID, precision and recall, density and coverage; with Inception also
              the Inception Score and sFID; with a classifier its accuracy on conditional samples;
              bits/dim of held-out images beside them

Results are stored with all that they depend on: checkpoint, sampler, seed, count, data, features.
Results that need more images are named and left out before anything is sampled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ddpm_jax.devices import processes
from ddpm_jax.files import write_json
from ddpm_jax.programs import metrics
from ddpm_jax.programs.bound import bound_row, measure_bound
from ddpm_jax.programs.buckets import taken_in
from ddpm_jax.programs.config import DistributedConfig, SamplerOptions, sampler_options
from ddpm_jax.programs.config_values import check_least, with_types
from ddpm_jax.programs.console import say
from ddpm_jax.programs.outputs import claim
from ddpm_jax.programs.shards import content_of, read_shards, remember_plan, sample_shards
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun

PUBLISHED_COUNT = 50_000
"""Images that published FIDs are measured on; from fewer the distance comes out larger."""

COLUMNS = {
    "frechet": "Fréchet distance",
    "accuracy": "accuracy",
    "kid": "KID",
    "inception_score": "IS",
    "sfid": "sFID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}


@dataclass(frozen=True)
class EvaluateConfig(SamplerOptions, RunOptions):
    """Samples a trained run and measures it."""

    count: int | None = None
    """Images to sample; None for 50,000, or for small data as many as were held out, but at least
    10."""
    batch_size: int = 100
    """Images at a time; changes speed and memory, not the images."""
    guidance: float = 1.0
    """Classifier-free guidance of a class-conditional run."""
    features: Literal["auto", "inception", "classifier", "pixels"] = "auto"
    """Features to compare. auto: those of --classifier if it is given, else Inception-v3 for images
    of at least 32×32 pixels; the values themselves for smaller images, signals and volumes."""
    classifier: Path | None = None
    """Folder of a classifier of the run's own data, from ddpm-jax train classifier. Its Fréchet
    distance is no FID; of a class-conditional run it also gives the accuracy on the samples."""
    inception: Path | None = None
    """The published Inception weights (.pth or .safetensors); None for the copy in the cache."""
    download: bool = False
    """Download the Inception weights (96 MB) and verify their hash."""
    preprocess: Literal["tf1", "pytorch"] = "tf1"
    """How images reach 299×299: as in the FID's own TensorFlow graph, or as in its PyTorch port."""
    bootstrap: int = 100
    """Bootstrap resamplings for the interval of the Fréchet distance, computed only for features of
    at most 256 dimensions; 0 for none."""
    bits_count: int = 100
    """Held-out images for the bound in bits/dim; 0 to leave it out."""
    cache_dir: Path | None = None
    """Where weights and the training set's statistics are kept; None for the user's cache."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)


def evaluate(config: EvaluateConfig) -> None:
    """Samples and measures, and writes FEATURES.json and FEATURES.md, a table of one row.

    Raises ValueError for options with which nothing can be measured, ConnectionError or
    FileNotFoundError if Inception's weights are unavailable, and the errors of `TrainedRun`.
    """
    config = with_types("evaluate", config, EvaluateConfig)
    check_least(config, 1, "batch_size")
    check_least(config, 10, "count")
    check_least(config, 0, "bits_count", "bootstrap")
    if config.bits_count == 1:
        raise ValueError("--bits-count must be 0 or at least 2, got 1.")
    processes.connect(**dataclasses.asdict(config.distributed))
    run = processes.everywhere(lambda: TrainedRun(config))
    features = processes.everywhere(lambda: metrics.features_for(run, config))
    count = _count(run, config)
    heldout = run.heldout_data.images[:count]
    conditions, data = {}, run.heldout_data if len(heldout) else run.train_data
    if run.model.condition_shapes:
        conditions = run.model.other_conditions(data)
    _say_what_is_left_out(run, config, features.name, count, len(heldout))
    plan = _plan(run, config, count)
    if conditions:
        plan["conditions"] = {"name": data.name, "fingerprint": data.fingerprint}
    out = run.folder(f"evaluation/{_name(config, plan)}")
    # The folder belongs to the samples; the names of the files contain the features.
    variant = {"inception": config.preprocess, "classifier": features.fingerprint[:8]}
    kind = "-".join(filter(None, [features.name, variant.get(features.name)]))
    processes.on_leader(lambda: _refuse_foreign(out, kind))
    processes.on_leader(lambda: remember_plan(out, plan))
    generator = run.generator(run.sampler(config), guidance=config.guidance)
    size = config.batch_size
    sample_shards(run, generator, out, count=count, batch_size=size, conditions=conditions)

    def samples() -> Iterator[np.ndarray]:
        return read_shards(out, count, run.model.image_shape)

    sampled = metrics.summarize(features, samples, count, "features of the samples")
    truth = metrics.summarize_reference(run.train_data, features, config.cache_dir)
    options = {"bootstrap": config.bootstrap, "seed": config.seed}
    # Which classes an unconditional run made is unknown.
    labels = run.labels(count)
    true_labels = None if labels is None else run.heldout_data.labels[:count]
    real = None
    if len(heldout):
        real = metrics.summarize(
            features, lambda: iter([heldout]), len(heldout), "features of held-out images"
        )
    bits = _bits(run, config)
    if not processes.is_leader():
        return
    if real is not None:
        held_out = metrics.measure(real, truth, features, labels=true_labels, **options)
    else:
        held_out = {"left_out": metrics.not_measurable(0, len(truth.paired), features.name)}
    results = {
        **plan,
        "features": features.name,
        "features_fingerprint": features.fingerprint,
        "reference": {
            "data": run.train_data.name,
            "fingerprint": run.train_data.fingerprint,
            "images": len(run.train_data.images),
        },
        "samples": metrics.measure(sampled, truth, features, labels=labels, **options),
        "held_out": {"images": len(heldout), **held_out},
        "bits_per_dim": bits,
        "fewer_than_published": count < PUBLISHED_COUNT,
    }
    write_json(out / f"{kind}.json", results)
    row = markdown_row(results, run.model.schedule.num_timesteps)
    (out / f"{kind}.md").write_text(row, encoding="utf-8")
    _print_table(results)
    say(f"  {out / kind}.json")
    say(f"  {out / kind}.md")


def _refuse_foreign(out: Path, kind: str) -> None:
    """Raises RunDirectoryError for files of the results' names that no evaluation wrote."""
    taken = taken_in(out, (f"{kind}.json", f"{kind}.md"))
    claim(out, taken, ours=bool(taken_in(out, ("plan.json",))))


def _count(run: TrainedRun, config: EvaluateConfig) -> int:
    if config.count is not None:
        return config.count
    small = len(run.train_data.images) < 10_000
    return max(10, len(run.heldout_data.images)) if small else PUBLISHED_COUNT


def _say_what_is_left_out(
    run: TrainedRun, config: EvaluateConfig, kind: str, count: int, num_heldout: int
) -> None:
    """Prints which results need more images; ValueError if all of them do."""
    num_real = min(metrics.PAIRED, len(run.train_data.images))
    reasons = metrics.not_measurable(min(metrics.PAIRED, count), num_real, kind)
    if "frechet" in reasons:
        raise ValueError(
            f"nothing can be measured against {num_real} training image: two are the least. Train "
            "on more images, or name more with --data-path."
        )
    for name, reason in reasons.items():
        say(f"left out: {COLUMNS[name]} of the samples {reason}")
    for name, reason in metrics.not_measurable(num_heldout, num_real, kind).items():
        say(f"left out: {COLUMNS[name]} of the held-out images {reason}")
    if config.bits_count and num_heldout < 2:
        reason = "needs 2 held-out images, whose spread gives the error"
        say(f"left out: bits/dim {reason}, got {num_heldout}")


def _plan(run: TrainedRun, config: EvaluateConfig, count: int) -> dict[str, Any]:
    """All that the sampled images depend on."""
    return {
        **run.provenance(),
        "sampler": sampler_options(config),
        "guidance": config.guidance,
        "precision": run.config.network.dtype,
        "count": count,
    }


def _name(config: EvaluateConfig, plan: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(content_of(plan)).encode()).hexdigest()[:8]
    steps = config.num_steps or "all"
    return f"{config.sampler}-{steps}-steps-{plan['count']}-images-{digest}"


def _bits(run: TrainedRun, config: EvaluateConfig) -> dict[str, Any] | None:
    """The bound of held-out images, by the run's own variance."""
    count = min(config.bits_count, len(run.heldout_data.images))
    if count < 2:
        return None
    own = run.config.diffusion.variance
    measured = measure_bound(
        run, {own: own}, run.heldout_data, count=count, batch_size=min(count, 100), name="bits/dim"
    )
    return {"images": measured.num_images, "variance": own, **bound_row(measured, own)}


def _cells(measured: dict[str, Any]) -> dict[str, str]:
    cells = {}
    for name in COLUMNS:
        value = measured.get(name)
        if isinstance(value, dict):
            cells[name] = f"{value['mean']:.4g} ± {value['std']:.2g}"
        elif value is not None:
            cells[name] = f"{value:.3f}"
    interval = measured.get("frechet_interval_95")
    if interval:
        cells["frechet"] += f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return cells


def _title(results: dict[str, Any], name: str) -> str:
    titles = {"inception": "FID", "classifier": "Fréchet distance, classifier"}
    return titles.get(results["features"], COLUMNS[name]) if name == "frechet" else COLUMNS[name]


def markdown_row(results: dict[str, Any], num_timesteps: int) -> str:
    """A Markdown table of one row, with what is needed to reproduce it."""
    cells, count = _cells(results["samples"]), results["count"]
    bits = results["bits_per_dim"]
    head = ["run", "sampler", "steps", "images", *(_title(results, name) for name in cells)]
    sampler = results["sampler"]
    row = [
        f"{results['data']['name'].split('/')[0]} at step {results['checkpoint_step']:,}",
        sampler["sampler"],
        str(sampler["num_steps"] or num_timesteps),
        f"{count:,}",
        *cells.values(),
    ]
    if bits:
        head.append(f"bound in bits/dim, {bits['images']} held-out images")
        row.append(f"{bits['bits_per_dim']:.3f} ± {bits['standard_error']:.3f}")
    lines = ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), row)]
    fingerprint = results["features_fingerprint"]
    if results["features"] != "pixels":
        fingerprint = fingerprint[:16]
    default = dataclasses.asdict(SamplerOptions())
    chosen = {
        name: value
        for name, value in sampler.items()
        if name not in ("sampler", "num_steps") and value != default[name]
    }
    if results["guidance"] != 1.0:
        chosen["guidance"] = results["guidance"]
    notes = f"With {', '.join(f'{k} {v}' for k, v in chosen.items())}. " if chosen else ""
    notes += (
        f"Features {results['features']} ({fingerprint}), against "
        f"{results['reference']['images']:,} images of {results['reference']['data']} "
        f"({results['reference']['fingerprint'][:16]}); seed {results['seed']}, "
        f"{'EMA' if results['ema'] else 'last'} parameters, {results['precision']}, checkpoint "
        f"{results['checkpoint_sha256'][:16]}."
    )
    if results["fewer_than_published"]:
        notes += f" {count:,} images: not comparable with figures on {PUBLISHED_COUNT:,}."
    return "\n".join([*lines, "", notes, ""])


def _print_table(results: dict[str, Any]) -> None:
    """Prints the metrics of the samples beside those of held-out images."""
    say("")
    count = results["count"]
    samples, floor = _cells(results["samples"]), _cells(results["held_out"])
    width = max(18, *(len(_title(results, name)) + 2 for name in samples))
    say(f"{'':{width}}{f'{count:,} samples':28}{results['held_out']['images']:,} held-out images")
    for name in COLUMNS:
        if name not in samples:
            continue
        say(f"{_title(results, name):{width}}{samples[name]:28}{floor.get(name, '')}")
    bits = results["bits_per_dim"]
    if bits:
        say(
            f"{'bound, bits/dim':{width}}{'':28}{bits['bits_per_dim']:.3f} ± "
            f"{bits['standard_error']:.3f} on {bits['images']} held-out images"
        )
    if results["fewer_than_published"]:
        say(f"{count:,} images: not comparable with published figures on {PUBLISHED_COUNT:,}.")
    say("")
