"""The export program: a trained run and a sampler as one file that needs only JAX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddpm_jax.data.labels import as_label
from ddpm_jax.interop.stablehlo import Inputs, export_sampler, load_program, save_program
from ddpm_jax.programs.buckets import about_in, files_behind
from ddpm_jax.programs.config import SamplerOptions, sampler_options
from ddpm_jax.programs.config_values import with_types
from ddpm_jax.programs.console import quantity, say
from ddpm_jax.programs.outputs import claim
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun, make_writable

Platform = Literal["cpu", "cuda", "rocm", "tpu"]


@dataclass(frozen=True)
class ExportConfig(SamplerOptions, RunOptions):
    """A run and a sampler as a serialised StableHLO program."""

    out: Path | None = None
    """The file to write; None for RUN_DIR/exported/SAMPLER-STEPS-steps.stablehlo. Replaces an
    earlier program, and no other file."""
    inputs: Inputs = "x_T"
    """Inputs of the program: x_T, and a seed if the sampler draws noise; x_T and all noise; or a
    seed and the first image's number, which gives the same images as sample.py."""
    batch_size: int | None = None
    """Images per call; None leaves it open. The inputs "seed" need a number."""
    platforms: tuple[Platform, ...] = ("cpu", "cuda", "tpu")
    """Platforms on which the program can run."""
    label: str | int | None = None
    """Number or name of the class of all images, for a class-conditional run; None for no
    class."""
    conditions: bool = True
    """Whether the run's other conditions are the last arguments of the program: cond [B, D],
    context [B, L, D] with context_mask [B, L], concat [B, H, W, C] in [-1, 1]. If not, the program
    uses none of them."""
    guidance: float = 1.0
    """Scale of classifier-free guidance, fixed in the program."""


def export(config: ExportConfig) -> None:
    """Writes the program and, beside it, OUT.json with its sha256 and inputs.

    Raises RunDirectoryError, ValueError or DamagedCheckpointError if the options do not fit the
    run, or for files of these names that are no exported program.
    """
    config = with_types("export", config, ExportConfig)
    run = TrainedRun(config)
    labels = None if config.label is None else run.labels(1, config.label)
    sampler = run.sampler(config)
    steps = sampler.num_steps
    out = run.options.out
    if out is None:
        out = run.root / "exported" / f"{config.sampler}-{steps}-steps.stablehlo"
    if out.is_dir():
        raise RunDirectoryError(f"--out {out} is a folder. Name a file for the program.")
    _refuse_foreign(out, default=config.out is None)
    make_writable(out.parent)
    say(f"{run.title}: {config.sampler}, {steps} steps")
    shapes = dict(run.model.condition_shapes) if config.conditions else {}
    if "context" in shapes:
        shapes["context_mask"] = shapes["context"][:1]
    exported = export_sampler(
        sampler,
        run.model.guided(config.guidance),
        run.params,
        run.model.image_shape,
        inputs=config.inputs,
        batch_size=config.batch_size,
        label=None if labels is None else int(labels[0]),
        conditions=shapes,
        platforms=config.platforms,
    )
    about = {name: getattr(config, name) for name in ("guidance", "inputs")}
    about["label"] = as_label(config.label)
    options = {**sampler_options(config), **about, "num_steps": steps, "conditions": list(shapes)}
    save_program(out, exported, {**run.provenance(), **options})
    load_program(out)
    arguments = ", ".join(str(aval) for aval in exported.in_avals)
    say(f"  {out} ({quantity(out.stat().st_size, 'B')}): ({arguments}) -> uint8 images")


def _refuse_foreign(out: Path, *, default: bool) -> None:
    """Raises RunDirectoryError for files of these names that are no exported program."""
    facts = out.with_name(f"{out.name}.json")
    # File by file: at a bucket's top, listing the folder would list the whole bucket.
    taken = [path.name for path in (out, facts) if path.exists() or files_behind(path)]
    ours = default or "calling_convention" in about_in(out.parent, facts.name)
    claim(out.parent, taken, ours=ours)
