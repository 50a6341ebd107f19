"""The steps of a run in one process: from the newest checkpoint to the last step, or to a stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import training
from ddpm_jax.devices import processes
from ddpm_jax.files import write_json
from ddpm_jax.programs.batches import TrainingBatches
from ddpm_jax.programs.build import fetch
from ddpm_jax.programs.compilation import in_background
from ddpm_jax.programs.console import bar, duration, quantity, say
from ddpm_jax.programs.generator import Stopped
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.programs.step_profiler import StepProfiler, parse_profile_steps
from ddpm_jax.programs.throughput import Throughput
from ddpm_jax.programs.training_run import TrainingRun
from ddpm_jax.training import Checkpoints, StopRequest, TrainState
from ddpm_jax.training.logs import NoLog, RunLog, read_jsonl
from ddpm_jax.training.loop import Metrics
from ddpm_jax.training.watchdog import Watchdog


class CompiledSteps(NamedTuple):
    """`call(state, dataset, batches, count) -> (state, metrics)`, and its FLOPs per step."""

    call: Callable[..., tuple[TrainState, Any]]
    flops_per_step: float | None


class PreparedSteps(NamedTuple):
    """The batches of the steps, and the function that waits until the steps are compiled."""

    batches: TrainingBatches
    compiled: Callable[[StopRequest], CompiledSteps]


def prepare_steps(run: TrainingRun, shapes: TrainState, start: int) -> PreparedSteps:
    """Says what is about to run from step `start` on, and starts to compile its training steps.

    Compiling needs only the state's shapes, so the state can be computed meanwhile.
    """
    if run.config.report.heldout_every and not len(run.heldout_data.images):
        say("no images are held out (--data.holdout): the held-out loss is not measured")
    if start:
        say(f"resuming {run.directory.root} from step {start:,}")
    batches = TrainingBatches(run, start, _periods(run))
    return PreparedSteps(batches, compile_steps(run, shapes, batches))


def train_steps(
    run: TrainingRun,
    state: TrainState,
    prepared: PreparedSteps,
    stop: StopRequest,
    checkpoints: Checkpoints,
    log: RunLog | NoLog,
    watchdog: Watchdog,
) -> TrainState:
    """Trains from the state's step to the last one, or until a stop, and saves the state there."""
    profiled = parse_profile_steps(run.config.devices.profile_steps, run.config.num_steps)
    with (
        prepared.batches as batches,
        bar(run.config.num_steps, "training", initial=int(state.step)) as progress,
        StepProfiler(profiled, run.directory.root / "profile") as profiler,
    ):
        with watchdog.paused():
            steps = prepared.compiled(stop)
        throughput = Throughput(run.config, progress, steps.flops_per_step)
        session = _Session(
            run, stop, log, watchdog, checkpoints, batches, steps, throughput, profiler
        )
        session.repeat_interrupted(state)
        state = session.train(state)
    step = int(state.step)
    watchdog.beat(step, f"the checkpoint of step {step:,}")
    _save(run, checkpoints, step, state)
    checkpoints.wait()
    return state


def _save(run: TrainingRun, checkpoints: Checkpoints, step: int, state: TrainState) -> None:
    """`Checkpoints.save`, in the run's folder wherever it is now."""

    def moved() -> str | None:
        run.directory.follow()
        folder = run.directory.checkpoints.absolute()
        return None if folder == checkpoints.folder else str(folder)

    # The processes may have the folder under different names: only a move is shared.
    if (folder := processes.on_leader(moved)) is not None:
        run.directory.root = Path(folder).parent
        checkpoints.move_to(Path(folder))
    checkpoints.save(step, state)


def compile_steps(
    run: TrainingRun, shapes: TrainState, batches: TrainingBatches
) -> Callable[[StopRequest], CompiledSteps]:
    """Starts to compile a chunk of training steps; the returned function waits for it."""
    say(run.describe(shapes))
    say("compiling the training step …")
    began = time.perf_counter()
    parallel = run.parallel
    chunk = parallel.wrap(training.make_chunk(run.train_step, fetch, packed=parallel.packed))
    arguments = (shapes, batches.dataset, batches.example(), np.int32(1))

    def work() -> tuple[Any, float]:
        compiled = chunk.lower(*arguments).compile()
        return compiled, time.perf_counter() - began

    waiting = in_background(work)

    def wait(stop: StopRequest) -> CompiledSteps:
        compiled, seconds = waiting(stop)
        flops = _flops_per_step(run, compiled)
        cost = f"; {quantity(flops, 'FLOP')} per step" if flops else ""
        say(f"compiled in {duration(seconds)}{cost}")
        return CompiledSteps(compiled, flops)

    return wait


def _flops_per_step(run: TrainingRun, compiled: Any) -> float | None:
    """The FLOPs of a step on all devices, as the compiler counts them; None if it does not."""
    analysis = compiled.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    flops = analysis.get("flops")
    if flops:
        # XLA counts one device's share, and the body of a loop, such as microbatches', once.
        flops *= len(run.parallel.devices) * run.config.devices.microbatches
    return flops


def _periods(run: TrainingRun) -> list[int]:
    """The periods of the hooks, in the order in which they are called."""
    report = run.config.report
    heldout_every = report.heldout_every if len(run.heldout_data.images) else 0
    return [heldout_every, report.sample_every, report.checkpoint_every]


