"""What classifier-free guidance does: the same noise for every class, at several scales.

    ddpm-jax guidance --run-dir RUN
    ddpm-jax guidance --run-dir RUN --classifier runs/classifier --count 1000

Ho, Salimans 2022 (arXiv 2207.12598), with scale s = w + 1 of the paper: s = 0 ignores the class,
s = 1 is the conditional model, and s > 1 moves further away from the unconditional one.
guidance.png has one panel per scale and one column per class; equal places start from equal noise.
Expect samples that grow more typical of their class, and more alike, with s. A classifier measures
both: its accuracy on the samples grows with s, and beyond some s so does the Fréchet distance in
its features, which is not the FID.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from ddpm_jax import evaluation, visualize
from ddpm_jax.files import write_json
from ddpm_jax.programs import pictures
from ddpm_jax.programs.classifier import accuracy
from ddpm_jax.programs.config import SamplerOptions
from ddpm_jax.programs.config_values import check_least, to_json
from ddpm_jax.programs.console import run_program, say
from ddpm_jax.programs.intervals import frechet_interval, interval_band
from ddpm_jax.programs.metrics import classifier_features, summarize_reference
from ddpm_jax.programs.named import SamplerName
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from ddpm_jax.visualize.files import DPI, INK, write_figure

_TILE = 64
"""Least width of a tile in the picture, in pixels: class names stand above the tiles."""


@dataclass(frozen=True)
class GuidanceConfig(SamplerOptions, RunOptions):
    """Samples every class of a class-conditional run at several guidance scales."""

    sampler: SamplerName = "ddim"
    """Sampler of all images, from `ddpm-jax list`."""
    num_steps: int | None = 50
    """Steps of the sampler; None for all T."""
    guidance: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    """Guidance scales: 0 ignores the class, 1 is the conditional model."""
    classes: int = 10
    """Classes in the picture, the first ones."""
    per_class: int = 10
    """Images per class and scale in the picture."""
    count: int | None = None
    """Images per scale that are measured, all classes in turn; None for as many as the picture
    needs. More images lower the Fréchet distance, so compare equal counts only."""
    classifier: Path | None = None
    """Folder of a classifier of the run's own data, from ddpm-jax train classifier; None for the
    picture alone."""
    bootstrap: int = 100
    """Bootstrap resamplings for the interval of the Fréchet distance, computed only for features of
    few dimensions; 0 for none."""
    batch_size: int = 100
    """Images at a time; changes speed and memory, not the images."""


class GuidanceResult(NamedTuple):
    """What the study made.

    images    {scale: uint8 [N, H, W, C]}, image i of class i mod K
    numbers   {scale: {"accuracy", "frechet_classifier", each also with "_interval_95", and
              "frechet_beyond_best_interval_95"}}, empty without a classifier
    held_out  the same numbers of as many held-out images
    files     what was written
    """

    images: dict[float, np.ndarray]
    numbers: dict[float, dict[str, Any]]
    held_out: dict[str, Any]
    files: list[Path]


def study_guidance(config: GuidanceConfig) -> GuidanceResult:
    """Samples; writes guidance.png and guidance.json, and with a classifier curves.png.

    Raises ValueError for invalid options and for a run without classes, and whatever `TrainedRun`
    and `load_classifier` raise.
    """
    check_least(config, 1, "classes", "per_class", "batch_size")
    check_least(config, 0, "bootstrap")
    if len(set(config.guidance)) < max(1, len(config.guidance)):
        raise ValueError(f"--guidance needs different scales, got {config.guidance}.")
    run = TrainedRun(config)
    pictures.need_pictures(run, "guidance")
    num_classes = run.model.num_classes
    if num_classes is None:
        raise ValueError(
            f"{run.name} was trained without labels. Train a run with --network.class-conditional."
        )
    least = num_classes * config.per_class
    count = least if config.count is None else config.count
    if count < least:
        raise ValueError(
            f"--count must be at least {least}, --per-class {config.per_class} of {num_classes} "
            f"classes, got {count}."
        )
    measure = held_out = None
    if config.classifier is not None:
        real = run.need_heldout(2)
        measure, interval_of, fingerprint = _measure_of(run, config.classifier, config)
        held_out, _ = measure(real.images[:count], real.labels[:count])
        held_out["images"] = len(real.images[:count])
    labels, sampler = run.labels(count), run.sampler(config)
    out = run.study_folder("guidance", ["guidance.png", "curves.png"])
    say(f"{run.title}: {count} images per scale, {config.sampler}, {sampler.num_steps} steps")
    images, numbers, features = {}, {}, {}
    for scale in config.guidance:
        images[scale] = pictures.draw_images(
            run.generator(sampler, guidance=scale),
            run.params,
            f"guidance {scale:g}",
            seed=config.seed,
            count=count,
            batch_size=config.batch_size,
            labels=labels,
        ).images
        if measure is not None:
            numbers[scale], features[scale] = measure(images[scale], labels)
    if measure is not None:
        best = min(numbers, key=lambda scale: numbers[scale]["frechet_classifier"])
        for scale in set(numbers) - {best}:
            interval = interval_of(features[scale], beyond=features[best])
            if interval is not None:
                numbers[scale]["frechet_beyond_best_interval_95"] = interval

    files = [out / "guidance.png", out / "guidance.json"]
    shown = min(num_classes, config.classes)
    _save_panels(
        files[0],
        {
            scale: x[:least].reshape(-1, num_classes, *x.shape[1:])[:, :shown]
            for scale, x in images.items()
        },
        (run.facts["data"].get("class_names") or list(map(str, range(num_classes))))[:shown],
    )
    results: dict[str, Any] = {
        **run.provenance(),
        "options": to_json(config),
        "images_per_scale": count,
    }
    if measure is not None and held_out is not None:
        results["features_fingerprint"] = fingerprint
        results["held_out"] = held_out
        results["guidance"] = [{"scale": scale, **row} for scale, row in numbers.items()]
        files.append(out / "curves.png")
        _save_curves(files[-1], numbers, held_out, count)
        _print_table(numbers, held_out, count)
    write_json(files[1], results)
    for path in files:
        say(f"  {path}")
    return GuidanceResult(images, numbers, held_out or {}, files)


def _name(scale: float) -> str:
    known = {0.0: ": the class is ignored", 1.0: ": the conditional model"}
    return f"guidance {scale:g}{known.get(scale, '')}"


def _measure_of(run: TrainedRun, folder: Path, config: GuidanceConfig):
    """measure(images, labels), which also returns the features, their interval, and fingerprint."""
    features = classifier_features(
        folder, run.model.image_shape, run.model.num_classes, run.devices
    )
    truth = summarize_reference(run.train_data, features, None).moments["features"]

    interval_of = partial(frechet_interval, truth, seed=config.seed, repeats=config.bootstrap)

    def measure(images: np.ndarray, labels: Any) -> tuple[dict[str, Any], np.ndarray]:
        found = features.of(images)
        mine, share = found["features"], accuracy(found["logits"], labels)
        values = {
            "accuracy": share,
            "accuracy_interval_95": _wilson(share, len(images)),
            "frechet_classifier": evaluation.frechet_distance(truth, evaluation.moments(mine)),
        }
        interval = interval_of(mine)
        if interval is not None:
            values["frechet_classifier_interval_95"] = interval
        return values, mine

    return measure, interval_of, features.fingerprint


def _wilson(share: float, count: int) -> list[float]:
    """The 95 % interval of Wilson (1927) of a share of `count` images."""
    interval = binomtest(round(share * count), count).proportion_ci(0.95, "wilson")
    return [interval.low, interval.high]


def _save_panels(path: Path, panels: dict[float, np.ndarray], names: list[str]) -> None:
    """One sheet of images [R, K, H, W, C] per scale, two in a row.

    A class name stands above each column, except at scale 0, where the class has no effect. Sheets
    are placed at integer pixels: axes would resample them.
    """
    from matplotlib.figure import Figure

    _, columns, _, width = next(iter(panels.values())).shape[:4]
    scale = max(1, math.ceil(_TILE / width))
    sheets = [
        visualize.image_grid(
            x.reshape(-1, *x.shape[2:]), columns=columns, scale=scale, padding=2 * scale
        )
        for x in panels.values()
    ]
    high, wide = sheets[0].shape[:2]
    across = min(2, len(sheets))
    down = math.ceil(len(sheets) / across)
    margin, band = 24, 64
    total = (across * (wide + margin) + margin, down * (high + band + margin))
    figure = Figure((total[0] / DPI, total[1] / DPI), dpi=DPI)
    step = wide / columns
    size = 72 / DPI * min(18.0, 1.75 * step / max(map(len, names)))
    titles = [_name(guidance) for guidance in panels]
    for i, (guidance, title, sheet) in enumerate(zip(panels, titles, sheets, strict=True)):
        x = margin + i % across * (wide + margin)
        y = total[1] - (i // across) * (high + band + margin) - band
        colour = np.broadcast_to(sheet, (*sheet.shape[:2], 3))
        figure.figimage(colour, x, y - high, origin="upper")
        style: dict[str, Any] = {"color": INK, "va": "center"}
        where = (x / total[0], (y + 44) / total[1])
        fits = 72 / DPI * min(20.0, 1.5 * wide / max(map(len, titles)))
        figure.text(*where, title, fontsize=fits, fontweight="bold", **style)
        for k, name in enumerate(names if guidance else []):
            where = ((x + (k + 0.5) * wide / columns) / total[0], (y + 12) / total[1])
            figure.text(*where, name, fontsize=size, ha="center", **style)
    write_figure(path, figure)


def _save_curves(path: Path, numbers, held_out: dict[str, float], count: int) -> None:
    scales = sorted(numbers)
    ends = [scales[0], scales[-1]] if len(scales) > 1 else [scales[0] - 0.5, scales[0] + 0.5]
    fields = {
        "accuracy": "share classified as their class",
        "frechet_classifier": "Fréchet distance of classifier features",
    }
    values = {field: [numbers[scale][field] for scale in scales] for field in fields}
    rows = [numbers[scale] for scale in scales]
    titles = {
        "accuracy": _accuracy_finding(scales, rows),
        "frechet_classifier": _distance_finding(scales, rows),
    }

    def banded(field: str) -> bool:
        return interval_band(field, [*rows, held_out]) is not None

    panels = [
        visualize.Panel(
            titles[field],
            [
                visualize.Line(
                    scales,
                    values[field],
                    f"{count:,} samples",
                    marker="o",
                    band=interval_band(field, rows),
                ),
                visualize.Line(
                    ends,
                    [held_out[field]] * 2,
                    f"{held_out['images']:,} held-out images",
                    colour="#6b7078",
                    style="--",
                    band=interval_band(field, [held_out] * 2),
                ),
            ],
            xlabel="guidance scale" + (", bands: 95% intervals" if banded(field) else ""),
            ylabel=label,
            xticks=scales,
        )
        for field, label in fields.items()
    ]
    visualize.save_panels(path, panels, size=(4.2, 3.3))


def _accuracy_finding(scales: list[float], rows) -> str:
    """Says how the accuracy changes with guidance; if all intervals overlap, that it does not."""
    share = [row["accuracy"] for row in rows]
    low, high = zip(*(row["accuracy_interval_95"] for row in rows), strict=True)
    first, last, most, least = share[0], share[-1], int(np.argmax(share)), int(np.argmin(share))
    if len(rows) == 1:
        return f"Accuracy is {first:.2f} at guidance {scales[0]:g}"
    if max(low) <= min(high):
        return "Accuracy is the same at every scale, within its error"
    if low[most] > max(first, last):
        return f"Accuracy is highest, {share[most]:.2f}, at guidance {scales[most]:g}"
    if low[0] <= high[-1] and low[-1] <= high[0]:
        return f"Accuracy is lowest, {share[least]:.2f}, at guidance {scales[least]:g}"
    ends = f"from {first:.2f} at guidance {scales[0]:g} to {last:.2f} at {scales[-1]:g}"
    return f"Accuracy {'rises' if last > first else 'falls'} {ends}"


def _distance_finding(scales: list[float], rows) -> str:
    """Says where samples are closest to the data: where the difference to the best may be none."""
    least = min(row["frechet_classifier"] for row in rows)
    near = [
        f"{scale:g}"
        for scale, row in zip(scales, rows, strict=True)
        if row["frechet_classifier"] == least
        or row.get("frechet_beyond_best_interval_95", [np.inf])[0] <= 0
    ]
    if len(near) == 1:
        return f"Samples are closest to the data at guidance {near[0]}"
    return f"Samples are closest to the data at guidance {', '.join(near[:-1])} and {near[-1]}"


def _print_table(numbers, held_out: dict[str, float], count: int) -> None:
    say(f"\n{'guidance':>24}  accuracy  Fréchet distance of classifier features (not the FID)")
    rows = {f"{scale:g}, {count:,} samples": row for scale, row in numbers.items()}
    for name, row in {**rows, f"{held_out['images']:,} held-out images": held_out}.items():
        say(f"{name:>24}  {row['accuracy']:8.3f}  {row['frechet_classifier']:.3f}")
    say("")


if __name__ == "__main__":
    run_program(study_guidance, GuidanceConfig(), __doc__)
