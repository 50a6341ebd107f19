"""Progressive generation: when does sampling decide what?

    ddpm-jax progressive --run-dir runs/digits

Figures 6 and 7 of Ho et al. 2020 (arXiv 2006.11239, §4.3) for a trained model. x_0_hat.png follows
the estimate x̂_0(x_t) of several samples over reverse time; shared-*.png shows samples drawn from
one x_t with fresh noise. Expect large structures to be decided first: samples that share an early
(noisy) x_t have nothing in common, those that share a late one differ in details. The first x̂_0 of
a network that predicts ε may look like noise: where x_t retains nothing of x_0, ε does not
determine it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import visualize
from ddpm_jax.evaluation import rms_difference, rms_pairwise
from ddpm_jax.files import write_json
from ddpm_jax.forward import Spacing
from ddpm_jax.forward.pixels import to_pixels
from ddpm_jax.keys import example_keys, make_key
from ddpm_jax.programs.build import build_grid, check_unused
from ddpm_jax.programs.chunks import common_chunk, depth_counts
from ddpm_jax.programs.config import SamplerOptions
from ddpm_jax.programs.config_values import check_least, to_json
from ddpm_jax.programs.console import bar, run_program, say
from ddpm_jax.programs.generator import ReverseProcess
from ddpm_jax.programs.pictures import need_pictures
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from ddpm_jax.samplers import ancestral, initial_noise

GREY = 127.5
"""Grey levels per unit of model values, which go from -1 to 1."""


@dataclass(frozen=True)
class ProgressiveConfig(RunOptions):
    """Progressive generation with a trained model."""

    count: int = 64
    """Samples whose x̂_0 is followed; the curves average over all of them."""
    rows: int = 8
    """How many of them are shown."""
    columns: int = 10
    """Steps at which their x̂_0 is shown."""
    shared: int = 4
    """How many of these samples have their x_t shared; one picture each."""
    copies: int = 8
    """Samples drawn from each shared x_t."""
    depths: tuple[float, ...] = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
    """Which x_t are shared, as shares of the process: 1 for pure noise."""
    num_steps: int | None = None
    """Ancestral steps; None for all T."""
    spacing: Spacing = "fractional"
    """How fewer steps than T are spread over them."""
    label: str | int | None = None
    """Number or name of the class of all samples, for a class-conditional run; None for all classes
    in turn."""
    batch_size: int = 64
    """Images at a time; changes speed and memory, not the images."""


class ProgressiveResult(NamedTuple):
    """What the study made, in model values from -1 to 1.

    samples  [N, H, W, C]
    x_0_hat  [F, N, H, W, C], the estimates at F steps of reverse time
    shared   {steps left: [shared, copies, H, W, C]}, samples drawn from one x_t
    numbers  what progressive.json says of them
    files    what was written
    """

    samples: np.ndarray
    x_0_hat: np.ndarray
    shared: dict[int, np.ndarray]
    numbers: dict[str, Any]
    files: list[Path]


def progressive(config: ProgressiveConfig) -> ProgressiveResult:
    """Samples; writes x_0_hat.png, shared-*.png, two plots of distances, and progressive.json.

    Raises ValueError for invalid options, RunDirectoryError or DamagedCheckpointError for a run
    that cannot be read.
    """
    _check(config)
    run = TrainedRun(config)
    need_pictures(run, "progressive")
    labels = run.labels(config.count, config.label)
    steps = SamplerOptions(num_steps=config.num_steps, spacing=config.spacing)
    check_unused(steps)
    grid = build_grid(run.model.schedule, steps)
    total = grid.num_timesteps
    depths = sorted({*depth_counts(total, config.depths, "--depths")}, reverse=True)
    chunk = common_chunk([total, *depths])
    sampler = ancestral(grid, variance=run.config.diffusion.variance)
    reverse = ReverseProcess(
        run.params,
        lambda _: sampler,
        run.model.guided(1.0),
        devices=run.devices,
        chunk=chunk,
        batch_size=config.batch_size,
    )
    out = run.study_folder(
        "progressive", ["x_0_hat.png", "shared-0.png", "x_0_hat_error.png", "shared_distance.png"]
    )
    say(
        f"{run.title}: {config.count} samples in {total} steps; "
        f"{config.copies} from each x_t of {config.shared} of them"
    )
    root = make_key(config.seed)
    key, key_copies = (jax.random.fold_in(root, purpose) for purpose in range(2))
    streams = np.arange(config.count)
    x_T = np.asarray(initial_noise(example_keys(key, streams), run.model.image_shape))
    work = config.count * total + config.shared * config.copies * sum(depths)
    with bar(work, "sampling", unit="img·step") as progress:
        steps = np.arange(total)[::-1]
        whole = reverse(
            key, x_T, steps, streams, labels=labels, keep=True, on_progress=progress.update
        )
        # Keyed by the number of steps left.
        x_at = dict(zip(range(total, 0, -chunk), whole.frames, strict=True))
        ends = {}
        sharers = np.repeat(np.arange(config.shared), config.copies)
        for depth in depths:
            # The same noise at every depth: down a column only x_t differs.
            trajectory = reverse(
                key_copies,
                x_at[depth][sharers],
                steps[total - depth :],
                np.arange(len(sharers)),
                labels=None if labels is None else labels[sharers],
                on_progress=progress.update,
            )
            ends[depth] = trajectory.x.reshape(config.shared, config.copies, *x_T.shape[1:])

    timesteps = np.asarray(grid.timesteps)
    frame_steps = timesteps[::-1][::chunk]
    errors = [GREY * rms_difference(x_0_hat, whole.x) for x_0_hat in whole.x_0_hat]
    apart = GREY * rms_pairwise(whole.x)
    spread = [GREY * rms_pairwise(ends[depth]) for depth in depths]
    depth_steps = [int(timesteps[depth - 1]) for depth in depths]

    files = [out / "x_0_hat.png"]
    shown = np.unique(np.linspace(0, len(frame_steps) - 1, config.columns).round().astype(int))
    rows = np.moveaxis(np.stack([*whole.x_0_hat[shown], whole.x]), 0, 1)[: config.rows]
    visualize.save_rows(
        files[0],
        np.asarray(to_pixels(rows)),
        row_labels=[f"sample {i}" for i in range(len(rows))],
        column_labels=[*(f"t = {frame_steps[i]}" for i in shown), "sample"],
    )
    for i in range(config.shared):
        tiles = [np.concatenate([x_at[depth][i : i + 1], ends[depth][i]]) for depth in depths]
        files.append(out / f"shared-{i}.png")
        visualize.save_rows(
            files[-1],
            np.asarray(to_pixels(np.stack(tiles))),
            row_labels=[f"t = {t}" for t in depth_steps],
            column_labels=["shared x_t", *(f"sample {k + 1}" for k in range(config.copies))],
        )
    files.append(out / "x_0_hat_error.png")
    middle = len(frame_steps) // 2
    visualize.save_curves(
        files[-1],
        {"x̂_0": (frame_steps, errors)},
        "step t of the process",
        "RMS of x̂_0(x_t) - sample, in grey levels",
        title=f"At t = {frame_steps[middle]}, x̂_0 is {errors[middle]:.0f} grey levels from the "
        "sample it becomes",
    )
    files.append(out / "shared_distance.png")
    middle = len(depths) // 2
    visualize.save_curves(
        files[-1],
        {"samples from one x_t": (depth_steps, spread)},
        "step t at which they share x_t",
        "RMS difference of two samples, in grey levels",
        levels={"independent samples": apart},
        title=f"Samples that share x_{depth_steps[middle]} differ by {spread[middle]:.0f} grey "
        f"levels, others by {apart:.0f}",
    )
    files.append(out / "progressive.json")
    numbers = {
        "x_0_hat": {"t": frame_steps.tolist(), "rms_to_sample": errors},
        "shared": {"t": depth_steps, "rms_between_samples": spread},
        "independent_samples": {"rms_between_samples": apart},
    }
    write_json(
        files[-1], {**run.provenance(), "options": to_json(config), "num_steps": total, **numbers}
    )
    _print_table(frame_steps, errors, depth_steps, spread, apart)
    for path in files:
        say(f"  {path}")
    return ProgressiveResult(whole.x, whole.x_0_hat, ends, numbers, files)


def _check(config: ProgressiveConfig) -> None:
    check_least(config, 1, "rows", "columns", "shared", "batch_size")
    check_least(config, 2, "count", "copies")  # pairs are compared
    if config.shared > config.count:
        raise ValueError(
            f"--shared {config.shared} exceeds the --count {config.count} samples whose x_t can be "
            "shared."
        )
    depth_counts(1, config.depths, "--depths")


def _print_table(frame_steps, errors, depth_steps, spread, apart) -> None:
    say("")
    say("RMS difference in grey levels of 255")
    say(f"{'t':>6}  {'x̂_0(x_t), its sample':>23}  {'two samples of one x_t':>23}")
    error_at = dict(zip(frame_steps.tolist(), errors, strict=True))
    for t, value in zip(depth_steps, spread, strict=True):
        say(f"{t:6}  {error_at[t]:23.1f}  {value:23.1f}")
    say(f"{'independent samples':>31}  {apart:23.1f}")
    say("")


if __name__ == "__main__":
    run_program(progressive, ProgressiveConfig(), __doc__)
