"""Addresses as paths: what is fetched, pushed and refused, against a fake store."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fsspec.registry import _registry as registered

from ddpm_jax.files import write_json
from ddpm_jax.programs import buckets, evaluate, export, sample
from ddpm_jax.programs.bucket_files import Bucket, BucketError
from ddpm_jax.programs.buckets import (
    UnsentError,
    address_of,
    fetch,
    fetch_run,
    find_address,
    push_outputs,
    shown,
)
from ddpm_jax.programs.classifier import _check_out
from ddpm_jax.programs.config import DataConfig, TrainConfig
from ddpm_jax.programs.config_values import from_json, to_json
from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.outputs import study_folder
from ddpm_jax.programs.paths import local_path, with_local_paths
from ddpm_jax.programs.publish import PullConfig, pull
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.programs.weights import check_weights_folder
from ddpm_jax.training.manifest import write_manifest
from tests.fake_bucket import FakeBucket, control
from tests.fake_bucket import store as store

RUN = "fake://bucket/run"


def fill(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def make_checkpoint(run, step, content="x"):
    """A checkpoint as training leaves it, of one file beside the manifest."""
    folder = run / "checkpoints" / str(step)
    (folder / "d").mkdir(parents=True)
    (folder / "d" / f"array-{step}").write_text(content)
    write_manifest(folder, {"x": ["float32", [1]]}, step)
    return folder


@pytest.mark.parametrize(
    "text,address",
    [
        ("gs://b/k", "gs://b/k"),
        ("gs:/b/k", "gs://b/k"),  # what Path makes of it
        ("s3://b/k/", "s3://b/k"),
        ("az://b/a b/[x]", "az://b/a b/[x]"),
        ("C:/x", None),
        ("a/b://c", None),
        ("a:b", None),
        ("/gs://b", None),
    ],
)
def test_an_address_is_told_from_a_path(text, address):
    assert find_address(text) == address
    assert find_address(Path(text)) == address


@pytest.mark.parametrize(
    "address", ["fake://bucket/run", "fake://bucket/a/@b/run", "fake://bucket"]
)
def test_the_address_of_a_local_path_is_the_one_it_stands_for(store, address):
    path = local_path(address, "run_dir")
    assert address_of(path) == address and address_of(path / "x") == f"{address}/x"
    assert path.is_relative_to(os.environ["DDPM_JAX_CACHE"]) and not path.exists()
    assert address_of(Path("runs/x")) is None and shown(Path("runs/x")) == "runs/x"


def test_config_json_has_addresses_and_not_this_machines_copies(store):
    fill(store / "bucket" / "data", a="1")
    given = TrainConfig(
        Path(RUN),
        1,
        init_from=Path("fake://bucket/old"),
        data=DataConfig(path=Path("fake://bucket/data")),
    )
    local = with_local_paths(given)
    assert (local.data.path / "a").read_text() == "1"
    assert with_local_paths(local) == local
    values = to_json(local)
    assert values["run_dir"] == RUN and values["data"]["path"] == "fake://bucket/data"
    assert values["init_from"] == "fake://bucket/old"
    assert to_json(from_json(TrainConfig, values)) == values


UNKNOWN = {
    "nosuch://bucket/x": "fsspec does not know",
    "http://host/run": "is an address",
    "file:///tmp/run": "is an address",
    "fake://bucket/../other": "names no folder",
    "fake://": "names no folder",
}


@pytest.mark.parametrize("address", UNKNOWN)
@pytest.mark.parametrize("option", ["run_dir", "data.path", "data.cache_dir", "init_from"])
def test_what_is_no_bucket_is_refused_at_once(store, address, option):
    began = time.monotonic()
    with pytest.raises(ValueError, match=UNKNOWN[address]) as refused:
        local_path(address, option)
    assert f"--{option.replace('_', '-')}" in str(refused.value)
    assert time.monotonic() - began < 1 and not FakeBucket.operations


@pytest.mark.parametrize("scheme,extra", [("gs", "gcs"), ("s3", "s3")])
def test_a_missing_extra_is_named_within_a_second(scheme, extra, monkeypatch):
    # As where neither package is installed, whatever is here.
    monkeypatch.delitem(registered, scheme, raising=False)
    monkeypatch.setitem(sys.modules, {"gs": "gcsfs", "s3": "s3fs"}[scheme], None)
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"pip install {extra}fs \(extra \[{extra}\]\)"):
        local_path(f"{scheme}://bucket/run", "run_dir")
    assert time.monotonic() - began < 1


def test_a_cache_is_not_put_into_a_bucket(store):
    with pytest.raises(ValueError, match="caches are local"):
        local_path("fake://bucket/cache", "data.cache_dir")


def test_a_folder_is_fetched_once_and_again_when_it_changes(store):
    data = store / "bucket" / "data"
    fill(data, a="1", deep__er__b="2")
    fill(store / "bucket" / "database", c="3")  # another folder, whose name begins the same
    first = fetch("fake://bucket/data")
    found = {
        p.relative_to(first).as_posix(): p.read_text() for p in first.rglob("*") if p.is_file()
    }
    assert found == {"a": "1", "deep/er/b": "2"} and first.name == "data"
    FakeBucket.operations.clear()
    assert fetch("fake://bucket/data") == first and not FakeBucket.operations
    time.sleep(0.01)
    fill(data, a="9")
    second = fetch("fake://bucket/data")
    assert (second / "a").read_text() == "9" and (first / "a").read_text() == "1"
    (data / "a").unlink()
    assert not (fetch("fake://bucket/data") / "a").exists()


def test_copies_of_earlier_contents_are_removed_after_a_week(store):
    fill(store / "bucket" / "data", a="1")
    first = fetch("fake://bucket/data").parent
    os.utime(first, times=(time.time() - 8 * 86400,) * 2)
    fill(store / "bucket" / "data", a="22")
    fetch("fake://bucket/data")
    assert not first.exists()


def test_a_file_keeps_its_name(store):
    np.savez(store / "bucket" / "set.npz", images=np.zeros((2, 4, 4, 1), np.uint8))
    path = fetch("fake://bucket/set.npz")
    assert path.name == "set.npz" and np.load(path)["images"].shape == (2, 4, 4, 1)


def test_an_interrupted_fetch_leaves_no_copy_and_goes_on(store, monkeypatch):
    fill(store / "bucket" / "data", **{f"f{i:03d}": str(i) for i in range(100)})
    original, count = FakeBucket.get_file, []

    def breaks(self, *arguments, **options):
        count.append(1)
        if len(count) == 80:
            raise ConnectionResetError("the line is dead")
        return original(self, *arguments, **options)

    monkeypatch.setattr(FakeBucket, "get_file", breaks)
    with pytest.raises(BucketError, match="the line is dead"):
        fetch("fake://bucket/data")
    cache = Path(os.environ["DDPM_JAX_CACHE"])
    assert not list(cache.rglob("@*/data"))
    path = fetch("fake://bucket/data")
    assert len(list(path.iterdir())) == 100 and len(count) < 120
    assert all((path / f"f{i:03d}").read_text() == str(i) for i in range(100))
    assert not list(cache.rglob(".*"))


@pytest.mark.parametrize("faults,words", [({"deny": ["read"]}, "Access Denied"), ({}, "no files")])
def test_what_cannot_be_read_is_one_error_and_nothing_is_written(store, faults, words, tmp_path):
    control(store, **faults)
    with pytest.raises(BucketError, match=words) as refused:
        fetch("fake://bucket/data")
    assert "fake://bucket/data" in str(refused.value) and not (tmp_path / "cache").exists()


def test_a_name_that_leaves_the_folder_is_refused(store, monkeypatch):
    key = "bucket/data/../../x"
    listing = {key: {"name": key, "size": 1, "type": "file"}}
    monkeypatch.setattr(FakeBucket, "find", lambda self, path, **options: listing)
    with pytest.raises(BucketError, match="refused"):
        fetch("fake://bucket/data")


def test_no_room_for_a_copy_is_said_before_it_is_fetched(store, monkeypatch):
    fill(store / "bucket" / "data", a="1" * 1000)
    usage = type("Usage", (), {"free": 999})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(BucketError, match="1,000 bytes, and .* room for 999.*DDPM_JAX_CACHE"):
        fetch("fake://bucket/data")
    assert ("get", "bucket/data/a") not in FakeBucket.operations


def test_of_a_run_one_checkpoint_is_fetched(store):
    run = store / "bucket" / "run"
    fill(run, config_json="{}", log="long", generated__x="large")
    for step in (4, 8, 12):
        make_checkpoint(run, step)
    (run / "checkpoints" / "12" / "manifest.json").unlink()  # an upload that is under way
    make_checkpoint(run, 16).rename(run / "checkpoints" / "016")  # no name of a checkpoint
    names = lambda path: sorted(p.name for p in (path / "checkpoints").iterdir())  # noqa: E731
    path = fetch_run(RUN)
    assert names(path) == ["8"] and (path / "config.json").exists() and not (path / "log").exists()
    assert names(fetch_run(RUN, 4)) == ["4"]
    assert names(fetch_run(RUN, all_steps=True)) == ["4", "8"]
    with pytest.raises(BucketError, match=r"no checkpoint of step 12; it has \[4, 8\]"):
        fetch_run(RUN, 12)


def test_a_damaged_newest_checkpoint_is_left_out(store):
    run = store / "bucket" / "run"
    fill(run, config_json="{}")
    make_checkpoint(run, 4)
    (make_checkpoint(run, 8, "good") / "d" / "array-8").write_text("evil")
    with pytest.warns(UserWarning, match="damaged checkpoint in fake://bucket/run"):
        path = fetch_run(RUN)
    assert [p.name for p in (path / "checkpoints").iterdir()] == ["4"]
    (run / "checkpoints" / "4" / "d" / "array-4").unlink()
    with pytest.warns(UserWarning), pytest.raises(BucketError, match="no intact checkpoint"):
        fetch_run(RUN)


def write_out(folder):
    (folder / "images").mkdir(parents=True)
    write_json(folder / "sampling.json", {"count": 1})
    (folder / "images" / "0.png").write_bytes(b"png")
    (folder / ".draft").write_bytes(b"half")


def program(run_dir_or_out, work, monkeypatch, option="out"):
    """Runs `work(path)` as a program with one option; its exit code."""
    from ddpm_jax.programs.sample import SampleConfig

    monkeypatch.setattr(sys, "argv", ["sample", f"--{option}={run_dir_or_out}"])
    try:
        run_program(lambda config: work(getattr(config, option)), SampleConfig(), None)
    except SystemExit as stopped:
        return stopped.code
    return 0


def test_a_program_pushes_what_it_has_written_at_its_end(store, monkeypatch, capsys):
    assert program("fake://bucket/out", write_out, monkeypatch) == 0
    kept = sorted(p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file())
    assert kept == ["bucket/out/images/0.png", "bucket/out/sampling.json"]
    assert [kind for kind, _ in FakeBucket.operations] == ["put", "put"]
    assert FakeBucket.operations[-1][1] == "bucket/out/sampling.json"
    assert "pushed 2 files to fake://bucket/out" in capsys.readouterr().out
    push_outputs()
    assert len(FakeBucket.operations) == 2


def test_what_an_earlier_program_left_is_not_pushed_again(store, monkeypatch):
    program("fake://bucket/out", write_out, monkeypatch)
    place = buckets._place("write", "fake://bucket/out")
    for path in place.rglob("*"):
        os.utime(path, times=(time.time() - 100,) * 2)
    buckets.written.clear()
    FakeBucket.operations.clear()
    program("fake://bucket/out", lambda out: (out / "new").write_text("x"), monkeypatch)
    assert FakeBucket.operations == [("put", "bucket/out/new")]


@pytest.mark.parametrize("seconds", [-7200, 0, 7200])
def test_a_clock_that_is_set_back_hides_no_result(store, monkeypatch, seconds):
    """Nor one of a file system whose clock is another than ours."""

    def write(out):
        write_out(out)
        then = time.time() + seconds
        os.utime(out / "images" / "0.png", times=(then, then))

    assert program("fake://bucket/out", write, monkeypatch) == 0
    assert (store / "bucket" / "out" / "images" / "0.png").exists()


def test_a_single_file_is_pushed_under_its_name(store, monkeypatch):
    def write(out):
        out.parent.mkdir(parents=True)
        out.write_text("program")

    assert program("fake://bucket/exported/model.hlo", write, monkeypatch) == 0
    assert (store / "bucket" / "exported" / "model.hlo").read_text() == "program"


@pytest.mark.parametrize(
    "faults,words",
    [({"deny": ["write"]}, "Access Denied"), ({"quota": 0}, "QuotaExceeded")],
)
def test_results_that_cannot_be_pushed_are_kept_and_the_error_says_where(
    store, monkeypatch, capsys, faults, words
):
    (store / "bucket" / "something").write_text("full")
    control(store, **faults)
    assert program("fake://bucket/out", write_out, monkeypatch) == 75
    error = capsys.readouterr().err
    place = buckets._place("write", "fake://bucket/out")
    assert words in error and str(place) in error and "Traceback" not in error
    assert (place / "images" / "0.png").exists() and not (store / "bucket" / "out").exists()


@pytest.mark.parametrize(
    "check, files, taken",
    [
        (check_weights_folder, {"config_json": "{}"}, True),
        (check_weights_folder, {"checkpoints__8__a": ""}, True),
        (check_weights_folder, {"config_json": '{"weights": {}}'}, False),
        (_check_out, {"config_json": '{"weights": {}}'}, True),
        (_check_out, {"config_json": '{"weights": {}, "classifier": {}}'}, False),
        (sample._refuse_foreign, {"images__000000.png": ""}, True),
        (sample._refuse_foreign, {"samples.npz": "", "sampling_json": "{}"}, False),
        (lambda out: evaluate._refuse_foreign(out, "pixels"), {"pixels.md": ""}, True),
        (lambda out: evaluate._refuse_foreign(out, "pixels"), {"samples.npz": ""}, False),
        (lambda out: export._refuse_foreign(out / "program", default=False), {"program": ""}, True),
        (
            lambda out: export._refuse_foreign(out / "program", default=False),
            {"program_json": "{}"},
            True,
        ),
        (
            lambda out: export._refuse_foreign(out / "program", default=False),
            {"program": "", "program_json": '{"calling_convention": 9}'},
            False,
        ),
        (lambda out: study_folder("inpaint", ["a.npz"], out), {"a.npz": ""}, True),
        (
            lambda out: study_folder("inpaint", ["a.npz"], out),
            {"a.npz": "", "inpaint_json": ""},
            False,
        ),
        (lambda out: pull(PullConfig("ada/tiny", out=out)), {"config_json": "{}"}, True),
    ],
)
def test_results_replace_nothing_else_in_a_bucket(store, check, files, taken):
    """The local folder of an address is empty on another machine."""
    fill(store / "bucket" / "run", **files)
    refused = pytest.raises(RunDirectoryError, match=f"{RUN} (has|is|holds) ")
    with refused if taken else contextlib.nullcontext():
        check(local_path(RUN, "out"))


def test_a_missing_bucket_is_named(store):
    with pytest.raises(BucketError, match="there is no such bucket"):
        Bucket("fake://elsewhere/x").put({"a": store / "bucket" / ".." / ".." / __file__})
    with pytest.raises(UnsentError, match="no such bucket"):
        local_path("fake://elsewhere/x", "out").mkdir(parents=True)
        (local_path("fake://elsewhere/x", "out") / "a").write_text("x")
        push_outputs()


def test_a_conditional_put_succeeds_once(store):
    bucket = Bucket(RUN)
    bucket.create("x", b"1")
    with pytest.raises(FileExistsError):
        bucket.create("x", b"2")
    assert bucket.read("x") == b"1"


def test_fsspec_is_not_imported_before_an_address_is_given():
    code = (
        "import sys, ddpm_jax.programs.config, ddpm_jax.programs.console; "
        "assert 'fsspec' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
