"""The training program: from a configuration to a trained model, pictures, and a report.

The same command starts a run and resumes it. What a run computes depends on its configuration and
data alone; an interruption leaves no trace.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict

from ddpm_jax.data import DataSet
from ddpm_jax.data.registry import PASSED
from ddpm_jax.devices import processes
from ddpm_jax.forward.checks import check_function
from ddpm_jax.programs.compilation import in_background
from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.programs.config_values import to_json, with_types
from ddpm_jax.programs.console import is_program, say
from ddpm_jax.programs.generator import Stopped
from ddpm_jax.programs.initial_weights import (
    InitialWeights,
    begin_with_weights,
    read_initial_weights,
)
from ddpm_jax.programs.mirror import mirrored
from ddpm_jax.programs.paths import with_local_paths
from ddpm_jax.programs.run_directory import RunDirectoryError, without_names
from ddpm_jax.programs.trackers import OnRecord, recording
from ddpm_jax.programs.training_run import HeldOut, TrainingRun
from ddpm_jax.programs.training_session import Hooks, interrupted_hooks, prepare_steps, train_steps
from ddpm_jax.training import Checkpoints, StopRequest, TrainState
from ddpm_jax.training.logs import read_jsonl
from ddpm_jax.training.loop import StopAtOnce
from ddpm_jax.training.watchdog import Watchdog

Finish = Callable[[TrainingRun, TrainState, StopRequest], None]
"""Called with the finished run, after the pictures: a study's own report."""


class TrainingResult(NamedTuple):
    """What training left behind.

    Attributes:
        run_dir: the folder of the run.
        step: the number of steps taken so far; the last of them is saved.
        pictures: samples, denoising GIF and loss curve; empty if stopped before they were drawn.
        heldout: the last held-out loss that was logged, if any.
    """

    run_dir: Path
    step: int
    pictures: tuple[Path, ...]
    heldout: HeldOut | None


def train(
    config: TrainConfig,
    finish: Finish | None = None,
    *,
    data: DataSet | None = None,
    on_record: OnRecord | None = None,
) -> TrainingResult | None:
    """Trains, or resumes training, and draws the final pictures; None if stopped before it began.

    data  a function of the split, "train" or "heldout", that returns an `ImageDataset`, in place of
          the data that `config.data` names; `data.from_arrays` makes one
    on_record  called as `on_record(kind, step, values)` with every record of log.jsonl: "train" and
          "skipped" with {"loss", "grad_norm"}, "heldout" with {"loss", "bits_per_dim"}. If it
          raises an Exception the run goes on, with one warning; `signal.raise_signal(SIGINT)` in it
          stops the run, as Ctrl-C does.

    The first SIGINT (Ctrl-C) or SIGTERM ends training at the next step, which is saved. While the
    step is compiled there is nothing to save, and `CompilationStopped`, a KeyboardInterrupt, is
    raised at once. The watchdog, which ends a process that hangs, works in programs only
    (`run_program`).

    Raises ValueError, OSError, RunDirectoryError, DamagedCheckpointError or
    MismatchedCheckpointError before training if something is wrong, and NonFiniteError when
    training diverges.
    """
    config = with_local_paths(with_types("train", config, TrainConfig))
    for given, function in (("finish", finish), ("data", data), ("on_record", on_record)):
        if function is not None:
            check_function("train", given, function, "or None")
    if data is not None:
        name = dataclasses.replace(config.data, name=PASSED)
        config = dataclasses.replace(config, data=name)
    processes.connect(**dataclasses.asdict(config.distributed))
    with StopRequest() as stop:
        try:
            with stop.at_once():
                run = processes.everywhere(lambda: TrainingRun(config, data))
        except BaseException:
            # Any error: a library that is being imported may turn the interrupt into another one.
            if stop.signal is None:
                raise
            say(f"stopped by {stop.signal.name} before training; the same command starts it")
            return None
        processes.on_leader(run.directory.acquire)
        if processes.num_processes() > 1:
            stop.share()
        try:
            with mirrored(run.directory, config.report, stop):
                return _train(run, stop, finish, on_record)
        except StopAtOnce:
            say("stopped while the run was being fetched; the same command starts it")
            return None
        finally:
            run.directory.release()


def _train(
    run: TrainingRun, stop: StopRequest, finish: Finish | None, on_record: OnRecord | None
) -> TrainingResult:
    state, root = _train_to_the_end(run, stop, on_record), run.directory.root
    result = TrainingResult(root, int(state.step), (), _last_heldout(root))
    if stop():
        say(
            f"stopped by {stop.signal.name if stop.signal else 'request'} at step {result.step:,} "
            f"of {run.config.num_steps:,}; the same command goes on from there"
        )
        return result
    try:
        result = result._replace(pictures=run.draw_final_pictures(state, stop))
        if finish is not None:
            finish(run, state, stop)
    except Stopped:
        say("stopped while drawing; the same command draws again, training is done and saved")
        return result
    for name, path in zip(("samples", "denoising", "loss curve"), result.pictures, strict=False):
        say(f"{name:11} {path}")
    say(f"checkpoint  {run.directory.checkpoints / str(result.step)}")
    return result


