"""The training loop: chunks of steps, hooks between them, and stopping without loss.

The loop neither writes files nor draws pictures: periodic work is done by hooks. Chunks end at
every step at which a hook is due, so that a hook gets the state of exactly its step.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.devices.processes import Agreed
from ddpm_jax.forward.checks import check_function, check_kind, check_whole
from ddpm_jax.training.state import TrainState
from ddpm_jax.types import describe

Metrics = Mapping[str, np.ndarray]


class NonFiniteError(RuntimeError):
    """The loss or a gradient was not finite, or the loss a spike, for too many steps in a row.

    Attributes:
        step: the last of these steps.
        metric: "loss", "grad_norm" or "update", the first that was not finite there; or "spike".
        recent: the metrics of the last steps, at most 100.
    """

    REMEDY = (
        "None of them changed the parameters; the last checkpoint is good. Lower the learning "
        "rate, look at the data, or compute in float32 (--network.dtype float32)."
    )

    def __init__(
        self,
        step: int,
        metric: str,
        count: int,
        recent: list[dict[str, float]],
        remedy: str = REMEDY,
    ):
        what = "the loss was a spike" if metric == "spike" else f"{metric} was not finite"
        super().__init__(f"{what} at step {step} (bad steps in a row: {count}). {remedy}")
        self.step, self.metric, self.recent = step, metric, recent


class Hook(NamedTuple):
    """Calls `call(state, step)` after every `every` steps; never if 0."""

    every: int
    call: Callable[[TrainState, int], None]


class StopAtOnce(BaseException):
    """Raised by a signal inside `StopRequest.at_once`.

    Not a KeyboardInterrupt: after one has passed through a library that runs Python code from C,
    Python exits as if killed by SIGINT, even if it was caught.
    """


_INSISTENT = (signal.SIGINT, signal.SIGTERM)
_WARNINGS = tuple(getattr(signal, n) for n in ("SIGHUP", "SIGUSR1") if hasattr(signal, n))


class StopRequest:
    """A flag set by the first signal of those that ask a program to end.

    SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal is gone) and SIGUSR1 (SLURM's warning before its
    time limit). A second SIGINT or SIGTERM raises KeyboardInterrupt; a SIGTERM that follows SIGHUP
    or SIGUSR1, as it does under SLURM, does not. SIGHUP and SIGUSR1 stay ignored where they are
    (`nohup`).

    A context manager that restores the previous handlers. Only the main thread can catch signals;
    in other threads the flag is never set.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._insistent = 0
        self._old: dict[signal.Signals, Any] = {}
        self._at_once = False
        self._agreed: Agreed | None = None

    def share(self) -> None:
        """From now on a stop of one process stops all; all must then read it equally often."""
        self._agreed = Agreed(lambda: self.signal is not None)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (*_INSISTENT, *_WARNINGS):
                if number in _WARNINGS and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._old[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._old.items():
            # One that was not installed from Python is None.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _catch(self, number, frame) -> None:
        self._insistent += number in _INSISTENT
        self.signal = self.signal or signal.Signals(number)
        if self._at_once:
            raise StopAtOnce
        if number in _INSISTENT and self._insistent > 1:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this block a signal raises StopAtOnce, as there is nothing to save yet."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def __call__(self) -> bool:
        """Whether a stop was requested, in any process once shared."""
        return self.signal is not None if self._agreed is None else self._agreed()


def next_boundary(step: int, num_steps: int, max_chunk: int, periods: Sequence[int]) -> int:
    """The step at which the chunk that starts at `step` ends.

    At most max_chunk later, and no later than num_steps and the next multiple of any period > 0.
    """
    ends = [num_steps, step + max_chunk, *((step // p + 1) * p for p in periods if p > 0)]
    return int(min(ends))


def train_loop(
    state: TrainState,
    run_chunk: Callable[[TrainState, int, int], tuple[TrainState, Any]],
    *,
    num_steps: int,
    max_chunk: int = 1,
    hooks: Sequence[Hook] = (),
    on_metrics: Callable[[int, Metrics], None] = lambda first, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
    max_bad_steps: int = 20,
) -> TrainState:
    """Trains from `state.step` to `num_steps`, or until stopped, and returns the last state.

    Args:
        state: the state to start from, on its devices.
        run_chunk: `(state, first_step, count) -> (state, metrics [>= count])`, dispatched
            asynchronously.
        num_steps: the step to reach.
        max_chunk: the largest number of steps per dispatch.
        hooks: called in order after the steps at which they are due.
        on_metrics: called with `(first_step, metrics [count])` on the host, one chunk late so that
            the device never waits.
        should_stop: called before each chunk.
        max_bad_steps: the number of successive bad steps, not finite or a spike, that raises
            NonFiniteError.
    """
    call = "train_loop"
    check_kind(call, "state", state, TrainState, "training.init_state")
    check_function(call, "run_chunk", run_chunk, "(state, first_step, count) -> (state, metrics)")
    check_function(call, "on_metrics", on_metrics, "(first_step, metrics)")
    check_function(call, "should_stop", should_stop, "() -> bool")
    num_steps = check_whole(call, "num_steps", num_steps, least=0)
    max_chunk = check_whole(call, "max_chunk", max_chunk)
    check_whole(call, "max_bad_steps", max_bad_steps)
    if isinstance(hooks, Hook) or not isinstance(hooks, Sequence):
        raise TypeError(f"{call} needs hooks, a list of Hook, got {describe(hooks)}.")
    for hook in hooks:
        check_kind(call, "hooks", hook, Hook, "training.Hook(every, call)")
        check_whole(call, "every of a hook", hook.every, least=0)
        check_function(call, "call of a hook", hook.call, "(state, step)")
    step = int(state.step)
    bad_steps, recent = 0, []
    pending: tuple[int, int, Any] | None = None

    def report() -> None:
        nonlocal pending, bad_steps, recent
        if pending is None:
            return
        first, count, device_metrics = pending
        pending = None
        metrics = {k: np.asarray(v)[:count] for k, v in jax.device_get(device_metrics).items()}
        on_metrics(first, metrics)
        for i in range(count):
            row = {"step": first + i + 1, **{k: float(v[i]) for k, v in metrics.items()}}
            recent = [*recent[-99:], row]
            spike = bool(row.get("spike"))
            bad_steps = 0 if row["finite"] and not spike else bad_steps + 1
            if bad_steps >= max_bad_steps:
                bad = [name for name in ("loss", "grad_norm") if not np.isfinite(row[name])]
                metric = bad[0] if bad else "spike" if spike else "update"
                raise NonFiniteError(first + i + 1, metric, bad_steps, recent)

    while step < num_steps and not should_stop():
        end = next_boundary(step, num_steps, max_chunk, [hook.every for hook in hooks])
        state, metrics = run_chunk(state, step, end - step)
        report()
        pending = (step, end - step, metrics)
        step = end
        due = [hook for hook in hooks if hook.every > 0 and step % hook.every == 0]
        if due:
            report()
            for hook in due:
                hook.call(state, step)
    report()
    return state
