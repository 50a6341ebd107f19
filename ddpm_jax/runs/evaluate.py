"""The evaluation program: samples a trained run and measures what came out, in one go.

    samples   shards of images, written as they come: a killed evaluation goes on after its last
    features  of Inception-v3 (then the Fréchet distance is the FID), or the pixels themselves
    figures   Fréchet distance, KID, precision and recall, density and coverage; with Inception also
              the Inception Score and sFID; bits/dim of held-out images beside them

Every figure is written with what it depends on: checkpoint, sampler, seed, count, data, features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ddpm_jax import evaluation
from ddpm_jax.data.cache import cache_root
from ddpm_jax.evaluation import FeatureExtractor, Moments, StatisticsKey
from ddpm_jax.runs.config import SamplerOptions
from ddpm_jax.runs.console import bar, say
from ddpm_jax.runs.directory import RunDirectoryError, write_json
from ddpm_jax.runs.studies.likelihood import bound_row, measure_bound
from ddpm_jax.runs.trained import RunOptions, TrainedRun

PUBLISHED_COUNT = 50_000
"""Images that published FIDs are measured on; from fewer the distance comes out larger."""
PAIRED = 10_000
"""Images a side for the metrics of pairs (KID, precision, recall, density, coverage), at most."""
SHARD = 1000
"""Images in one file."""


@dataclass(frozen=True)
class EvaluateConfig(SamplerOptions, RunOptions):
    """Samples a trained run and measures it."""

    count: int | None = None
    """Images to sample; None for 50,000, or for small data as many as were held out."""
    batch_size: int = 100
    """Images at a time; changes speed and memory, not the images."""
    guidance: float = 1.0
    """Classifier-free guidance of a class-conditional run."""
    features: Literal["auto", "inception", "pixels"] = "auto"
    """What is compared; auto: Inception-v3 from 32×32 pixels on, the pixels themselves below."""
    inception: Path | None = None
    """The published Inception weights (.pth or .safetensors); None for the copy in the cache."""
    download: bool = False
    """Whether the Inception weights may be fetched, 96 MB, their hash verified."""
    preprocess: Literal["tf1", "pytorch"] = "tf1"
    """How images reach 299×299: as in the FID's own TensorFlow graph, or as in its PyTorch port."""
    bootstrap: int = 100
    """Resamplings for the interval of the Fréchet distance, where features are few; 0 for none."""
    bits_count: int = 100
    """Held-out images for the bound in bits/dim; 0 to leave it out."""
    cache_dir: Path | None = None
    """Where weights and the training set's statistics are kept; None for the user's cache."""


class Features(NamedTuple):
    """A feature function, and what it is known by.

    Attributes:
        name: "inception" or "pixels".
        fingerprint: of network, weights, resize and precision.
        main: which of its outputs the metrics of pairs use.
        of: images [n, H, W, C] -> {name: [n, D]}.
        batch_size: images a call.
    """

    name: str
    fingerprint: str
    main: str
    of: Callable[[npt.NDArray[np.uint8]], dict[str, npt.NDArray]]
    batch_size: int


class Seen(NamedTuple):
    """What is kept of a set of images."""

    moments: dict[str, Moments]
    paired: npt.NDArray
    logits: npt.NDArray | None


