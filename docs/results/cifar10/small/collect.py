"""Makes results.json and the pictures of this page from what `figures.sh` wrote, and prints tables.

python docs/results/cifar10/small/collect.py OUT CLASSIFIER
"""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

PAGE = Path(__file__).parent
LOG = PAGE / "training_log.md"
PICTURES = {
    "guidance": "guidance/guidance.png",
    "guidance_curves": "guidance/curves.png",
    "terms": "likelihood/terms.png",
    "rate_distortion": "likelihood/rate_distortion.png",
    "quality": "steps/quality.png",
    "neighbours": "neighbours/neighbours.png",
    "interpolation": "interpolate/pair-0.png",
    "inpainting": "inpaint/completions.png",
    "progressive": "progressive/x_0_hat.png",
}
PHOTOGRAPHS = {"guidance", "neighbours", "interpolation", "inpainting", "progressive"}
"""Stored in 256 colours, a third of the size."""
BATCH_SIZE = 64
EARLIER_STEPS = 21_500
"""Steps of the first run, from whose weights the second began."""


def hours_to(step: int) -> float:
    """The hours that both runs took to a step, by the table of training_log.md."""
    hours, time, count = 0.0, r"(\d{4}-\d\d-\d\d \d\d:\d\d)", r"([\d,]+)"
    for row in re.finditer(rf"\| {time} \| {time} \| {count} to {count} ", LOG.read_text()):
        start, stop = (datetime.fromisoformat(text) for text in row.groups()[:2])
        first, last = (int(text.replace(",", "")) for text in row.groups()[2:])
        share = min(1.0, max(0.0, (step - first) / (last - first)))
        hours += share * (stop - start).total_seconds() / 3600
    return round(hours, 1)


def collected(out: Path, classifier: Path) -> dict[str, Any]:
    """The numbers of the page."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((out / name).read_text())

    likelihood, flow = read("likelihood/likelihood.json"), read("flow/likelihood.json")
    guidance, steps = read("guidance/guidance.json"), read("steps/steps_vs_quality.json")
    neighbours, inpaint = read("neighbours/neighbours.json"), read("inpaint/inpaint.json")
    interpolation = read("interpolate/interpolate.json")
    judge = json.loads((classifier / "config.json").read_text())
    at_two = next(row for row in guidance["guidance"] if row["scale"] == 2)
    held_out = guidance["held_out"]
    learned = likelihood["held out"]["bound"]["learned_range"]
    half = 1.96 * learned["standard_error"]
    step = EARLIER_STEPS + likelihood["checkpoint_step"]
    return {
        "steps": step,
        "images_seen": BATCH_SIZE * step,
        "hours": hours_to(step),
        "bits_per_dim": {
            "value": learned["bits_per_dim"],
            "interval_95": [learned["bits_per_dim"] - half, learned["bits_per_dim"] + half],
            "images": likelihood["held out"]["images"],
            "steps_per_image": 5,
        },
        "bound": likelihood["held out"]["bound"],
        "bound_beyond_learned_range": likelihood["held out"]["beyond_own"],
        "bound_of_training_images": likelihood["training"]["bound"],
        "flow": flow["held out"]["flow"],
        "frechet": {
            "features": "classifier (not Inception: no FID)",
            "guidance": 2,
            "value": at_two["frechet_classifier"],
            "floor": held_out["frechet_classifier"],
            "images": guidance["images_per_scale"],
        },
        "guidance": guidance["guidance"],
        "held_out": held_out,
        "steps_vs_quality": {
            "images_per_cell": steps["images_per_cell"],
            "fitted_gaussian": steps["fitted Gaussian"],
            "rows": steps["rows"],
        },
        "neighbours": {name: neighbours[name] for name in ("samples", "heldout_images")},
        "interpolation": {
            name: {key: values[key] for key in ("rms_to_source_at_0", "rms_to_source_at_1")}
            for name, values in interpolation["methods"].items()
        },
        "inpainting": {name: value for name, value in inpaint.items() if name.startswith("rms_")},
        "cost": read("cost.json"),
        "classifier": {name: judge["held_out"][name] for name in ("accuracy", "images")},
        "fingerprints": {
            "checkpoint_sha256": likelihood["checkpoint_sha256"],
            "data_train": likelihood["data"]["fingerprint"],
            "features": guidance["features_fingerprint"],
        },
        "jax": likelihood["jax"],
    }


def tables(found: dict[str, Any]) -> str:
    """The page's tables as Markdown."""
    rows = [
        "| guidance | accuracy | Fréchet distance in the classifier's features |",
        "|---|---|---|",
    ]
    last = {**found["held_out"], "scale": f"{found['held_out']['images']} held-out images"}
    for row in (*found["guidance"], last):
        scale = row["scale"] if isinstance(row["scale"], str) else f"{row['scale']:g}"
        rows.append(f"| {scale} | {row['accuracy']:.2f} | {row['frechet_classifier']:.2f} |")
    rows += [
        "",
        "| variance | bits/dim ≤ | rate | distortion | the first 10,000 training images |",
        "|---|---|---|---|---|",
    ]
    for name, bound in found["bound"].items():
        training = found["bound_of_training_images"][name]
        rows.append(
            f"| {name.replace('_', ' ')} | {bound['bits_per_dim']:.3f} ± "
            f"{bound['standard_error']:.3f} | {bound['rate']:.3f} | {bound['distortion']:.3f} | "
            f"{training['bits_per_dim']:.3f} ± {training['standard_error']:.3f} |"
        )
    rows += [
        "",
        "| guidance | evaluations | GFLOP per image | seconds for one image "
        "| seconds per image, 100 at once |",
        "|---|---|---|---|---|",
    ]
    costs = found["cost"]["rows"]
    for alone, batch in zip(costs[::2], costs[1::2], strict=True):
        rows.append(
            f"| {alone['guidance']:g} | {alone['evaluations']} | {alone['gflop_per_image']:.1f} | "
            f"{alone['seconds_per_image']:.2f} | {batch['seconds_per_image']:.3f} |"
        )
    study = found["steps_vs_quality"]["rows"]
    counts = list(next(iter(study.values())))
    rows += ["", f"| steps | {' | '.join(counts)} |", "|---" * (len(counts) + 1) + "|"]
    for name, cells in study.items():
        values = " | ".join(f"{cells[count]['frechet_classifier']:.2f}" for count in counts)
        rows.append(f"| {name} | {values} |")
    return "\n".join(rows)


def main(out: Path, classifier: Path) -> None:
    """Writes results.json and the pictures, and prints the tables."""
    found = collected(out, classifier)
    text = json.dumps(found, indent=2, ensure_ascii=False)
    (PAGE / "results.json").write_text(text + "\n")
    for name, source in PICTURES.items():
        picture = Image.open(out / source).convert("RGB")
        if name in PHOTOGRAPHS:
            picture = picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
        picture.save(PAGE / f"{name}.png", optimize=True)
    print(tables(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
