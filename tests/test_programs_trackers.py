"""Records that leave the run's folder: to a function of the caller's, and to experiment trackers.

The trackers themselves are tested in their offline modes where they are installed.
"""

import dataclasses
import importlib.util
import json
import signal

import pytest

from ddpm_jax.programs import trackers
from ddpm_jax.programs.config import DevicesConfig, ReportConfig, check_config
from ddpm_jax.programs.trackers import check_tracker, recording
from ddpm_jax.programs.train import train
from ddpm_jax.training.logs import read_jsonl
from tests.small_run import CONFIG

REPORT = ReportConfig(
    log_every=1, heldout_every=2, heldout_draws=8, sample_every=0, checkpoint_every=2, final_count=2
)


def config_of(folder, num_steps=4, **report):
    devices = DevicesConfig(count=1, profile_steps="2:3")
    report = dataclasses.replace(REPORT, **report)
    return dataclasses.replace(
        CONFIG, run_dir=folder / "run", num_steps=num_steps, report=report, devices=devices
    )


def is_installed(name):
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


@pytest.mark.slow
def test_a_function_gets_every_record_and_may_stop_the_run_or_fail(tmp_path):
    """And the trace of one of the steps lies in the run's folder."""
    config, seen = config_of(tmp_path, num_steps=5), []

    def on_record(kind, step, values):
        seen.append({"kind": kind, "step": step, **values})
        if (kind, step) == ("train", 3):
            signal.raise_signal(signal.SIGINT)
        if (kind, step) == ("heldout", 2):
            raise RuntimeError("the dashboard is down")

    with pytest.warns(UserWarning, match="on_record failed at step 2 .*the dashboard is down"):
        result = train(config, on_record=on_record)
    # Records come one step late: step 4 was on its way, and its held-out loss was left for later.
    assert result is not None and (result.step, result.pictures) == (4, ())
    log = read_jsonl(config.run_dir / "log.jsonl")
    assert seen == log and [r["kind"] for r in log] == [
        *("train", "train", "heldout", "train", "train")
    ]
    resumed = []
    train(config, on_record=lambda *record: resumed.append(record[:2]))
    assert resumed == [("heldout", 4), ("train", 5)]
    traces = [*config.run_dir.glob("profile/plugins/profile/*/*.xplane.pb")]
    assert len(traces) == 1 and b"step_num" in traces[0].read_bytes()


def test_each_failing_receiver_warns_once_and_the_log_is_whole(tmp_path, monkeypatch):
    def broken(config, root, known):
        def write(*record):
            raise OSError("no route to host")

        return trackers.Tracker("id", write, write)

    monkeypatch.setitem(trackers._OPENERS, "wandb", broken)
    with pytest.warns(UserWarning) as warned:
        with recording(tmp_path, 0, config={}, tracker="wandb") as log:
            for step in range(1, 6):
                log.write("train", step, loss=0.5)
    assert [str(w.message).partition(" (")[0] for w in warned] == [
        "--report.tracker wandb failed at step 1",
        "--report.tracker wandb failed at its end",
    ]
    assert [record["step"] for record in read_jsonl(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 5]


def test_a_receiver_cannot_change_what_the_others_get(tmp_path):
    with recording(tmp_path, 0, config={}, on_record=lambda k, s, values: values.clear()) as log:
        log.write("train", 1, loss=0.5)
    assert read_jsonl(tmp_path / "log.jsonl") == [{"kind": "train", "step": 1, "loss": 0.5}]


def test_a_tracker_learns_whether_the_run_failed_and_is_continued(tmp_path, monkeypatch):
    calls = []

    def opener(config, root, known):
        calls.append((config, root, known))
        return trackers.Tracker("abc", lambda *record: None, calls.append)

    monkeypatch.setitem(trackers._OPENERS, "wandb", opener)
    with pytest.raises(KeyError), recording(tmp_path, 0, config={"a": 1}, tracker="wandb"):
        raise KeyError
    with recording(tmp_path, 0, config={"a": 1}, tracker="wandb"):
        pass
    expected = [({"a": 1}, tmp_path, None), False, ({"a": 1}, tmp_path, "abc"), True]
    assert calls == expected


def test_a_tracker_that_does_not_start_is_one_error(tmp_path, monkeypatch):
    def opener(config, root, known):
        raise PermissionError("no API key")

    monkeypatch.setitem(trackers._OPENERS, "wandb", opener)
    with pytest.raises(ValueError, match="wandb could not be started .*no API key.* offline"):
        with recording(tmp_path, 0, config={}, tracker="wandb"):
            pass
    assert not (tmp_path / "tracker.json").exists()


def test_unknown_and_missing_trackers_are_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="knows none, wandb, mlflow, trackio.*mean wandb"):
        check_config(config_of(tmp_path, tracker="wandbb"))
    check_tracker("none")
    # A folder that wandb made in the current one looks like a package without files.
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(importlib.import_module("sys").modules, "wandb", raising=False)
    with pytest.raises(ValueError, match=r"pip install wandb \(extra \[wandb\]\)"):
        check_config(config_of(tmp_path, tracker="wandb"))


