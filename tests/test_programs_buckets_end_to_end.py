"""Whole programs whose runs, data and outputs are in a bucket."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.training.manifest import verify_manifest
from tests.fake_bucket import FakeBucket, control
from tests.fake_bucket import store as store
from tests.small_run import ROOT, make_run, program

pytestmark = pytest.mark.slow
TINY = [
    "--num-steps=2",
    "--data.name=digits",
    "--data.augment=none",
    "--devices.count=1",
    "--batch-size=8",
    "--network.channels=8",
    "--network.channel-multipliers",
    "1",
    "--network.num-res-blocks=1",
    "--network.attention-resolutions",
    "--network.num-groups=4",
    "--network.class-conditional",
    "--diffusion.schedule=linear",
    "--diffusion.num-timesteps=20",
    "--diffusion.beta-end=0.4",
    "--optimizer.warmup-steps=1",
    "--report.heldout-every=0",
    "--report.sample-every=0",
    "--report.final-count=4",
]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("local") / "run")


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_run_in_a_bucket_is_sampled_as_a_local_one(local, store, tmp_path):
    shutil.copytree(local, store / "bucket" / "run", ignore=lambda *_: [".lock"])
    options = ["--count=3", "--sampler=ddim", "--num-steps=2", "--no-gif"]
    program("sample.py", f"--run-dir={local}", f"--out={tmp_path / 'out'}", *options)
    before = names(store / "bucket" / "run")
    program("sample.py", "--run-dir=fake://bucket/run", *options)
    new = set(names(store / "bucket" / "run")) - set(before)
    (folder,) = (store / "bucket" / "run" / "generated").iterdir()
    assert new == {
        f"generated/{folder.name}/{n}" for n in ("grid.png", "samples.npz", "sampling.json")
    }
    ours, theirs = np.load(folder / "samples.npz"), np.load(tmp_path / "out" / "samples.npz")
    np.testing.assert_array_equal(ours["images"], theirs["images"])
    assert json.loads((folder / "sampling.json").read_text())["run"] == "fake://bucket/run"
    run = dj.load_run("fake://bucket/run")
    np.testing.assert_array_equal(
        run.sample(3, sampler="ddim", num_steps=2),
        dj.load_run(local).sample(3, sampler="ddim", num_steps=2),
    )
    with pytest.raises(RunDirectoryError, match="no-run"):
        (store / "bucket" / "no-run").mkdir()
        (store / "bucket" / "no-run" / "x").write_text("x")
        dj.load_run("fake://bucket/no-run")


def test_training_from_data_and_weights_in_a_bucket(local, store):
    shutil.copytree(local, store / "bucket" / "old", ignore=lambda *_: [".lock"])
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(40) % 10
    np.savez(store / "bucket" / "set.npz", images=images, labels=labels)
    program(
        "train_mnist.py",
        "--run-dir=fake://bucket/new",
        "--init-from=fake://bucket/old",
        *TINY,
        "--data.name=arrays",
        "--data.path=fake://bucket/set.npz",
    )
    new = store / "bucket" / "new"
    values = json.loads((new / "config.json").read_text())
    assert values["config"]["data"]["path"] == "fake://bucket/set.npz"
    assert values["initial_weights"]["from"] == "fake://bucket/old"
    assert {"samples.png", "loss.png", "log.jsonl", "checkpoints/2/manifest.json"} <= set(
        names(new)
    )
    run = dj.load_run("fake://bucket/new")
    assert run.step == 2
    with pytest.raises(RunDirectoryError, match=r"Name them: --data-path fake://bucket/set\.npz"):
        _ = run.train_data
    given = dj.load_run("fake://bucket/new", data_path="fake://bucket/set.npz")
    assert len(given.train_data.images) + len(given.heldout_data.images) == 40


@pytest.mark.parametrize(
    "faults,words", [({"deny": ["write"]}, "Access Denied"), ({"quota": 0}, "Quota")]
)
def test_a_bucket_that_takes_nothing_ends_training_at_its_start(store, capsys, faults, words):
    (store / "bucket" / "something").write_text("full")
    control(store, **faults)
    with pytest.raises(SystemExit) as stopped:
        program("train_mnist.py", "--run-dir=fake://bucket/run", *TINY)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error and "fake://bucket/run" in error
    assert "Traceback" not in error and names(store / "bucket") == ["something"]
    assert not [key for kind, key in FakeBucket.operations if kind == "put"]


def two_processes(caches):
    """Two processes that train one run in the bucket: exit codes, and what they printed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    script = str(ROOT / "experiments" / "train_mnist.py")
    command = [sys.executable, "-m", "tests.faults.driver", '{"bucket": 5.0}', script]
    command += ["--run-dir=fake://bucket/two", *TINY]
    command += [f"--distributed.coordinator=127.0.0.1:{port}", "--distributed.num-processes=2"]
    started = [
        subprocess.Popen(
            [*command, f"--distributed.process-id={i}"],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "DDPM_JAX_CACHE": str(cache)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i, cache in enumerate(caches)
    ]
    try:
        printed = [process.communicate(timeout=400)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], printed


def test_processes_that_share_the_local_folder_keep_one_run(store, tmp_path):
    codes, printed = two_processes([tmp_path / "cache"] * 2)
    assert codes == [0, 0], printed
    checkpoint = store / "bucket" / "two" / "checkpoints" / "2"
    verify_manifest(checkpoint)
    assert {"ocdbt.process_0", "ocdbt.process_1"} <= {p.name for p in checkpoint.iterdir()}
    assert "everything up to step 2" in printed[0]


def test_processes_that_do_not_are_refused(store, tmp_path):
    codes, printed = two_processes([tmp_path / "cache", tmp_path / "other"])
    assert codes == [2, 2], printed
    assert "does not share the folder" in printed[1] and "DDPM_JAX_CACHE" in printed[1]
    assert names(store / "bucket") == ["two/.lock/00000001.json"]
