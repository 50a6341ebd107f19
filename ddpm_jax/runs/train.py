"""The training program: from a configuration to a trained model, pictures, and a report.

The same command starts a run and resumes it. What a run computes is a function of its configuration
and data alone; where it was interrupted leaves no trace.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data import ImageDataset, PrefetchedBatches, ShuffledIndices, fits_on_device
from ddpm_jax.generation import Generator, Stopped
from ddpm_jax.keys import example_keys
from ddpm_jax.nn import count_parameters
from ddpm_jax.runs import pictures
from ddpm_jax.runs.build import Model, build_model, build_sampler, fetch, heldout_plan, load_data
from ddpm_jax.runs.config import TrainConfig
from ddpm_jax.runs.console import bar, duration, quantity, say
from ddpm_jax.runs.directory import RunDirectory, write_json
from ddpm_jax.training import (
    Checkpoints,
    Hook,
    NonFiniteError,
    StopRequest,
    TrainState,
    choose_devices,
    make_chunk,
    make_train_step,
    train_loop,
)
from ddpm_jax.training.logs import RunLog
from ddpm_jax.training.loop import next_boundary
from ddpm_jax.training.sharding import DataParallel

Finish = Callable[["Run", TrainState], None]
"""Called with the finished run, after the pictures: a study's own report."""