def evaluate(config: EvaluateConfig) -> None:
    """Samples and measures, and writes evaluation.json and row.md.

    Raises ValueError for flags nothing could be measured by, ConnectionError or FileNotFoundError
    where Inception's weights are not to be had, and others as `TrainedRun`.
    """
    if config.batch_size < 1 or (config.count is not None and config.count < 10):
        raise ValueError(
            f"--batch-size must be at least 1 and --count at least 10, got {config.batch_size} and "
            f"{config.count}."
        )
    if config.bits_count == 1 or config.bits_count < 0 or config.bootstrap < 0:
        raise ValueError(
            "--bits-count must be 0 or at least 2, and --bootstrap at least 0, got "
            f"{config.bits_count} and {config.bootstrap}."
        )
    run = TrainedRun(config)
    features = _features(run, config)
    count = _count(run, config)
    plan = _plan(run, config, count)
    out = run.folder(f"evaluation/{_name(config, plan)}")
    _remember(out, plan)
    _sample(run, config, count, out)
    sampled = _look(features, lambda: _shards(out, count), count, "features of the samples")
    truth = _reference(run, config, features)
    measured = _measure(sampled, truth, config)
    heldout = run.heldout_data.images[:count]
    floor = _measure(
        _look(features, lambda: iter([heldout]), len(heldout), "features of held-out images"),
        truth,
        config,
    )
    bits = _bits(run, config)
    results = {
        **plan,
        "features": features.name,
        "features_fingerprint": features.fingerprint,
        "reference": {
            "data": run.train_data.name,
            "fingerprint": run.train_data.fingerprint,
            "images": len(run.train_data.images),
        },
        "samples": measured,
        "held_out": {"images": len(heldout), **floor},
        "bits_per_dim": bits,
        "fewer_than_published": count < PUBLISHED_COUNT,
    }
    write_json(out / "evaluation.json", results)
    (out / "row.md").write_text(_table(run, results, count))
    _tell(results, count)
    say(f"  {out / 'evaluation.json'}")
    say(f"  {out / 'row.md'}")


def _features(run: TrainedRun, config: EvaluateConfig) -> Features:
    name = config.features
    if name == "auto":
        name = "inception" if min(run.model.image_shape[:2]) >= 32 else "pixels"
    if name == "pixels":
        shape = "×".join(map(str, run.model.image_shape))

        def pixels(images):
            return {"pixels": evaluation.pixel_features(images)}

        return Features("pixels", f"pixels in [-1, 1], {shape}", "pixels", pixels, 1000)
    cached = cache_root(config.cache_dir) / "inception"
    if config.inception is None and not config.download and not any(cached.glob("*.pth")):
        raise ValueError(
            f"the weights of Inception-v3 are not in {cached}. Fetch them with --download (96 MB), "
            "name a copy with --inception FILE, or compare pixels: --features pixels."
        )
    variables = evaluation.load_inception_weights(config.inception, cache_dir=config.cache_dir)
    extractor: FeatureExtractor = evaluation.inception_extractor(
        variables,
        outputs=("pool", "spatial", "logits_unbiased"),
        preprocess=evaluation.PREPROCESSINGS[config.preprocess],
        devices=run.devices,
    )
    return Features("inception", extractor.fingerprint, "pool", extractor, extractor.batch_size)


def _count(run: TrainedRun, config: EvaluateConfig) -> int:
    if config.count is not None:
        return config.count
    small = len(run.train_data.images) < 10_000
    return len(run.heldout_data.images) if small else PUBLISHED_COUNT


def _plan(run: TrainedRun, config: EvaluateConfig, count: int) -> dict[str, Any]:
    """All that the sampled images depend on."""
    manifest = run.directory.checkpoints / str(run.step) / "manifest.json"
    options = dataclasses.asdict(
        SamplerOptions(
            **{f.name: getattr(config, f.name) for f in dataclasses.fields(SamplerOptions)}
        )
    )
    return {
        **run.provenance(),
        "checkpoint_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "sampler": options,
        "guidance": config.guidance,
        "precision": run.config.network.dtype,
        "count": count,
    }


def _name(config: EvaluateConfig, plan: dict[str, Any]) -> str:
    # Device and version change rounding only; a folder is shared by what changes the images.
    kept = {k: v for k, v in plan.items() if k not in ("device", "jax", "run")}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
    steps = config.num_steps or "all"
    return f"{config.sampler}-{steps}-steps-{plan['count']}-images-{digest}"


def _remember(out: Path, plan: dict[str, Any]) -> None:
    """Notes what the folder's shards are of; RunDirectoryError where they are of something else."""
    path = out / "plan.json"
    changing = ("device", "jax", "run")
    if path.exists():
        old = json.loads(path.read_text())
        changed = sorted(
            k for k in plan if k not in changing and old.get(k) != json.loads(json.dumps(plan[k]))
        )
        if changed:
            raise RunDirectoryError(
                f"{out} holds samples made otherwise (other {', '.join(changed)}). Choose another "
                "folder with --out. Nothing was changed."
            )
        return
    write_json(path, plan)


def _shard(out: Path, first: int) -> Path:
    return out / "shards" / f"{first:06d}.npz"