def _train_to_the_end(
    run: TrainingRun, stop: StopRequest, on_record: OnRecord | None
) -> TrainState:
    """Restores or initialises the state, and takes the steps that remain, or those until a stop."""
    config, directory = run.config, run.directory
    data, changes = processes.on_leader(lambda: _check_directory(run))
    processes.everywhere(lambda: _check_same_data(run, data))
    name = f"process-{jax.process_index()}" if processes.num_processes() > 1 else ""
    with (
        Checkpoints(
            directory.checkpoints,
            keep=config.report.checkpoint_keep,
            keep_every=config.report.keep_every,
        ) as checkpoints,
        Watchdog(
            config.devices.watchdog_seconds if is_program() else 0, directory.root, name=name
        ) as watchdog,
    ):
        watchdog.beat(0, "the newest checkpoint to be read")
        # Restoring needs only shapes; initialising takes seconds of compilation.
        shapes = run.parallel.placeholder(run.model.init_shapes())
        state = checkpoints.restore(shapes)
        checkpoints.try_folder()
        start, weights = 0 if state is None else int(state.step), None
        processes.on_leader(lambda: _check_new_decay(config, start, changes))
        if state is None and config.init_from is not None:
            # Before minutes of compilation, so that other weights are refused at once.
            with watchdog.paused():
                weights = processes.everywhere(lambda: read_initial_weights(config, run.model))
        steps = prepare_steps(run, shapes, start) if start < config.num_steps else None
        if state is None:
            with watchdog.paused():
                state, records = in_background(lambda: _initial_state(run, weights))(stop)
        else:
            # Process 0 alone writes it.
            records = directory.records() if processes.is_leader() else {}
            if changes:
                change = {"step": start, "changed": changes}
                records["changes"] = [*records.get("changes", ()), change]
        processes.on_leader(lambda: directory.write(config, {**run.facts, **records}))
        if steps is None:
            # Refuses a damaged log now rather than after drawing.
            _last_heldout(directory.root)
            say(f"{directory.root}: all {start:,} steps are done; drawing the pictures again")
            if not interrupted_hooks(run, start):
                return state
        tracker, fields = config.report.tracker, flatten_dict(to_json(config), sep=".")
        with recording(
            directory.root, start, config=fields, tracker=tracker, on_record=on_record
        ) as log:
            if steps is not None:
                return train_steps(run, state, steps, stop, checkpoints, log, watchdog)
            Hooks(run, stop, log, watchdog).repeat_interrupted(state)
            return state


def _initial_state(
    run: TrainingRun, weights: InitialWeights | None
) -> tuple[TrainState, dict[str, Any]]:
    """The state before the first step, and what config.json says about its weights."""
    fresh = run.model.init()
    if weights is None:
        return run.parallel.place(fresh), {}
    state, record = processes.everywhere(lambda: begin_with_weights(run.config, weights, fresh))
    return run.parallel.place(state), {"initial_weights": record}


def _check_directory(run: TrainingRun) -> tuple[dict[str, Any], list[str]]:
    """What identifies the data of this run, and its permitted differences from the stored one."""
    return without_names(run.facts["data"]), run.directory.check(run.config, run.facts)


def _check_new_decay(config: TrainConfig, step: int, changes: list[str]) -> None:
    """Warns if a run of constant learning rate gets a decay that begins before its step.

    Raises RunDirectoryError if the decay also ends there, since no step of it would be taken.
    """
    optimizer, last = config.optimizer, config.num_steps
    length = optimizer.decay_steps or last - optimizer.warmup_steps
    late = step - (last - length)
    if late <= 0 or not any(c.startswith("--optimizer.decay: constant") for c in changes):
        return
    what = f"the {optimizer.decay} decay over the {length:,} steps before --num-steps {last:,}"
    if step >= last:
        raise RunDirectoryError(
            f"{what} is over: {config.run_dir} has taken {step:,} steps without it. Give it steps "
            f"of its own, such as --num-steps {step + length}. Nothing was changed."
        )
    warnings.warn(
        f"{what} begins before step {step:,}, which the run has reached: the first {late:,} of its "
        "steps are left out, and the learning rate drops at once. To decay from here on, use "
        f"--optimizer.decay-steps {last - step}.",
        stacklevel=2,
    )


def _check_same_data(run: TrainingRun, data: dict[str, Any]) -> None:
    own = json.loads(json.dumps(without_names(run.facts["data"])))
    if own != data:
        raise RunDirectoryError(
            f"this process has other data ({own}) than process 0 ({data}). "
            "Give all of them the same --data.path."
        )


def _last_heldout(root: Path) -> HeldOut | None:
    records = [r for r in read_jsonl(root / "log.jsonl") if r.get("kind") == "heldout"]
    if not records:
        return None
    return HeldOut(*(records[-1][name] for name in HeldOut._fields))