class Run:
    """One training run being carried out: its model, data, devices and folder."""

    def __init__(self, config: TrainConfig):
        check_config(config)
        self.config = config
        self.parallel: DataParallel = choose_devices(config.devices.backend, config.devices.count)
        self.parallel.check_batch_size(config.batch_size)
        self.train_data: ImageDataset = load_data(config.data, "train")
        self.heldout_data: ImageDataset = load_data(config.data, "heldout")
        self.model: Model = build_model(config, self.train_data.images.shape[1:])
        self.directory = RunDirectory(config.run_dir)
        platform = self.parallel.devices[0].platform
        self.max_chunk = config.devices.steps_per_dispatch or (1 if platform == "cpu" else 10)
        self.resident = fits_on_device(self.train_data, int(config.devices.resident_gib * 2**30))
        kept = float(self.model.schedule.signal_scale[-1])
        if kept > 0.05:
            warnings.warn(
                f"x_T keeps {kept:.0%} of x_0 (√ᾱ_T = {kept:.3f}), and sampling starts from pure "
                f"noise. "
                "β of 1e-4 to 0.02 belongs to T = 1000: with T steps scale both by 1000/T.",
                stacklevel=2,
            )
        self._heldout_fn = jax.jit(self.model.heldout_losses)
        self._sheet: Generator | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the numbers depend on beside the configuration."""
        return {
            "data": {
                "name": self.train_data.name,
                "fingerprint": self.train_data.fingerprint,
                "image_shape": list(self.model.image_shape),
            }
        }

    def indices(self) -> ShuffledIndices:
        """The order of the training data."""
        return ShuffledIndices(
            len(self.train_data.images), self.config.batch_size, self.config.seed
        )

    def describe(self, state: TrainState, flops: float | None) -> str:
        """What is about to run, in two lines."""
        c, devices = self.config, self.parallel.devices
        cost = f"{quantity(flops, 'FLOP')} a step" if flops else "FLOPs unknown"
        return (
            f"{self.train_data.name}: {len(self.train_data.images):,} images of "
            f"{'×'.join(map(str, self.model.image_shape))}, {len(self.heldout_data.images):,} "
            f"held out\n"
            f"{count_parameters(state.params):,} parameters, batch {c.batch_size}, {cost}, "
            f"{c.num_steps:,} steps on {len(devices)} × {devices[0].device_kind} "
            f"({self.parallel.backend})"
        )

    def heldout_loss(self, params: Any, images: np.ndarray, draws: int) -> float:
        """The mean L_simple over a fixed plan of images, steps and noise."""
        which, t = heldout_plan(draws, len(images), self.model.schedule.num_timesteps)
        keys = example_keys(jax.random.key(0), jnp.arange(draws, dtype=jnp.uint32))
        size = min(256, draws)
        total = 0.0
        for first in range(0, draws, size):
            # The last batch is moved back to stay full, and only its new part counted.
            begin = min(first, draws - size)
            part = slice(begin, begin + size)
            losses = self._heldout_fn(params, images[which[part]], t[part], keys[part])
            total += float(np.sum(np.asarray(losses, np.float64)[first - begin :]))
        return total / draws

    def sheet(self, state: TrainState, step: int, should_stop: Callable[[], bool]) -> None:
        """Draws samples of the averaged parameters as they are now, by DDIM."""
        report = self.config.report
        if self._sheet is None:
            sampler = build_sampler(
                self.model.schedule,
                "ddim",
                num_steps=min(report.sample_steps, self.model.schedule.num_timesteps),
                spacing=report.spacing,
            )
            self._sheet = Generator(
                sampler,
                self.model.denoiser_of,
                self.model.image_shape,
                devices=self.parallel.devices,
                target_chunks=10,
            )
        try:
            made = pictures.draw_images(
                self._sheet,
                state.ema_params,
                f"samples at step {step}",
                seed=self.config.seed,
                count=report.sample_count,
                batch_size=report.sample_count,
                leave=False,
                should_stop=should_stop,
            )
        except Stopped:
            return
        path = self.directory.sheets / f"step_{step:07d}.png"
        pictures.visualize.save_grid(path, made.images)

    def final_pictures(self, state: TrainState, should_stop: Callable[[], bool]) -> None:
        """The last sheet and the GIF by ancestral sampling, and the loss curve."""
        report, root = self.config.report, self.directory.root
        sampler = build_sampler(
            self.model.schedule,
            "ancestral",
            num_steps=report.final_steps,
            spacing=report.spacing,
            variance=self.config.diffusion.variance,
        )
        generator = Generator(
            sampler, self.model.denoiser_of, self.model.image_shape, devices=self.parallel.devices
        )
        made = pictures.draw_images(
            generator,
            state.ema_params,
            "sampling",
            seed=self.config.seed,
            count=report.final_count,
            batch_size=report.final_count,
            frames_of=min(report.final_count, 36),
            should_stop=should_stop,
        )
        pictures.visualize.save_grid(root / "samples.png", made.images)
        if made.frames is not None:
            pictures.visualize.save_gif(root / "denoising.gif", made.frames)
        pictures.save_loss_curve(
            root / "log.jsonl", root / "loss.png", f"{self.train_data.name}: L_simple"
        )


def check_config(config: TrainConfig) -> None:
    """Raises ValueError for values that no run could use, before anything is loaded."""
    if config.num_steps < 1:
        raise ValueError(f"--num-steps must be at least 1, got {config.num_steps}.")
    if config.max_bad_steps < 1:
        raise ValueError(f"--max-bad-steps must be at least 1, got {config.max_bad_steps}.")
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"--seed must be in 0..2³²-1, got {config.seed}.")
    steps = config.devices.steps_per_dispatch
    if steps is not None and steps < 1:
        raise ValueError(f"--devices.steps-per-dispatch must be at least 1, got {steps}.")
    for name, value in vars(config.report).items():
        if isinstance(value, int) and value < 0:
            raise ValueError(
                f"--report.{name.replace('_', '-')} must not be negative, got {value}."
            )
    for name in ("sample_count", "sample_steps", "final_count", "heldout_draws", "checkpoint_keep"):
        if getattr(config.report, name) < 1:
            raise ValueError(f"--report.{name.replace('_', '-')} must be at least 1, got 0.")


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
    directory.adopt(config, run.facts)
    with Checkpoints(directory.checkpoints, keep=config.report.checkpoint_keep) as checkpoints:
        # Shapes are enough to restore into; initialising takes seconds of compilation.
        state = checkpoints.restore(run.parallel.placeholder(jax.eval_shape(run.model.init)))
        if state is None:
            state = run.parallel.replicate(run.model.init())
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
            finish(run, state)
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
    )
    chunk_fn = run.parallel.wrap(make_chunk(train_step, fetch))
    periods = [report.heldout_every, report.sample_every, report.checkpoint_every]
    feed = Feed(run, start, periods)
    with feed, bar(config.num_steps, "training", initial=start) as progress:
        arguments = (feed.dataset, feed.next(start, 1, peek=True), np.int32(1))
        if start:
            say(f"resuming {run.directory.root} from step {start:,}")
        compiled, flops, seconds = _compile(chunk_fn, (state, *arguments), stop)
        if compiled is None:
            return state
        say(run.describe(state, flops))
        say(f"compiled in {duration(seconds)}")
        meter = Meter(run, progress, flops)

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
            value = run.heldout_loss(
                state.ema_params, run.heldout_data.images, report.heldout_draws
            )
            log.write("heldout", step, loss=value)
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
    except OSError as error:
        # Training is worth more than one save: the next one may find room, and the last one stops
        # the run.
        say(
            f"warning: a checkpoint before step {step} could not be written ({error}); training "
            f"goes on"
        )


def _compile(function: Any, arguments: tuple, stop: StopRequest) -> tuple[Any, float | None, float]:
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
    return result[0], analysis.get("flops"), time.perf_counter() - began


class Meter:
    """Speed: on the bar, and said once in words when it is known."""

    def __init__(self, run: Run, progress: Any, flops: float | None):
        self.run, self.progress, self.flops = run, progress, flops
        self.began = time.perf_counter()
        self.steps, self.said = 0, False

    def pause(self) -> None:
        """Starts the clock anew after something that was not training."""
        self.began, self.steps = time.perf_counter(), 0

    def update(self, count: int, loss: float) -> None:
        """Counts steps that are done."""
        self.progress.update(count)
        self.steps += count
        seconds = time.perf_counter() - self.began
        if seconds <= 0:
            return
        config = self.run.config
        rate = self.steps / seconds
        self.progress.set_postfix_str(
            f"loss {loss:.4f}, {rate * config.batch_size:,.0f} img/s", refresh=False
        )
        if not self.said and (seconds > 2.0 and self.steps >= 3):
            self.said = True
            left = (config.num_steps - self.progress.n) / rate
            speed = f", {quantity(rate * self.flops, 'FLOP/s')}" if self.flops else ""
            say(
                f"{duration(1 / rate)} a step, {rate * config.batch_size:,.0f} images/s{speed}; "
                f"about {duration(left)} to go"
            )
            self.pause()


class Feed:
    """Batches for the compiled step: indices into a data set on the device, or images streamed to
    it."""

    def __init__(self, run: Run, start: int, periods: list[int]):
        self.run, self.indices = run, run.indices()
        config = run.config
        self.length = run.max_chunk
        self.place = np.tile(np.arange(config.batch_size, dtype=np.int32), (self.length, 1))
        self.dataset: Any = {}
        self.stream: PrefetchedBatches | None = None
        if run.resident:
            self.dataset = run.parallel.replicate({"image": jnp.asarray(run.train_data.images)})
        else:
            self.stream = PrefetchedBatches(
                run.train_data,
                self.indices,
                start_step=start,
                chunk_length=lambda step: (
                    next_boundary(step, config.num_steps, run.max_chunk, periods) - step
                ),
            )

    def __enter__(self) -> Feed:
        if self.stream is not None:
            self.stream.__enter__()
        return self

    def __exit__(self, *exc_info) -> None:
        if self.stream is not None:
            self.stream.__exit__(*exc_info)

    def next(self, step: int, count: int, *, peek: bool = False) -> dict[str, Any]:
        """The batches of `count` steps from `step` on, filled up to the chunk's length and on the
        devices."""
        if self.stream is None:
            batch = {"example": self._filled(self.indices.chunk(step, count))}
        elif peek:
            shape = (self.length, self.run.config.batch_size, *self.run.model.image_shape)
            batch = {"image": np.zeros(shape, np.uint8)}
        else:
            chunk = next(self.stream)
            if (chunk.step, len(chunk.images)) != (step, count):
                raise RuntimeError(
                    f"the data stream is at step {chunk.step} (+{len(chunk.images)}) where "
                    f"training is "
                    f"at {step} (+{count})."
                )
            batch = {"image": self._filled(chunk.images)}
        return self.run.parallel.place_batches({**batch, "index": self.place})

    def _filled(self, array: np.ndarray) -> np.ndarray:
        missing = self.length - len(array)
        return array if not missing else np.concatenate([array, np.repeat(array[-1:], missing, 0)])
