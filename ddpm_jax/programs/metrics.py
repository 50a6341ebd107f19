"""Sets of images against a training set: one pass over each, and every figure from what is kept."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddpm_jax import evaluation
from ddpm_jax.data import ImageDataset
from ddpm_jax.data.cache import cache_root
from ddpm_jax.devices import processes
from ddpm_jax.evaluation import Moments, StatisticsKey
from ddpm_jax.programs.classifier import accuracy, load_classifier
from ddpm_jax.programs.console import bar
from ddpm_jax.programs.intervals import frechet_interval
from ddpm_jax.programs.pictures import are_pictures

if TYPE_CHECKING:
    from ddpm_jax.programs.evaluate import EvaluateConfig
    from ddpm_jax.programs.trained_run import TrainedRun

PAIRED = 10_000
"""Images a side for the metrics of pairs (KID, precision, recall, density, coverage), at most."""
MOST_VALUES = 4096
"""Largest number of values of a signal or volume that are compared directly."""


class Features(NamedTuple):
    """A feature function, and what it is known by.

    Attributes:
        name: "inception", "classifier" or "pixels".
        fingerprint: of network, weights, resize and precision.
        compared: which of its outputs are compared; the metrics of pairs use the first.
        logits: which of its outputs are logits, if any.
        of: images [n, H, W, C] -> {name: [n, D]}; signals and volumes are passed as [n, 1, D, C].
        batch_size: images per call.
    """

    name: str
    fingerprint: str
    compared: tuple[str, ...]
    logits: str | None
    of: Callable[[npt.NDArray[np.uint8]], dict[str, npt.NDArray]]
    batch_size: int


class Summary(NamedTuple):
    """What is kept of the features of a set of images."""

    moments: dict[str, Moments]
    paired: npt.NDArray
    logits: npt.NDArray | None


def pixel_features(image_shape: tuple[int, ...]) -> Features:
    """The pixels themselves, for small images."""
    shape = "×".join(map(str, image_shape))

    def pixels(images):
        return {"pixels": evaluation.pixel_features(images)}

    return Features("pixels", f"pixels in [-1, 1], {shape}", ("pixels",), None, pixels, 1000)


def classifier_features(
    folder: Path, image_shape: tuple[int, ...], num_classes: int | None, devices: Any = None
) -> Features:
    """The features of a classifier trained by `train_classifier`, on images like its own.

    Raises ValueError for images of another shape, for another number of classes than a
    class-conditional run has, and as `load_classifier`.
    """
    trained = load_classifier(folder)
    shape, classes = tuple(trained.about["data"]["image_shape"]), trained.network.num_classes
    if shape != tuple(image_shape) or num_classes not in (None, classes):
        raise ValueError(
            f"the classifier in {folder} was trained on images {list(shape)} of {classes} classes, "
            f"and these are images {list(image_shape)} of {num_classes or 'no'} classes. Train one "
            "on the run's own data: ddpm-jax train classifier."
        )
    extractor = trained.extractor(devices)
    size = extractor.batch_size
    return Features("classifier", extractor.fingerprint, ("features",), "logits", extractor, size)


def features_for(run: TrainedRun, config: EvaluateConfig) -> Features:
    """The features that an evaluation's options name; ValueError if the run has none such.

    Raises what `load_inception_weights` and `load_classifier` raise.
    """
    name, classifier = config.features, config.classifier
    shape = run.model.image_shape
    pictures = are_pictures(shape)
    if name == "auto" and classifier is not None:
        name = "classifier"
    if name == "auto":
        name = "inception" if pictures and min(shape[:2]) >= 32 else "pixels"
    if (name == "classifier") != (classifier is not None):
        raise ValueError(
            "--features classifier and --classifier FOLDER belong together, got "
            f"{config.features} and {classifier}. ddpm-jax train classifier makes a folder."
        )
    if classifier is not None:
        return classifier_features(classifier, shape, run.model.num_classes, run.devices)
    if name == "pixels":
        if not pictures and math.prod(shape) > MOST_VALUES:
            raise ValueError(
                f"{run.name} makes arrays of shape {list(shape)}: Inception-v3 accepts only images "
                f"with 1 or 3 channels, and the covariance of more than {MOST_VALUES:,} values is "
                "too large. Measure the bits/dim: ddpm-jax likelihood."
            )
        return pixel_features(shape)
    if not pictures:
        raise ValueError(
            f"--features inception needs images with 1 or 3 channels, and {run.name} makes arrays "
            f"of shape {list(shape)}. Compare their values: --features pixels."
        )
    cached = cache_root(config.cache_dir) / "inception"
    if config.inception is None and not config.download and not any(cached.glob("*.pth")):
        raise ValueError(
            f"the weights of Inception-v3 are not in {cached}. Fetch them with --download (96 MB), "
            "name a copy with --inception FILE, or compare pixels: --features pixels."
        )
    outputs, logits = ("pool", "spatial"), "logits_unbiased"
    extractor = evaluation.inception_extractor(
        evaluation.load_inception_weights(config.inception, cache_dir=config.cache_dir),
        outputs=(*outputs, logits),
        preprocess=evaluation.PREPROCESSINGS[config.preprocess],
        devices=run.devices,
    )
    size = extractor.batch_size
    return Features("inception", extractor.fingerprint, outputs, logits, extractor, size)


def summarize(
    features: Features, source: Callable[[], Iterator[npt.NDArray[np.uint8]]], count: int, name: str
) -> Summary:
    """Moments of all features, and the first PAIRED of the main ones, in one pass."""
    kept: list[npt.NDArray] = []

    def of(images):
        found = features.of(images)
        room = PAIRED - sum(map(len, kept))
        if room > 0:
            kept.append(np.asarray(found[features.compared[0]][:room], np.float32))
        return found

    with bar(count, name, unit="img") as progress:
        summary = evaluation.summarize_features(
            map(_as_images, source()),
            of,
            moments=features.compared,
            keep=(features.logits,) if features.logits else (),
            batch_size=features.batch_size,
            on_progress=lambda done: progress.update(done - progress.n),
        )
    logits = summary.features[features.logits] if features.logits else None
    return Summary(summary.moments, np.concatenate(kept), logits)


def _as_images(pieces: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Signals and volumes reshaped to images of one row."""
    return pieces if pieces.ndim == 4 else pieces.reshape(len(pieces), 1, -1, pieces.shape[-1])


