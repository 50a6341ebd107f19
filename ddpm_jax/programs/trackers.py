"""Where the records of a run go besides its folder: a function of yours, and experiment trackers.

A tracker is configured by its own environment variables (WANDB_MODE, MLFLOW_TRACKING_URI,
TRACKIO_SPACE_ID, …). A resumed run continues the tracker's run, whose id is in `tracker.json`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ddpm_jax.devices import processes
from ddpm_jax.files import read_json_object, write_json

if TYPE_CHECKING:
    from ddpm_jax.training.logs import NoLog, RunLog

OnRecord = Callable[[str, int, Mapping[str, float]], object]
"""`on_record(kind, step, values)`: called with every record of log.jsonl as it is written."""

PROJECT = "ddpm_jax"


class Tracker(NamedTuple):
    """A tracker's run: its id, the function that takes records, and `finish(succeeded)`."""

    id: str
    write: OnRecord
    finish: Callable[[bool], object]


def check_tracker(name: str) -> None:
    """Raises ValueError for a tracker that is unknown or not installed."""
    if name == "none":
        return
    if name not in _OPENERS:
        near = difflib.get_close_matches(name, _OPENERS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"--report.tracker knows none, {', '.join(_OPENERS)}, got {name!r}.{meant}"
        )
    spec = importlib.util.find_spec(name)
    # wandb/ in the current folder, which wandb itself makes, looks like a package without a file.
    if processes.is_leader() and (spec is None or spec.origin is None):
        raise ValueError(
            f"--report.tracker {name} needs a package that is not installed: pip install {name} "
            f"(extra [{name}])."
        )


@contextlib.contextmanager
def recording(
    root: Path,
    start: int,
    *,
    config: dict[str, Any],
    tracker: str = "none",
    on_record: OnRecord | None = None,
) -> Iterator[RunLog | NoLog]:
    """The log of a run from step `start` on, whose records also go to a tracker and `on_record`.

    An Exception that one of these raises does not end the run: a warning names the first of each.
    Process 0 alone writes. Raises ValueError if the tracker cannot be started.
    """
    # Here, as the configuration imports this module and need not wait for Orbax.
    from ddpm_jax.training.logs import NoLog, RunLog

    opened: list[Tracker] = []

    def begin() -> None:
        if tracker != "none":
            opened.append(_open(tracker, config, root))

    processes.on_leader(begin)
    if not processes.is_leader():
        yield NoLog()
        return
    calls = [] if on_record is None else [_guarded(on_record, "on_record")]
    calls += [_guarded(run.write, f"--report.tracker {tracker}") for run in opened]

    def to_all(kind: str, step: int, values: Mapping[str, float]) -> None:
        for call in calls:
            call(kind, step, dict(values))

    succeeded = False
    try:
        with RunLog(root, start, to_all) as log:
            yield log
        succeeded = True
    finally:
        for run in opened:
            try:
                run.finish(succeeded)
            except Exception as error:  # noqa: BLE001 - whatever a tracker raises
                _warn(f"--report.tracker {tracker}", "at its end", error)


def _open(name: str, config: dict[str, Any], root: Path) -> Tracker:
    """Starts or continues the tracker's run of this folder."""
    path = root / "tracker.json"
    known = read_json_object(path) if path.exists() else {}
    try:
        opened = _OPENERS[name](config, root, known.get(name))
    except Exception as error:
        raise ValueError(
            f"--report.tracker {name} could not be started ({type(error).__name__}: {error}). Log "
            "in to it, choose its offline mode, or leave the tracker out."
        ) from error
    write_json(path, {**known, name: opened.id})
    return opened


def _guarded(call: OnRecord, name: str) -> OnRecord:
    failed = False

    def guarded(kind: str, step: int, values: Mapping[str, float]) -> None:
        nonlocal failed
        try:
            call(kind, step, values)
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises
            if not failed:
                _warn(name, f"at step {step}", error)
            failed = True

    return guarded


def _warn(name: str, when: str, error: Exception) -> None:
    warnings.warn(
        f"{name} failed {when} ({type(error).__name__}: {error}). The run goes on; further "
        "failures are not reported, and log.jsonl has every record.",
        stacklevel=3,
    )


def _named(kind: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{kind}/{name}": value for name, value in values.items()}


def _wandb(config: dict[str, Any], root: Path, known: str | None) -> Tracker:
    import wandb  # type: ignore

    project = os.environ.get("WANDB_PROJECT", PROJECT)
    chosen = known or uuid.uuid4().hex[:8]
    run = wandb.init(
        project=project, name=root.name, id=chosen, resume="allow", dir=str(root), config=config
    )
    # wandb's own step only grows; a resumed run writes some steps again.
    run.define_metric("*", step_metric="step")
    return Tracker(
        run.id,
        lambda kind, step, values: run.log({**_named(kind, values), "step": step}),
        lambda succeeded: run.finish(exit_code=0 if succeeded else 1),
    )


def _mlflow(config: dict[str, Any], root: Path, known: str | None) -> Tracker:
    # The client rather than mlflow.start_run, whose active run belongs to the caller.
    from mlflow.entities import Metric, Param  # type: ignore
    from mlflow.tracking import MlflowClient  # type: ignore

    client = MlflowClient()
    if known is None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = client.get_experiment_by_name(name)
        experiment_id = client.create_experiment(name) if experiment is None else None
        experiment_id = experiment_id or getattr(experiment, "experiment_id", "0")
        known = client.create_run(experiment_id, run_name=root.name).info.run_id
        params = [Param(field, str(value)[:500]) for field, value in config.items()]
        for first in range(0, len(params), 100):  # the most that one call may have
            client.log_batch(known, params=params[first : first + 100])
    else:
        client.update_run(known, status="RUNNING")

    def write(kind: str, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in _named(kind, values).items()]
        client.log_batch(known, metrics)

    def finish(succeeded: bool) -> None:
        client.set_terminated(known, "FINISHED" if succeeded else "FAILED")

    return Tracker(str(known), write, finish)


def _trackio(config: dict[str, Any], root: Path, known: str | None) -> Tracker:
    import trackio  # type: ignore

    name = known or f"{root.name}-{uuid.uuid4().hex[:8]}"
    run = trackio.init(PROJECT, name=name, resume="allow", config=config, embed=False)
    return Tracker(
        name,
        lambda kind, step, values: run.log(_named(kind, values), step=step),
        lambda succeeded: run.finish(),
    )


_OPENERS = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
