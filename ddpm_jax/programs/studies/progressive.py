"""What is decided when: x̂_0 over reverse time, and samples that share an x_t (Ho et al. 2020, §4.3,
Figures 6 and 7)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from ddpm_jax import visualize
from ddpm_jax.files import write_json
from ddpm_jax.forward import Spacing
from ddpm_jax.forward.pixels import to_pixels
from ddpm_jax.keys import example_keys
from ddpm_jax.programs.build import build_grid
from ddpm_jax.programs.config import SamplerOptions, to_json
from ddpm_jax.programs.console import bar, say
from ddpm_jax.programs.studies.measure import GREY, rms_difference, rms_pairwise
from ddpm_jax.programs.studies.walk import Walk, common_chunk, depth_counts
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from ddpm_jax.samplers import ancestral, initial_noise


@dataclass(frozen=True)
class ProgressiveConfig(RunOptions):
    """Progressive generation by a trained run."""

    count: int = 64
    """Samples whose x̂_0 is followed; the curves average over all."""
    rows: int = 8
    """How many of them are drawn."""
    columns: int = 10
    """Moments at which their x̂_0 is drawn."""
    shared: int = 4
    """Of how many of these samples an x_t is shared; one picture each."""
    copies: int = 8
    """Samples drawn from every shared x_t."""
    depths: tuple[float, ...] = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
    """Which x_t are shared, as shares of the process: 1 for pure noise."""
    num_steps: int | None = None
    """Ancestral steps; None for all T."""
    spacing: Spacing = "fractional"
    """How fewer steps than T are spread over them."""
    label: int | None = None
    """The class to draw, of a class-conditional run; None for all in turn."""
    batch_size: int = 64
    """Images at a time; changes speed and memory, not the images."""


def progressive(config: ProgressiveConfig) -> None:
    """Writes x_0_hat.png, shared-*.png, two curves and progressive.json.

    Raises ValueError, RunDirectoryError or DamagedCheckpointError for options no run could use.
    """
    _check(config)
    run = TrainedRun(config)
    labels = run.labels(config.count, config.label)
    grid = build_grid(
        run.model.schedule, SamplerOptions(num_steps=config.num_steps, spacing=config.spacing)
    )
    total = grid.num_timesteps
    depths = sorted({*depth_counts(total, config.depths, "--depths")}, reverse=True)
    chunk = common_chunk([total, *depths])
    sampler = ancestral(grid, variance=run.config.diffusion.variance)
    walk = Walk(
        run,
        lambda given: sampler,
        run.model.guided(1.0),
        chunk=chunk,
        batch_size=config.batch_size,
    )
    out = run.folder("progressive")
    say(
        f"{config.run_dir} at step {run.step:,}: {config.count} samples of {total} steps; "
        f"{config.copies} of each x_t of {config.shared}"
    )
    root = jax.random.key(config.seed)
    key, key_copies = (jax.random.fold_in(root, purpose) for purpose in range(2))
    streams = np.arange(config.count)
    x_T = np.asarray(initial_noise(example_keys(key, streams), run.model.image_shape))
    work = config.count * total + config.shared * config.copies * sum(depths)
    with bar(work, "walking", unit="img·step") as progress:
        steps = np.arange(total)[::-1]
        whole = walk(
            key, x_T, steps, streams, labels=labels, keep=True, on_progress=progress.update
        )
        # By how many steps were left.
        x_at = dict(zip(range(total, 0, -chunk), whole.frames, strict=True))
        ends = {}
        sharers = np.repeat(np.arange(config.shared), config.copies)
        for depth in depths:
            # The same noise at every depth: what differs down a column is x_t alone.
            walked = walk(
                key_copies,
                x_at[depth][sharers],
                steps[total - depth :],
                np.arange(len(sharers)),
                labels=None if labels is None else labels[sharers],
                on_progress=progress.update,
            )
            ends[depth] = walked.x.reshape(config.shared, config.copies, *x_T.shape[1:])

    timesteps = np.asarray(grid.timesteps)
    fed = timesteps[::-1][::chunk]
    errors = [GREY * rms_difference(x_0_hat, whole.x) for x_0_hat in whole.x_0_hat]
    apart = GREY * rms_pairwise(whole.x)
    spread = [GREY * rms_pairwise(ends[depth]) for depth in depths]
    depth_steps = [int(timesteps[depth - 1]) for depth in depths]

    written = [out / "x_0_hat.png"]
    drawn = np.unique(np.linspace(0, len(fed) - 1, config.columns).round().astype(int))
    rows = np.moveaxis(np.stack([*whole.x_0_hat[drawn], whole.x]), 0, 1)[: config.rows]
    visualize.save_rows(
        written[0],
        np.asarray(to_pixels(rows)),
        row_labels=[f"sample {i}" for i in range(len(rows))],
        column_labels=[*(f"t = {fed[i]}" for i in drawn), "sample"],
    )
    for i in range(config.shared):
        tiles = [np.concatenate([x_at[depth][i : i + 1], ends[depth][i]]) for depth in depths]
        written.append(out / f"shared-{i}.png")
        visualize.save_rows(
            written[-1],
            np.asarray(to_pixels(np.stack(tiles))),
            row_labels=[f"t = {t}" for t in depth_steps],
            column_labels=["shared x_t", *(f"draw {k + 1}" for k in range(config.copies))],
        )
    written.append(out / "x_0_hat_error.png")
    visualize.save_curves(
        written[-1],
        {"x̂_0": (fed, errors)},
        "step t of the process",
        "distance in grey levels (rms)",
        title="From x̂_0(x_t) to the sample it became",
    )
    written.append(out / "shared_distance.png")
    visualize.save_curves(
        written[-1],
        {
            "samples from one x_t": (depth_steps, spread),
            "independent samples": (depth_steps, [apart] * len(depths)),
        },
        "step t whose x_t they share",
        "distance of two samples in grey levels (rms)",
        title="What is still open at step t",
    )
    written.append(out / "progressive.json")
    write_json(
        written[-1],
        {
            **run.provenance(),
            "options": to_json(config),
            "num_steps": total,
            "x_0_hat": {"t": fed.tolist(), "rms_to_sample": errors},
            "shared": {"t": depth_steps, "rms_between_samples": spread},
            "independent_samples": {"rms_between_samples": apart},
        },
    )
    _print_table(fed, errors, depth_steps, spread, apart)
    for path in written:
        say(f"  {path}")


def _check(config: ProgressiveConfig) -> None:
    for name in ("count", "rows", "columns", "shared", "batch_size"):
        if getattr(config, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least 1, got {getattr(config, name)}.")
    if config.count < 2 or config.copies < 2:
        raise ValueError(
            "--count and --copies must be at least 2, to have pairs to compare, got "
            f"{config.count} and {config.copies}."
        )
    if config.shared > config.count:
        raise ValueError(
            f"--shared {config.shared} asks for more x_t than --count {config.count} samples pass "
            "through."
        )
    # The values in it too, before any time is spent.
    depth_counts(1, config.depths, "--depths")


def _print_table(fed, errors, depth_steps, spread, apart) -> None:
    say("")
    say("rms in grey levels of 255")
    say(f"{'t':>6}  {'x̂_0(x_t) to its sample':>23}  {'two samples of one x_t':>23}")
    error_at = dict(zip(fed.tolist(), errors, strict=True))
    for t, value in zip(depth_steps, spread, strict=True):
        say(f"{t:6}  {error_at[t]:23.1f}  {value:23.1f}")
    say(f"{'independent samples':>31}  {apart:23.1f}")
    say("")