@pytest.mark.parametrize(
    "text", ["", "5", "5:", "3:3", "4:3", "-1:2", "0:5", "a:b", "0:1:2", "1 :2"]
)
def test_ranges_to_trace_that_the_run_does_not_have_are_refused(text, tmp_path):
    devices = DevicesConfig(profile_steps=text)
    with pytest.raises(ValueError, match="--devices.profile-steps needs FIRST:LAST"):
        check_config(dataclasses.replace(config_of(tmp_path), devices=devices))


def records(tmp_path, tracker, first, last):
    """Writes one record per step to a tracker, as a run that starts at `first` does."""
    with recording(
        tmp_path / "run", first, config={"seed": 3, "betas": [0.9, 0.99]}, tracker=tracker
    ) as log:
        for step in range(first + 1, last + 1):
            log.write("train", step, loss=1.0 / step, grad_norm=float("inf") if step == 2 else 2.0)
            if step % 2 == 0:
                log.write("heldout", step, loss=2.0 / step)


needs = {
    name: pytest.mark.skipif(not is_installed(name), reason=f"{name} is not installed")
    for name in ("wandb", "mlflow", "trackio")
}


@needs["mlflow"]
def test_mlflow_keeps_every_record_of_a_resumed_run(tmp_path, monkeypatch):
    # Making the tables of its default, an SQLite file, takes longer than the rest of this file.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "run").mkdir()
    records(tmp_path, "mlflow", 0, 3)
    records(tmp_path, "mlflow", 2, 5)
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("ddpm_jax").experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "run/tracker.json").read_text())["mlflow"]
    assert (run.info.status, run.data.params["seed"]) == ("FINISHED", "3")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted({(m.step, m.value) for m in history}) == [(s, 1 / s) for s in range(1, 6)]
    assert run.data.metrics["heldout/loss"] == 0.5


@needs["trackio"]
def test_trackio_keeps_every_record_of_a_resumed_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    (tmp_path / "run").mkdir()
    records(tmp_path, "trackio", 0, 3)
    records(tmp_path, "trackio", 2, 5)
    from trackio.sqlite_storage import SQLiteStorage

    name = json.loads((tmp_path / "run/tracker.json").read_text())["trackio"]
    rows = SQLiteStorage.get_logs("ddpm_jax", name)
    found = {(row["step"], row["train/loss"]) for row in rows if "train/loss" in row}
    assert found == {(s, 1 / s) for s in range(1, 6)}
    found = {(row["step"], row["heldout/loss"]) for row in rows if "heldout/loss" in row}
    assert found == {(2, 1.0), (4, 0.5)}


def wandb_records(content):
    """The records of a .wandb file: LevelDB's log format, blocks of 32 KiB after a header."""
    at, record = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@needs["wandb"]
def test_wandb_keeps_every_record_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "run").mkdir()
    records(tmp_path, "wandb", 0, 3)
    from wandb.proto import wandb_internal_pb2

    (path,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    rows = []
    for content in wandb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        items = record.history.item
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
        rows += [row] if row else []
    known = json.loads((tmp_path / "run/tracker.json").read_text())["wandb"]
    assert path.name == f"run-{known}.wandb"
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    heldout = [(row["step"], row["heldout/loss"]) for row in rows if "heldout/loss" in row]
    assert heldout == [(2, 1.0)]
