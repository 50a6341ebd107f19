"""The training program: from a configuration to a trained model, pictures, and a report.

The same command starts a run and resumes it. What a run computes is a function of its configuration
and data alone; where it was interrupted leaves no trace.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ddpm_jax.generation import Stopped
from ddpm_jax.runs.build import fetch
from ddpm_jax.runs.config import TrainConfig
from ddpm_jax.runs.console import bar, duration, say
from ddpm_jax.runs.directory import write_json
from ddpm_jax.runs.feed import Feed
from ddpm_jax.runs.meter import Meter
from ddpm_jax.runs.run import Run
from ddpm_jax.training import (
    Checkpoints,
    CheckpointWriteError,
    Hook,
    NonFiniteError,
    StopRequest,
    TrainState,
    make_chunk,
    make_train_step,
    train_loop,
)
from ddpm_jax.training.logs import RunLog

Finish = Callable[[Run, TrainState, StopRequest], None]
"""Called with the finished run, after the pictures: a study's own report."""


def train(config: TrainConfig, finish: Finish | None = None) -> None:
    """Trains, or goes on training, and ends with pictures; see the module's docstring.

    Raises ValueError, OSError, RunDirectoryError, DamagedCheckpointError or
    MismatchedCheckpointError before training starts when something cannot be right, and
    NonFiniteError when training diverges.
    """
    run = Run(config)
    run.directory.acquire()
    try:
        with StopRequest() as stop:
            _train(run, stop, finish)
    finally:
        run.directory.release()


def _train(run: Run, stop: StopRequest, finish: Finish | None) -> None:
    config, directory = run.config, run.directory
    directory.check(config, run.facts)
    with Checkpoints(directory.checkpoints, keep=config.report.checkpoint_keep) as checkpoints:
        # Shapes are enough to restore into; initialising takes seconds of compilation.
        state = checkpoints.restore(run.parallel.placeholder(jax.eval_shape(run.model.init)))
        if state is None:
            state = run.parallel.replicate(run.model.init())
        directory.write(config, run.facts)
        start = int(state.step)
        if start < config.num_steps:
            with RunLog(directory.root, start) as log:
                state = _steps(run, state, stop, checkpoints, log)
        else:
            say(
                f"{directory.root}: all {start:,} steps are done already; making the pictures again"
            )
    step = int(state.step)
    if stop():
        say(
            f"stopped by {stop.signal.name if stop.signal else 'request'} at step {step:,} of "
            f"{config.num_steps:,}; the same command goes on from there"
        )
        return
    try:
        run.final_pictures(state, stop)
        if finish is not None:
            finish(run, state, stop)
    except Stopped:
        say("stopped while drawing; the same command draws again, training is done and saved")
        return
    root = directory.root
    say(f"samples     {root / 'samples.png'}")
    say(f"denoising   {root / 'denoising.gif'}")
    say(f"loss curve  {root / 'loss.png'}")
    say(f"checkpoint  {directory.checkpoints / str(step)}")


