"""Sets of images against a training set: one pass over each, and every figure from what is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddpm_jax import evaluation
from ddpm_jax.data import ImageDataset
from ddpm_jax.data.cache import cache_root
from ddpm_jax.devices import processes
from ddpm_jax.evaluation import FeatureExtractor, Moments, StatisticsKey
from ddpm_jax.programs.console import bar

PAIRED = 10_000
"""Images a side for the metrics of pairs (KID, precision, recall, density, coverage), at most."""


class Features(NamedTuple):
    """A feature function, and what it is known by.

    Attributes:
        name: "inception" or "pixels".
        fingerprint: of network, weights, resize and precision.
        main: which of its outputs the metrics of pairs use.
        of: images [n, H, W, C] -> {name: [n, D]}; signals and volumes are passed as [n, 1, D, C].
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


def pixel_features(image_shape: tuple[int, ...]) -> Features:
    """The pixels themselves, for small images."""
    shape = "×".join(map(str, image_shape))

    def pixels(images):
        return {"pixels": evaluation.pixel_features(images)}

    return Features("pixels", f"pixels in [-1, 1], {shape}", "pixels", pixels, 1000)


def inception_features(
    path: Path | None, *, cache_dir: Path | None, preprocess: str, devices: Any
) -> Features:
    """Inception-v3 with the published weights; raises as `load_inception_weights`."""
    variables = evaluation.load_inception_weights(path, cache_dir=cache_dir)
    extractor: FeatureExtractor = evaluation.inception_extractor(
        variables,
        outputs=("pool", "spatial", "logits_unbiased"),
        preprocess=evaluation.PREPROCESSINGS[preprocess],
        devices=devices,
    )
    return Features("inception", extractor.fingerprint, "pool", extractor, extractor.batch_size)


def look(
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
            map(_as_images, source()),
            of,
            moments=moments,
            keep=(logits,) if known else (),
            batch_size=features.batch_size,
            on_progress=tell,
        )
    return Seen(summary.moments, np.concatenate(kept), summary.features.get(logits))


def _as_images(pieces: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Signals and volumes reshaped to images of one row."""
    return pieces if pieces.ndim == 4 else pieces.reshape(len(pieces), 1, -1, pieces.shape[-1])


def look_at_reference(data: ImageDataset, features: Features, cache_dir: Path | None) -> Seen:
    """The training set: its moments, cached by fingerprint, and some of its features."""
    total = len(data.images)
    # Spread over the data set, which may be sorted.
    chosen = np.unique(np.linspace(0, total - 1, min(PAIRED, total)).astype(int))
    folder = cache_root(cache_dir) / "statistics"

    def whole() -> dict[str, Moments]:
        pieces = lambda: (data.images[i : i + 1000] for i in range(0, total, 1000))  # noqa: E731
        return look(features, pieces, total, "features of the training set").moments

    computed: dict[str, Moments] = {}
    moments = {}
    for name in ("pool", "spatial") if features.name == "inception" else (features.main,):
        key = StatisticsKey(data.fingerprint, "train", total, features.fingerprint, name)

        def compute(name=name) -> Moments:
            if not computed:
                computed.update(whole())
            return computed[name]

        moments[name] = _agreed_statistics(folder, key, compute)
    pieces = lambda: (data.images[chosen[i : i + 1000]] for i in range(0, len(chosen), 1000))  # noqa: E731
    paired = look(features, pieces, len(chosen), "features of training images").paired
    return Seen(moments, paired, None)


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

    kind  the features, "inception" or "pixels"
    """
    reasons = {}
    for name, least in NEEDED.items():
        of_inception = name in ("sfid", "inception_score")
        smallest = count if name == "inception_score" else min(count, num_real)
        if smallest < least and (kind == "inception" or not of_inception):
            reasons[name] = f"needs {least} images per set, got {count} and {num_real}"
    return reasons


def measure(seen: Seen, truth: Seen, *, bootstrap: int, seed: int) -> dict[str, Any]:
    """Every metric of one set of images against the training set.

    What needs more images than there are is left out, and explained under "left_out".
    """
    main = "pool" if "pool" in truth.moments else next(iter(truth.moments))
    mine, theirs = seen.moments[main], truth.moments[main]
    kind = "inception" if main == "pool" else "pixels"
    left_out = not_measurable(len(seen.paired), len(truth.paired), kind)
    found: dict[str, Any] = {}
    if "frechet" not in left_out:
        found["frechet"] = evaluation.frechet_distance(theirs, mine)
        few = theirs.mean.size <= 256 and len(seen.paired) == mine.count
        if bootstrap >= 2 and few:
            interval = evaluation.bootstrap_interval(
                lambda x: evaluation.frechet_distance(theirs, evaluation.moments(x)),
                [seen.paired],
                seed=seed,
                repeats=bootstrap,
            )
            found["frechet_interval_95"] = [interval.low, interval.high]
    if "spatial" in truth.moments and "sfid" not in left_out:
        found["sfid"] = evaluation.frechet_distance(
            truth.moments["spatial"], seen.moments["spatial"]
        )
    if "kid" not in left_out:
        size = min(1000, len(seen.paired), len(truth.paired))
        kid = evaluation.kernel_distance(truth.paired, seen.paired, subset_size=size, seed=seed)
        found["kid"] = kid._asdict()
    pairs = {
        ("precision", "recall"): evaluation.precision_recall,
        ("density", "coverage"): evaluation.density_coverage,
    }
    for names, compute in pairs.items():
        if names[0] not in left_out:
            values = compute(truth.paired, seen.paired)._asdict()
            found |= {name: values[name] for name in names}
    found["paired_images"] = [len(truth.paired), len(seen.paired)]
    if seen.logits is not None and "inception_score" not in left_out:
        splits = 10 if len(seen.logits) >= 5000 else 1
        score = evaluation.inception_score(logits=seen.logits, splits=splits)
        found["inception_score"] = score._asdict()
    if left_out:
        found["left_out"] = left_out
    return found