def _read_shard(path: Path, count: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
    """The images of a shard; None where it is not there or not whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["images"]
    except (OSError, ValueError, KeyError, EOFError):
        return None
    except Exception as error:  # a damaged zip raises its own kinds
        say(f"warning: {path} cannot be read ({error}); it is sampled again")
        return None
    return images if images.shape == (count, *shape) and images.dtype == np.uint8 else None


def _sample(run: TrainedRun, config: EvaluateConfig, count: int, out: Path) -> None:
    """Draws the shards that are not there yet."""
    generator = run.generator(run.sampler(config), guidance=config.guidance)
    (out / "shards").mkdir(exist_ok=True)
    with bar(count * generator.num_steps, "sampling", unit="img·step") as progress:
        for first in range(0, count, SHARD):
            size = min(SHARD, count - first)
            if _read_shard(_shard(out, first), size, run.model.image_shape) is not None:
                progress.update(size * generator.num_steps)
                continue
            labels = run.labels(first + size)
            made = generator(
                run.params,
                seed=config.seed,
                count=size,
                # One size of batch, so one program, however the shards end.
                batch_size=min(config.batch_size, SHARD, count),
                start=first,
                labels=None if labels is None else labels[first:],
                on_progress=progress.update,
            )
            path = _shard(out, first)
            draft = path.with_suffix(".tmp")
            with draft.open("wb") as file:
                np.savez_compressed(file, images=made.images)
            os.replace(draft, path)


def _shards(out: Path, count: int) -> Iterator[npt.NDArray[np.uint8]]:
    for first in range(0, count, SHARD):
        with np.load(_shard(out, first), allow_pickle=False) as file:
            yield file["images"]


def _look(
    features: Features,
    source: Callable[[], Iterator[npt.NDArray[np.uint8]]],
    count: int,
    name: str,
) -> Seen:
    """Moments of all features, and the first PAIRED of the main ones, in one pass."""
    kept: list[npt.NDArray] = []

    def of(images):
        found = features.of(images)
        room = PAIRED - sum(map(len, kept))
        if room > 0:
            kept.append(np.asarray(found[features.main][:room], np.float32))
        return found

    logits = "logits_unbiased"
    known = features.name == "inception"
    moments = ("pool", "spatial") if known else (features.main,)
    with bar(count, name, unit="img") as progress:
        done = 0

        def tell(total: int) -> None:
            nonlocal done
            progress.update(total - done)
            done = total

        summary = evaluation.summarize_features(
            source(),
            of,
            moments=moments,
            keep=(logits,) if known else (),
            batch_size=features.batch_size,
            on_progress=tell,
        )
    return Seen(summary.moments, np.concatenate(kept), summary.features.get(logits))


def _reference(run: TrainedRun, config: EvaluateConfig, features: Features) -> Seen:
    """The training set: its moments, cached by fingerprint, and some of its features."""
    data = run.train_data
    total = len(data.images)
    # Spread over the data set, which may be sorted.
    chosen = np.unique(np.linspace(0, total - 1, min(PAIRED, total)).astype(int))
    folder = cache_root(config.cache_dir) / "statistics"

    def whole() -> dict[str, Moments]:
        pieces = lambda: (data.images[i : i + 1000] for i in range(0, total, 1000))  # noqa: E731
        return _look(features, pieces, total, "features of the training set").moments

    computed: dict[str, Moments] = {}
    moments = {}
    for name in ("pool", "spatial") if features.name == "inception" else (features.main,):
        key = StatisticsKey(data.fingerprint, "train", total, features.fingerprint, name)

        def compute(name=name) -> Moments:
            if not computed:
                computed.update(whole())
            return computed[name]

        moments[name] = evaluation.cached_statistics(folder, key, compute)
    pieces = lambda: (data.images[chosen[i : i + 1000]] for i in range(0, len(chosen), 1000))  # noqa: E731
    paired = _look(features, pieces, len(chosen), "features of training images").paired
    return Seen(moments, paired, None)


def _measure(seen: Seen, truth: Seen, config: EvaluateConfig) -> dict[str, Any]:
    """Every figure of one set of images against the training set."""
    main = "pool" if "pool" in truth.moments else next(iter(truth.moments))
    found: dict[str, Any] = {
        "frechet": evaluation.frechet_distance(truth.moments[main], seen.moments[main])
    }
    dim = truth.moments[main].mean.size
    if config.bootstrap >= 2 and dim <= 256 and len(seen.paired) == seen.moments[main].count:
        interval = evaluation.bootstrap_interval(
            lambda x: evaluation.frechet_distance(truth.moments[main], evaluation.moments(x)),
            [seen.paired],
            seed=config.seed,
            repeats=config.bootstrap,
        )
        found["frechet_interval_95"] = [interval.low, interval.high]
    if "spatial" in truth.moments:
        found["sfid"] = evaluation.frechet_distance(
            truth.moments["spatial"], seen.moments["spatial"]
        )
    size = min(1000, len(seen.paired), len(truth.paired))
    kid = evaluation.kernel_distance(truth.paired, seen.paired, subset_size=size, seed=config.seed)
    found["kid"] = kid._asdict()
    found |= {
        name: value
        for name, value in (
            *evaluation.precision_recall(truth.paired, seen.paired)._asdict().items(),
            *evaluation.density_coverage(truth.paired, seen.paired)._asdict().items(),
        )
        if name != "k"
    }
    found["paired_images"] = [len(truth.paired), len(seen.paired)]
    if seen.logits is not None:
        splits = 10 if len(seen.logits) >= 5000 else 1
        score = evaluation.inception_score(logits=seen.logits, splits=splits)
        found["inception_score"] = score._asdict()
    return found


def _bits(run: TrainedRun, config: EvaluateConfig) -> dict[str, Any] | None:
    """The bound of held-out images, by the run's own variance."""
    if not config.bits_count:
        return None
    own = run.config.diffusion.variance
    measured = measure_bound(
        run,
        {own: own},
        run.heldout_data,
        count=config.bits_count,
        batch_size=min(config.bits_count, 100),
        name="bits/dim",
    )
    return {"images": measured.prior.size, "variance": own, **bound_row(measured, own)}


COLUMNS = {
    "frechet": "Fréchet distance",
    "kid": "KID",
    "inception_score": "IS",
    "sfid": "sFID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}


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
    return "FID" if name == "frechet" and results["features"] == "inception" else COLUMNS[name]


def _table(run: TrainedRun, results: dict[str, Any], count: int) -> str:
    """One Markdown table of one row, with what it takes to make it again."""
    cells = _cells(results["samples"])
    bits = results["bits_per_dim"]
    head = ["run", "sampler", "steps", "images", *(_title(results, name) for name in cells)]
    sampler = results["sampler"]
    row = [
        f"{run.train_data.name.split('/')[0]} at step {run.step:,}",
        sampler["sampler"],
        str(sampler["num_steps"] or run.model.schedule.num_timesteps),
        f"{count:,}",
        *cells.values(),
    ]
    if bits:
        head.append("bits/dim ≤")
        row.append(f"{bits['bits_per_dim']:.3f} ± {bits['standard_error']:.3f}")
    lines = ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), row)]
    notes = (
        f"Features {results['features']} ({results['features_fingerprint'][:16]}), against "
        f"{results['reference']['images']:,} images of {results['reference']['data']} "
        f"({results['reference']['fingerprint'][:16]}); seed {results['seed']}, "
        f"{'EMA' if results['ema'] else 'last'} parameters, {results['precision']}, checkpoint "
        f"{results['checkpoint_sha256'][:16]}."
    )
    if results["fewer_than_published"]:
        notes += f" {count:,} images: not comparable with figures on {PUBLISHED_COUNT:,}."
    return "\n".join([*lines, "", notes, ""])


def _tell(results: dict[str, Any], count: int) -> None:
    say("")
    samples, floor = _cells(results["samples"]), _cells(results["held_out"])
    say(f"{'':18}{f'{count:,} samples':28}{results['held_out']['images']:,} held-out images")
    for name in samples:
        say(f"{_title(results, name):18}{samples[name]:28}{floor.get(name, '')}")
    bits = results["bits_per_dim"]
    if bits:
        say(f"{'bits/dim ≤':18}{'':28}{bits['bits_per_dim']:.3f} ± {bits['standard_error']:.3f}")
    if results["fewer_than_published"]:
        say(f"{count:,} images: not comparable with published figures on {PUBLISHED_COUNT:,}.")
    say("")
