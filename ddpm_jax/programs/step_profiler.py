"""`--devices.profile-steps FIRST:LAST`: a trace of some training steps, by `jax.profiler`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from ddpm_jax.devices import processes
from ddpm_jax.programs.console import say


def parse_profile_steps(text: str | None, num_steps: int) -> tuple[int, int] | None:
    """100:110 → (100, 110), None → None; ValueError unless these are ascending steps of the run."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text, re.ASCII)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not first < last <= num_steps:
        raise ValueError(
            f"--devices.profile-steps needs FIRST:LAST with 0 <= FIRST < LAST <= {num_steps} "
            f"(--num-steps), got {text!r}. 100:110 traces the ten steps after step 100."
        )
    return first, last


class StepProfiler:
    """Traces the dispatches that take the steps after `first`, up to `last`; a context manager.

    A trace that cannot be made gives a warning and does not end the run.

    Args:
        steps: (first, last); None traces nothing.
        folder: where the trace goes; of several processes, each has a folder below it.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path):
        several = processes.num_processes() > 1
        self._folder = folder / f"process-{jax.process_index()}" if several else folder
        self._steps = steps
        self._since: int | None = None

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(self, *exc_info) -> None:
        self._stop("an earlier end")

    def dispatch(self, step: int, count: int, state: Any, call: Callable[[Any], Any]) -> Any:
        """`call(state)`, which dispatches `count` steps after `step`; traced if they are due."""
        if self._steps is None or step + count <= self._steps[0]:
            return call(state)
        if self._since is None:
            if step >= self._steps[1]:
                say(f"step {self._steps[1]:,} is past: no trace is written")
                self._steps = None
                return call(state)
            self._start(step, state)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = call(state)
        if self._steps is not None and step + count >= self._steps[1]:
            jax.block_until_ready(result)
            self._stop(f"step {step + count:,}")
        return result

    def _start(self, step: int, state: Any) -> None:
        # Earlier steps may still be running, and would be in the trace.
        jax.block_until_ready(state)
        self._since = step
        try:
            jax.profiler.start_trace(self._folder)
        except (RuntimeError, OSError) as error:
            self._give_up(error)

    def _stop(self, end: str) -> None:
        if self._steps is None or self._since is None:
            return
        try:
            jax.profiler.stop_trace()
            say(f"trace of the steps from {self._since:,} to {end} in {self._folder}")
        except (RuntimeError, OSError) as error:
            self._give_up(error)
        self._steps = None

    def _give_up(self, error: Exception) -> None:
        warnings.warn(f"--devices.profile-steps: no trace is written ({error}).", stacklevel=3)
        self._steps = None