def interrupted_hooks(run: TrainingRun, step: int) -> list[str]:
    """The hooks of this step that a stop interrupted: "heldout", "samples", both or none."""
    heldout_every, sample_every, _ = _periods(run)

    def missing() -> list[str]:
        records = read_jsonl(run.directory.root / "log.jsonl")
        done = {
            "heldout": any(r.get("kind") == "heldout" and r.get("step") == step for r in records),
            "samples": run.sheet_path(step).exists(),
        }
        every = {"heldout": heldout_every, "samples": sample_every}
        return [n for n in done if every[n] and step and step % every[n] == 0 and not done[n]]

    return processes.on_leader(missing)


@dataclass(frozen=True)
class Hooks:
    """What a run measures and draws between its steps."""

    run: TrainingRun
    stop: StopRequest
    log: RunLog | NoLog
    watchdog: Watchdog

    def repeat_interrupted(self, state: TrainState) -> None:
        """Calls the hooks that a stop interrupted at the step it saved."""
        step = int(state.step)
        calls = {"heldout": self.measure_heldout, "samples": self.draw_samples}
        for name in interrupted_hooks(self.run, step):
            calls[name](state, step)

    def measure_heldout(self, state: TrainState, step: int) -> None:
        """Logs the held-out loss of the averaged parameters."""
        run, draws = self.run, self.run.config.report.heldout_draws
        try:
            with self.watchdog.paused():
                value = run.heldout_loss(state.ema_params, run.heldout_data, draws, self.stop)
        except Stopped:
            return
        self.log.write("heldout", step, **value._asdict())

    def draw_samples(self, state: TrainState, step: int) -> None:
        """Draws a sheet of samples; a full disk does not end training."""
        try:
            with self.watchdog.paused():
                self.run.draw_sheet(state, step, self.stop)
        except (OSError, RunDirectoryError) as error:
            say(f"warning: no sheet of samples at step {step}: {error}. Training goes on.")


@dataclass(frozen=True)
class _Session(Hooks):
    """The functions that the training loop calls, and what they need."""

    checkpoints: Checkpoints
    batches: TrainingBatches
    steps: CompiledSteps
    throughput: Throughput
    profiler: StepProfiler

    def train(self, state: TrainState) -> TrainState:
        """Runs the training loop; NonFiniteError when training diverges."""
        config = self.run.config
        calls = map(self.untimed, (self.measure_heldout, self.draw_samples, self.save))
        try:
            return training.train_loop(
                state,
                self.run_chunk,
                num_steps=config.num_steps,
                max_chunk=self.run.max_chunk,
                hooks=list(map(training.Hook, _periods(self.run), calls)),
                on_metrics=self.record,
                should_stop=self.stop,
                max_bad_steps=config.max_bad_steps,
            )
        except training.NonFiniteError as error:
            self.describe_failure(error)
            raise

    def untimed(self, call: Callable[[TrainState, int], None]) -> Callable[[TrainState, int], None]:
        """The hook `call`, whose time is not that of training."""

        def hook(state: TrainState, step: int) -> None:
            call(state, step)
            self.throughput.restart()

        return hook

    def run_chunk(self, state: TrainState, first: int, count: int) -> tuple[TrainState, Any]:
        """Dispatches `count` steps after step `first`."""
        self.watchdog.beat(first, f"the data of step {first + 1:,}")
        batches = self.batches.next(first, count)
        self.watchdog.beat(first, f"the device to take step {first + 1:,}")

        def call(state: TrainState) -> tuple[TrainState, Any]:
            return self.steps.call(state, self.batches.dataset, batches, np.int32(count))

        return self.profiler.dispatch(first, count, state, call)

    def record(self, first: int, metrics: Metrics) -> None:
        """Logs the metrics of the steps after step `first`."""
        config = self.run.config
        every = config.report.log_every
        losses, norms = metrics["loss"], metrics["grad_norm"]
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            step = first + i + 1
            # The step's own values: a mean would depend on where the run was interrupted.
            if every and (step % every == 0 or step == config.num_steps):
                self.log.write("train", step, loss=float(loss), grad_norm=float(norm))
            if not metrics["finite"][i] or ("spike" in metrics and metrics["spike"][i]):
                self.log.write("skipped", step, loss=float(loss), grad_norm=float(norm))
        done = first + len(losses)
        self.watchdog.beat(done, f"the device to take step {done + 1:,}")
        self.throughput.update(len(losses), float(losses[-1]))

    def save(self, state: TrainState, step: int) -> None:
        """Saves a checkpoint; a full disk does not end training, as later saves may succeed."""
        self.watchdog.beat(step, f"the checkpoint of step {step:,}, or the one before it")
        try:
            _save(self.run, self.checkpoints, step, state)
        except (training.CheckpointWriteError, RunDirectoryError) as error:
            say(f"warning: {error} Training goes on.")

    def describe_failure(self, error: training.NonFiniteError) -> None:
        """Writes the last steps' metrics, and the examples of the last one, beside the run."""
        path = self.run.directory.root / f"nonfinite_step_{error.step}.json"
        description = {
            "step": error.step,
            "metric": error.metric,
            "examples": self.run.indices()(error.step - 1).tolist(),
            "recent": [{k: repr(v) for k, v in row.items()} for row in error.recent],
        }
        try:
            if processes.is_leader():
                write_json(path, description)
            say(f"the last steps are described in {path}")
        except OSError as full:
            say(f"warning: the description of the last steps could not be written: {full}")
