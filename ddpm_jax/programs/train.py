"""The training program: from a configuration to a trained model, pictures, and a report.

The same command starts a run and resumes it. What a run computes is a function of its configuration
and data alone; where it was interrupted leaves no trace.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from ddpm_jax.devices import processes
from ddpm_jax.files import write_json
from ddpm_jax.programs.batches import Feed
from ddpm_jax.programs.build import fetch
from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.programs.console import bar, duration, say
from ddpm_jax.programs.generator import Stopped
from ddpm_jax.programs.meter import Meter
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.programs.training_run import Run
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
from ddpm_jax.training.logs import NoLog, RunLog
from ddpm_jax.training.watchdog import Watchdog

T = TypeVar("T")
Finish = Callable[[Run, TrainState, StopRequest], None]
"""Called with the finished run, after the pictures: a study's own report."""


def train(config: TrainConfig, finish: Finish | None = None) -> None:
    """Trains, or goes on training, and ends with pictures; see the module's docstring.

    Raises ValueError, OSError, RunDirectoryError, DamagedCheckpointError or
    MismatchedCheckpointError before training starts when something cannot be right, and
    NonFiniteError when training diverges.
    """
    processes.connect(**dataclasses.asdict(config.distributed))
    with StopRequest() as stop:
        try:
            with stop.at_once():
                run = processes.everywhere(lambda: Run(config))
        except BaseException:
            # Whatever was raised: on its way through a library that is just being imported, the
            # interrupt may turn into another error.
            if stop.signal is None:
                raise
            say(f"stopped by {stop.signal.name} before training; the same command starts it")
            return
        processes.on_leader(run.directory.acquire)
        if processes.num_processes() > 1:
            stop.share()
        try:
            _train(run, stop, finish)
        finally:
            run.directory.release()


def _train(run: Run, stop: StopRequest, finish: Finish | None) -> None:
    config, directory = run.config, run.directory
    facts = processes.on_leader(lambda: _checked_facts(run))
    processes.everywhere(lambda: _check_same_data(run, facts))
    name = f"process-{jax.process_index()}" if processes.num_processes() > 1 else ""
    with (
        Checkpoints(directory.checkpoints, keep=config.report.checkpoint_keep) as checkpoints,
        Watchdog(config.devices.watchdog_seconds, directory.root, name=name) as watchdog,
    ):
        watchdog.beat(0, "the newest checkpoint to be read")
        # Shapes are enough to restore into; initialising takes seconds of compilation.
        state = checkpoints.restore(run.parallel.placeholder(run.model.init_shapes()))
        if state is None:
            with watchdog.paused():
                state = _unless_stopped(lambda: run.parallel.place(run.model.init()), stop)
        processes.on_leader(lambda: directory.write(config, run.facts))
        start = int(state.step)
        if start < config.num_steps:
            with RunLog(directory.root, start) if processes.is_leader() else NoLog() as log:
                state = _steps(run, state, stop, checkpoints, log, watchdog)
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


def _checked_facts(run: Run) -> dict[str, Any]:
    run.directory.check(run.config, run.facts)
    return run.facts


def _check_same_data(run: Run, facts: dict[str, Any]) -> None:
    if json.loads(json.dumps(run.facts)) != json.loads(json.dumps(facts)):
        raise RunDirectoryError(
            f"this process has other data ({run.facts['data']}) than process 0 ({facts['data']}). "
            "Give all of them the same --data.path."
        )


