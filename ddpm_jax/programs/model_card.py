"""The model card of a published model: README.md with the hub's YAML front matter."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ddpm_jax.data.conditions import written
from ddpm_jax.files import read_json_object
from ddpm_jax.nn import count_parameters
from ddpm_jax.programs.averages import average_name
from ddpm_jax.programs.trained_run import TrainedRun
from ddpm_jax.programs.weights import HUB, SHEET, WEIGHTS

SHEET_STEPS = 50
"""Steps of DDIM for the sample sheet, or all of the process if it has fewer."""


def model_card(
    run: TrainedRun, repository: str, license: str, sheet_count: int, weights: Mapping[str, Any]
) -> str:
    """The card of a run: a description, its training, its results, and how to sample it.

    `weights` is the entry of that name in config.json.
    """
    head = {
        "license": license,
        "library_name": "ddpm_jax",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusion", "ddpm", "jax", "flax"],
    }
    name = repository.rpartition("/")[2]
    # Every JSON value is also a YAML value.
    front = [f"{key}: {json.dumps(value)}" for key, value in head.items()]
    lines = ["---", *front, "---", f"# {name}", ""]
    steps = min(SHEET_STEPS, run.schedule.num_timesteps)
    options = f"--sampler ddim --num-steps {steps} --seed {run.options.seed}"
    if sheet_count:
        lines += [f"![Samples]({SHEET})", ""]
        lines += [f"{sheet_count} images: DDIM, {steps} steps, seed {run.options.seed}.", ""]
    lines += _table(("", ""), _about(run, weights))
    figures = [*_evaluations(run)]
    report = _table(("measured at the end of training", "value"), _report(run))
    if figures or report:
        lines += ["## Figures", "", *figures, *report]
    lines += [
        *("## Use", "", "```bash"),
        'pip install "huggingface_hub>=1.0"     # the extra [hub] of ddpm_jax',
        f"ddpm-jax sample --pretrained {HUB}{repository} {options} --count {sheet_count or 16}",
        *("```", "", "```python", "import ddpm_jax as dj", ""),
        f'run = dj.load_run("{HUB}{repository}")      # append @COMMIT to pin the weights',
        f'images = run.sample(16, sampler="ddim", num_steps={steps})',
        *("```", ""),
    ]
    return "\n".join(lines)


def _about(run: TrainedRun, weights: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    config, data = run.config, run.facts["data"]
    diffusion = config.diffusion
    process = f"{diffusion.process}, {diffusion.num_timesteps} steps"
    if diffusion.process == "ddpm":
        process = f"{diffusion.schedule} schedule, {diffusion.num_timesteps} steps"
    average = average_name(run.options)
    yield "data", data["name"]
    yield "fingerprint of the data", data.get("fingerprint") or "unknown"
    yield "shape", " × ".join(map(str, data["image_shape"])) + " (channels last)"
    yield "classes", data.get("num_classes") if config.network.class_conditional else "none"
    for name, shape in run.model.condition_shapes.items():
        yield f"condition `{name}`", written(shape)
    yield "process", process
    yield "the network predicts", diffusion.target
    yield "variance", diffusion.variance
    yield "loss", f"{diffusion.loss}, weighting {diffusion.weighting}"
    yield "training step", f"{run.step:,}, batches of {config.batch_size:,}"
    yield "parameters", f"{count_parameters(run.params):,}, {weights['dtype']}"
    yield (
        "average",
        {"ema": f"EMA, decay {config.optimizer.ema_decay:g}", "last": "none"}.get(average, average),
    )
    yield f"sha256 of {WEIGHTS}", weights["sha256"]
    yield "sha256 of the checkpoint", run.checkpoint_sha256


def _evaluations(run: TrainedRun) -> Iterator[str]:
    """The tables of `ddpm-jax evaluate` for these parameters, each with its fingerprints."""
    wanted = run.provenance()
    for path in sorted((run.root / "evaluation").glob("*/*.json")):
        table = path.with_suffix(".md")
        if table.is_file():
            found = read_json_object(path)
            if all(found.get(n) == wanted.get(n) for n in ("checkpoint_sha256", "ema", "average")):
                yield table.read_text(encoding="utf-8")


def _report(run: TrainedRun) -> Iterator[tuple[str, Any]]:
    """The numbers of report.json, if it belongs to these parameters."""
    path = run.root / "report.json"
    if not path.is_file() or average_name(run.options) != "ema":
        return
    report = read_json_object(path)
    if report.get("step") == run.step:
        yield from _numbers({k: v for k, v in report.items() if k != "step"})


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        title = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{title}: ")
        elif isinstance(value, int | float):
            yield title, f"{value:.4g}"


def _table(head: tuple[str, str], rows: Iterator[tuple[str, Any]]) -> list[str]:
    """A Markdown table and an empty line; nothing if there are no rows."""
    cells = [tuple(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    lines = [f"| {left} | {right} |" for left, right in [head, ("---", "---"), *cells]]
    return [*lines, ""] if cells else []