def summarize_reference(data: ImageDataset, features: Features, cache_dir: Path | None) -> Summary:
    """The training set: its moments, cached by fingerprint, and some of its features."""
    total = len(data.images)
    # Spread over the data set, which may be sorted.
    chosen = np.unique(np.linspace(0, total - 1, min(PAIRED, total)).astype(int))
    folder = cache_root(cache_dir) / "statistics"

    @functools.cache
    def whole() -> dict[str, Moments]:
        pieces = lambda: (data.images[i : i + 1000] for i in range(0, total, 1000))  # noqa: E731
        return summarize(features, pieces, total, "features of the training set").moments

    moments = {}
    for name in features.compared:
        key = StatisticsKey(data.fingerprint, "train", total, features.fingerprint, name)
        moments[name] = _agreed_statistics(folder, key, lambda name=name: whole()[name])
    pieces = lambda: (data.images[chosen[i : i + 1000]] for i in range(0, len(chosen), 1000))  # noqa: E731
    paired = summarize(features, pieces, len(chosen), "features of training images").paired
    return Summary(moments, paired, None)


def _agreed_statistics(folder: Path, key: StatisticsKey, compute: Callable[[], Moments]) -> Any:
    """`cached_statistics`; of several processes the first has the cache, and all compute or none.

    The others then get None for what was cached: they report nothing.
    """
    if processes.num_processes() == 1:
        return evaluation.cached_statistics(folder, key, compute)
    kept: list[Moments] = []

    def missing() -> Moments:
        raise LookupError("not in the cache")

    def cached() -> bool:
        with contextlib.suppress(LookupError):
            kept.append(evaluation.cached_statistics(folder, key, missing))
        return bool(kept)

    if processes.on_leader(cached):
        return kept[0] if kept else None
    moments = compute()
    if processes.is_leader():
        evaluation.cached_statistics(folder, key, lambda: moments)
    return moments


NEEDED = {
    "frechet": 2,
    "sfid": 2,
    "kid": 2,
    "inception_score": 2,
    "precision": 4,
    "recall": 4,
    "density": 6,
    "coverage": 6,
}
"""The least number of images per set: two have a spread, k nearest neighbours need k + 1."""


def not_measurable(count: int, num_real: int, kind: str) -> dict[str, str]:
    """Which metrics of `count` images against `num_real` cannot be had: {metric: reason}.

    kind  the features, "inception", "classifier" or "pixels"
    """
    reasons = {}
    for name, least in NEEDED.items():
        of_inception = name in ("sfid", "inception_score")
        smallest = count if name == "inception_score" else min(count, num_real)
        if smallest < least and (kind == "inception" or not of_inception):
            reasons[name] = f"needs {least} images per set, got {count} and {num_real}"
    return reasons


def measure(
    samples: Summary,
    reference: Summary,
    features: Features,
    *,
    bootstrap: int,
    seed: int,
    labels: npt.NDArray | None = None,
) -> dict[str, Any]:
    """Every metric of one set of images against the training set.

    With `labels` [N], also the accuracy of a classifier of these classes; the logits of Inception
    are of other classes, and give the Inception Score. What needs more images than there are is
    left out, and explained under "left_out".
    """
    kind, main = features.name, features.compared[0]
    mine, theirs = samples.moments[main], reference.moments[main]
    left_out = not_measurable(len(samples.paired), len(reference.paired), kind)
    found: dict[str, Any] = {}
    if "frechet" not in left_out:
        found["frechet"] = evaluation.frechet_distance(theirs, mine)
        if len(samples.paired) == mine.count:
            interval = frechet_interval(theirs, samples.paired, seed=seed, repeats=bootstrap)
            if interval is not None:
                found["frechet_interval_95"] = interval
    if "spatial" in reference.moments and "sfid" not in left_out:
        found["sfid"] = evaluation.frechet_distance(
            reference.moments["spatial"], samples.moments["spatial"]
        )
    if "kid" not in left_out:
        size = min(1000, len(samples.paired), len(reference.paired))
        kid = evaluation.kernel_distance(
            reference.paired, samples.paired, subset_size=size, seed=seed
        )
        found["kid"] = kid._asdict()
    pairs = {
        ("precision", "recall"): evaluation.precision_recall,
        ("density", "coverage"): evaluation.density_coverage,
    }
    for names, compute in pairs.items():
        if names[0] not in left_out:
            values = compute(reference.paired, samples.paired)._asdict()
            found |= {name: values[name] for name in names}
    found["paired_images"] = [len(reference.paired), len(samples.paired)]
    if kind == "classifier" and samples.logits is not None and labels is not None:
        found["accuracy"] = accuracy(samples.logits, labels)
    if kind == "inception" and samples.logits is not None and "inception_score" not in left_out:
        splits = 10 if len(samples.logits) >= 5000 else 1
        score = evaluation.inception_score(logits=samples.logits, splits=splits)
        found["inception_score"] = score._asdict()
    if left_out:
        found["left_out"] = left_out
    return found