def _steps(
    run: Run,
    state: TrainState,
    stop: StopRequest,
    checkpoints: Checkpoints,
    log: RunLog | NoLog,
    watchdog: Watchdog,
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
        num_microbatches=config.devices.microbatches,
        spike_factor=config.optimizer.spike_factor,
    )
    chunk_fn = run.parallel.wrap(make_chunk(train_step, fetch))
    heldout_every = report.heldout_every if len(run.heldout_data.images) else 0
    if report.heldout_every and not heldout_every:
        say("no images are held out (--data.holdout): the held-out loss is not measured")
    periods = [heldout_every, report.sample_every, report.checkpoint_every]
    feed = Feed(run, start, periods)
    with feed, bar(config.num_steps, "training", initial=start) as progress:
        arguments = (feed.dataset, feed.next(start, 1, peek=True), np.int32(1))
        if start:
            say(f"resuming {run.directory.root} from step {start:,}")
        with watchdog.paused():
            compiled, flops, seconds = _compile(
                chunk_fn, (state, *arguments), stop, len(run.parallel.devices)
            )
        # XLA counts the inside of a loop once, and microbatches go round one.
        flops = flops and flops * config.devices.microbatches
        say(run.describe(state, flops))
        say(f"compiled in {duration(seconds)}")
        meter = Meter(config, progress, flops)

        def run_chunk(state, first, count):
            watchdog.beat(first, f"the data of step {first + 1:,}")
            batches = feed.next(first, count)
            watchdog.beat(first, f"the device to take step {first + 1:,}")
            return compiled(state, feed.dataset, batches, np.int32(count))

        def on_metrics(first, metrics):
            for i, (loss, norm) in enumerate(
                zip(metrics["loss"], metrics["grad_norm"], strict=True)
            ):
                step = first + i + 1
                # The step's own values: a mean would remember where the run was interrupted.
                if report.log_every and (step % report.log_every == 0 or step == config.num_steps):
                    log.write("train", step, loss=float(loss), grad_norm=float(norm))
                if not metrics["finite"][i] or ("spike" in metrics and metrics["spike"][i]):
                    log.write("skipped", step, loss=float(loss), grad_norm=float(norm))
            done = first + len(metrics["loss"])
            watchdog.beat(done, f"the device to take step {done + 1:,}")
            meter.update(len(metrics["loss"]), float(metrics["loss"][-1]))

        def measure(state, step):
            try:
                with watchdog.paused():
                    value = run.heldout_loss(
                        state.ema_params, run.heldout_data, report.heldout_draws, stop
                    )
            except Stopped:
                return
            log.write("heldout", step, **value._asdict())
            meter.pause()

        def draw(state, step):
            try:
                with watchdog.paused():
                    run.sheet(state, step, stop)
            except OSError as error:
                say(f"warning: no sheet of samples at step {step}: {error}. Training goes on.")
            meter.pause()

        def save(state, step):
            watchdog.beat(step, f"the checkpoint of step {step:,}, or the one before it")
            _save(checkpoints, state, step)
            meter.pause()

        hooks = [
            Hook(heldout_every, measure),
            Hook(report.sample_every, draw),
            Hook(report.checkpoint_every, save),
        ]
        # What a stop cut short at the very step it saved is made up for.
        due = heldout_every and start and start % heldout_every == 0
        if due and not processes.on_leader(lambda: log.has("heldout", start)):
            measure(state, start)
        due = report.sample_every and start and start % report.sample_every == 0
        if due and not processes.on_leader(lambda: run.sheet_path(start).exists()):
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
            description = {
                "step": error.step,
                "metric": error.metric,
                "examples": examples,
                "recent": [{k: repr(v) for k, v in row.items()} for row in error.recent],
            }
            try:
                if processes.is_leader():
                    write_json(path, description)
                say(f"the last steps are described in {path}")
            except OSError as full:
                say(f"warning: the last steps are described nowhere: {full}")
            raise
    step = int(state.step)
    watchdog.beat(step, f"the checkpoint of step {step:,}")
    checkpoints.save(step, state)
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
    """Compiles the step: (fn, FLOPs, s)."""
    began = time.perf_counter()
    compiled = _unless_stopped(lambda: function.lower(*arguments).compile(), stop)
    analysis = compiled.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    flops = analysis.get("flops")
    # XLA counts one device's share.
    return compiled, flops and flops * devices, time.perf_counter() - began


def _unless_stopped(compile_: Callable[[], T], stop: StopRequest) -> T:
    """Compiles in the background, so that a stop asked for meanwhile is honoured at once."""
    result: list[Any] = []

    def work():
        try:
            result.append(compile_())
        except BaseException as error:  # noqa: BLE001 - handed to the main thread below
            result.append(error)

    thread = threading.Thread(target=work, name="compile", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        # Of several processes none may leave the others waiting: they stop after the first step.
        if processes.num_processes() == 1 and stop() and thread.is_alive():
            say("stopped while compiling; nothing was lost, the same command goes on")
            sys.stdout.flush()
            sys.stderr.flush()
            # The compiler cannot be interrupted, and a thread inside it may not outlive the
            # interpreter.
            os._exit(0)
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]
