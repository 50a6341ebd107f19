"""How an evaluation is told: a Markdown row with all it depends on, and a table to print."""

from __future__ import annotations

import dataclasses
from typing import Any

from ddpm_jax.programs.config import SamplerOptions
from ddpm_jax.programs.console import say

PUBLISHED_COUNT = 50_000
"""Images that published FIDs are measured on; from fewer the distance comes out larger."""

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


def markdown_row(results: dict[str, Any], num_timesteps: int) -> str:
    """One Markdown table of one row, with what it takes to make it again."""
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
        head.append("bits/dim ≤")
        row.append(f"{bits['bits_per_dim']:.3f} ± {bits['standard_error']:.3f}")
    lines = ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), row)]
    fingerprint = results["features_fingerprint"]
    if results["features"] == "inception":
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


def tell(results: dict[str, Any]) -> None:
    """Prints the figures of the samples beside those of held-out images."""
    say("")
    count = results["count"]
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