def _steps(
    run: Run, state: TrainState, stop: StopRequest, checkpoints: Checkpoints, log: RunLog
) -> TrainState:
    """Runs the training loop from the state's step to the last one, or until a stop."""
    config = run.config
    report, start = config.report, int(state.step)
    train_step = make_train_step(
        run.model.training_losses,
        run.model.optimizer,
        ema_decay=config.optimizer.ema_decay,
        ema_warmup=config.optimizer.ema_warmup,
        update_loss_state=run.model.update_loss_state,
    )
    chunk_fn = run.parallel.wrap(make_chunk(train_step, fetch))
    periods = [report.heldout_every, report.sample_every, report.checkpoint_every]
    feed = Feed(run, start, periods)
    with feed, bar(config.num_steps, "training", initial=start) as progress:
        arguments = (feed.dataset, feed.next(start, 1, peek=True), np.int32(1))
        if start:
            say(f"resuming {run.directory.root} from step {start:,}")
        compiled, flops, seconds = _compile(
            chunk_fn, (state, *arguments), stop, len(run.parallel.devices)
        )
        say(run.describe(state, flops))
        say(f"compiled in {duration(seconds)}")
        meter = Meter(config, progress, flops)

        def run_chunk(state, first, count):
            return compiled(state, feed.dataset, feed.next(first, count), np.int32(count))

        def on_metrics(first, metrics):
            for i, (loss, norm) in enumerate(
                zip(metrics["loss"], metrics["grad_norm"], strict=True)
            ):
                step = first + i + 1
                # The step's own values: a mean would remember where the run was interrupted.
                if report.log_every and (step % report.log_every == 0 or step == config.num_steps):
                    log.write("train", step, loss=float(loss), grad_norm=float(norm))
            meter.update(len(metrics["loss"]), float(metrics["loss"][-1]))

        def measure(state, step):
            try:
                value = run.heldout_loss(
                    state.ema_params, run.heldout_data, report.heldout_draws, stop
                )
            except Stopped:
                return
            log.write("heldout", step, **value._asdict())
            meter.pause()

        def draw(state, step):
            run.sheet(state, step, stop)
            meter.pause()

        def save(state, step):
            _save(checkpoints, state, step)
            meter.pause()

        hooks = [
            Hook(report.heldout_every, measure),
            Hook(report.sample_every, draw),
            Hook(report.checkpoint_every, save),
        ]
        # What a stop cut short at the very step it saved is made up for.
        due = report.heldout_every and start and start % report.heldout_every == 0
        if due and not log.has("heldout", start):
            measure(state, start)
        due = report.sample_every and start and start % report.sample_every == 0
        if due and not run.sheet_path(start).exists():
            draw(state, start)
        try:
            state = train_loop(
                state,
                run_chunk,
                num_steps=config.num_steps,
                max_chunk=run.max_chunk,
                hooks=hooks,
                on_metrics=on_metrics,
                should_stop=stop,
                max_bad_steps=config.max_bad_steps,
            )
        except NonFiniteError as error:
            path = run.directory.root / f"nonfinite_step_{error.step}.json"
            examples = run.indices()(error.step - 1).tolist()
            write_json(
                path,
                {
                    "step": error.step,
                    "metric": error.metric,
                    "examples": examples,
                    "recent": [{k: repr(v) for k, v in row.items()} for row in error.recent],
                },
            )
            say(f"the last steps are described in {path}")
            raise
    checkpoints.save(int(state.step), state)
    checkpoints.wait()
    return state


def _save(checkpoints: Checkpoints, state: TrainState, step: int) -> None:
    try:
        checkpoints.save(step, state)
    except CheckpointWriteError as error:
        # Training is worth more than one save: the next one may find room.
        say(f"warning: {error} Training goes on.")


def _compile(
    function: Any, arguments: tuple, stop: StopRequest, devices: int
) -> tuple[Any, float | None, float]:
    """Compiles in the background, so that a stop asked for meanwhile is honoured at once: (fn,
    FLOPs, s)."""
    result: list[Any] = []

    def work():
        try:
            result.append(function.lower(*arguments).compile())
        except BaseException as error:  # noqa: BLE001 - handed to the main thread below
            result.append(error)

    began = time.perf_counter()
    thread = threading.Thread(target=work, name="compile", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        if stop() and thread.is_alive():
            say("stopped while compiling; nothing was lost, the same command goes on")
            sys.stdout.flush()
            sys.stderr.flush()
            # The compiler cannot be interrupted, and a thread inside it may not outlive the
            # interpreter.
            os._exit(0)
    if isinstance(result[0], BaseException):
        raise result[0]
    analysis = result[0].cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    flops = analysis.get("flops")
    # XLA counts one device's share.
    return result[0], flops and flops * devices, time.perf_counter() - began
