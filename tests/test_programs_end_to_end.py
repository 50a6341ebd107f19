"""Whole programs in subprocesses: interrupted runs equal uninterrupted ones, bad input loses
nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.programs.run_directory import RunDirectory
from tests.small_run import program

ROOT = Path(__file__).resolve().parents[1]
STEPS = 24
TINY = [
    f"--num-steps={STEPS}",
    "--batch-size=8",
    "--network.channels=8",
    "--network.channel-multipliers=1",
    "--network.attention-resolutions=8",
    "--network.num-groups=4",
    "--network.dropout=0.1",
    "--data.augment=flip",
    "--diffusion.num-timesteps=20",
    "--optimizer.warmup-steps=5",
    "--report.log-every=1",
    "--report.heldout-every=8",
    "--report.heldout-draws=64",
    "--report.sample-every=12",
    "--report.sample-count=4",
    "--report.sample-steps=5",
    "--report.checkpoint-every=8",
    "--report.final-count=36",
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    """The programs compile the same functions over and over: let them share what they compiled."""
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("xla")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield


def command(script, *arguments):
    return [sys.executable, str(ROOT / "experiments" / script), *map(str, arguments)]


def run(script, *arguments, check=True, **env):
    result = subprocess.run(
        command(script, *arguments), capture_output=True, text=True, env={**os.environ, **env}
    )
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


def arrays(folder, step=STEPS):
    """Every array of a checkpoint, read by Orbax alone."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore((folder / "checkpoints" / str(step)).absolute())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def losses(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [(r["kind"], r["step"], r["loss"]) for r in map(json.loads, lines)]


@pytest.fixture(scope="module")
def whole(compilation_cache, tmp_path_factory):
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    result = run("train_digits.py", f"--run-dir={folder}", *TINY)
    return folder, result


def test_a_run_leaves_what_it_says(whole):
    folder, result = whole
    for name in ("samples.png", "denoising.gif", "loss.png", f"checkpoints/{STEPS}"):
        assert str(folder / name) in result.stdout and (folder / name).exists()
    for words in ("parameters", "FLOP per step", "held-out digits", "fitted Gaussian", "L_simple"):
        assert words in result.stdout
    assert sorted(p.name for p in (folder / "samples").iterdir()) == [
        "step_0000012.png",
        "step_0000024.png",
    ]
    assert Image.open(folder / "samples.png").size[0] > 100
    assert getattr(Image.open(folder / "denoising.gif"), "n_frames", 1) > 5
    records = losses(folder)
    assert [s for kind, s, _ in records if kind == "train"] == list(range(1, STEPS + 1))
    assert [s for kind, s, _ in records if kind == "heldout"] == [8, 16, 24]
    report = json.loads((folder / "report.json").read_text())
    floor = report["rows"]["held-out digits"]
    assert floor["share_confident"] > 0.9
    assert floor["frechet_pixels"] < report["rows"]["fitted Gaussian"]["frechet_pixels"]


def test_a_damaged_log_of_a_finished_run_is_refused_before_anything_is_drawn(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    (folder / "log.jsonl").write_text("no record\n" + (folder / "log.jsonl").read_text())
    (folder / "samples.png").unlink()
    result = run("train_digits.py", f"--run-dir={folder}", *TINY, check=False)
    assert result.returncode == 2 and "log.jsonl, line 1" in result.stdout + result.stderr
    assert not (folder / "samples.png").exists()


def wait_for_step(folder, step, process, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        log = folder / "log.jsonl"
        if log.exists() and log.read_text().count('"train"') >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"the run did not reach step {step}: exit {process.poll()}")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_and_resumed_equals_uninterrupted(whole, tmp_path, how):
    folder = tmp_path / "run"
    arguments = command("train_digits.py", f"--run-dir={folder}", *TINY)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        wait_for_step(folder, 11, process)
        process.send_signal(how)
        output = process.communicate(timeout=60)[0].decode()
    if how is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 0, output
        assert how.name in output and "same command" in output
    result = run("train_digits.py", f"--run-dir={folder}", *TINY)
    # After SIGKILL the checkpoint of step 8 may have been on its way: then all is done again.
    if process.returncode == 0:
        assert "resuming" in result.stdout or "done already" in result.stdout
    for a, b in zip(arrays(folder), arrays(whole[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert losses(folder) == losses(whole[0])


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    first = RunDirectory(tmp_path)
    first.acquire()
    second = run("train_digits.py", f"--run-dir={tmp_path}", *TINY, check=False)
    first.release()
    assert second.returncode == 2
    assert f"in use by process {os.getpid()}" in second.stderr
    assert "Traceback" not in second.stderr and os.listdir(tmp_path) == [".lock"]


def test_a_changed_config_is_refused(whole):
    folder, _ = whole
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.name != ".lock")
    result = run("train_digits.py", f"--run-dir={folder}", *TINY, "--seed=7", check=False)
    assert result.returncode == 2
    assert "--seed: 0 → 7" in result.stderr and "Traceback" not in result.stderr
    after = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.name != ".lock")
    assert before == after


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--batch-size=0"], "batch_size"),
        (["--num-steps=0"], "--num-steps"),
        (["--devices.count=99"], "number of devices"),
        (["--network.channels=10"], "num_groups"),
        (["--network.attention-resolutions=16"], "attention_resolutions"),
        (["--diffusion.schedule=linear", "--diffusion.beta-start=0.7"], "beta_start"),
        (["--optimizer.learning-rate=-1"], "peak"),
        (["--data.name=folder"], "--data.name folder"),
        (["--report.final-count=0"], "--report.final-count"),
        (["--report.final-steps=21"], "num_steps"),
        (["--report.sample-steps=8", "--report.spacing=uniform"], "whole stride"),
        (["--optimizer.ema-decay=1"], "--optimizer.ema-decay"),
        (["--devices.resident-gib=nan"], "--devices.resident-gib"),
        (["--network.num-groups=8"], "--network.num-groups"),
        (["--diffusion.variance=learned"], "--diffusion.loss"),
        (["--diffusion.loss=hybrid"], "learned_range"),
        (["--diffusion.loss=bound", "--diffusion.weighting=p2"], "--diffusion.weighting"),
        (["--diffusion.zero-terminal-snr"], "zero-terminal-snr"),
        (
            ["--diffusion.zero-terminal-snr", "--diffusion.target=v", "--diffusion.exploding"],
            "exploding",
        ),
        (["--report.guidance=2"], "class-conditional"),
        (["--diffusion.label-dropout=1"], "--diffusion.label-dropout"),
        (["--devices.parameter-shards=3"], "--devices.parameter-shards"),
        (["--devices.parameter-shards=2", "--devices.backend=pmap"], "shard_map"),
        (["--devices.microbatches=3"], "microbatches"),
        (["--devices.microbatches=0"], "--devices.microbatches"),
        (["--optimizer.spike-factor=1"], "--optimizer.spike-factor"),
        (["--distributed.process-id=0"], "together"),
    ],
)
def test_wrong_values_get_one_clear_error(tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        program("train_digits.py", f"--run-dir={tmp_path / 'run'}", *TINY, *arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_missing_extra_is_one_clear_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SystemExit) as stopped:
        program("train_folder.py", f"--run-dir={tmp_path / 'run'}", "--data.name=hf:photos")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "(extra [hf])" in error and "Traceback" not in error


def test_a_diverging_run_ends_with_a_dump(tmp_path, capsys):
    changes = ["--optimizer.learning-rate=1e30", "--optimizer.clip-norm=1e30", "--max-bad-steps=4"]
    with pytest.raises(SystemExit) as stopped:
        program("train_digits.py", f"--run-dir={tmp_path}", *TINY, "--devices.count=1", *changes)
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert "not finite at step" in error and "Traceback" not in error
    (dump,) = tmp_path.glob("nonfinite_step_*.json")
    values = json.loads(dump.read_text())
    assert values["metric"] in ("loss", "grad_norm", "update") and len(values["examples"]) == 8


def test_a_run_goes_on_with_another_number_of_devices(whole, tmp_path):
    folder = tmp_path / "run"
    arguments = command("train_digits.py", f"--run-dir={folder}", *TINY)
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_for_step(folder, 11, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    many = ["--devices.backend=pmap", "--devices.count=2"]
    run("train_digits.py", f"--run-dir={folder}", *TINY, *many, JAX_NUM_CPU_DEVICES="2")
    for (kind, step, loss), (_, _, expected) in zip(losses(folder), losses(whole[0]), strict=True):
        np.testing.assert_allclose(loss, expected, rtol=1e-3, err_msg=f"{kind} {step}")


def test_streamed_data_on_two_devices_in_chunks_give_the_same_run(whole, tmp_path):
    other = ["--devices.resident-gib=0", "--devices.steps-per-dispatch=5", "--devices.count=2"]
    program("train_digits.py", f"--run-dir={tmp_path}", *TINY, *other)
    for (kind, step, loss), (_, _, expected) in zip(
        losses(tmp_path), losses(whole[0]), strict=True
    ):
        np.testing.assert_allclose(loss, expected, rtol=1e-3, err_msg=f"{kind} {step}")


def generated(folder):
    return np.load(folder / "samples.npz", allow_pickle=False)["images"]


def test_sampling_needs_only_the_folder_and_does_not_depend_on_batches(whole, tmp_path):
    folder, _ = whole
    one, other = tmp_path / "one", tmp_path / "other"
    common = [f"--run-dir={folder}", "--count=10", "--seed=5", "--sampler=ddim", "--num-steps=7"]
    result = run("sample.py", *common, f"--out={one}", "--batch-size=10")
    program("sample.py", *common, f"--out={other}", "--batch-size=4", "--num-devices=4")
    a, b = generated(one).astype(int), generated(other).astype(int)
    assert a.shape == (10, 8, 8, 1) and np.abs(a - b).max() <= 1
    assert (one / "grid.png").exists() and (one / "denoising.gif").exists()
    assert str(one / "grid.png") in result.stdout
    assert json.loads((one / "sampling.json").read_text())["checkpoint_step"] == STEPS


def test_sampling_writes_single_files_on_request(whole, tmp_path):
    program(
        "sample.py",
        f"--run-dir={whole[0]}",
        f"--out={tmp_path}",
        "--count=3",
        "--num-steps=5",
        "--format=both",
        "--no-gif",
    )
    images = [np.asarray(Image.open(p)) for p in sorted((tmp_path / "images").iterdir())]
    np.testing.assert_array_equal(np.stack(images)[..., None], generated(tmp_path))
    assert not (tmp_path / "denoising.gif").exists()


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--run-dir=/nonexistent"], "not a run directory"),
        (["--checkpoint=7"], "no checkpoint of step 7"),
        (["--num-steps=21"], "num_steps"),
        (["--count=0"], "--count"),
        (["--guidance-rescale=0.7"], "guides nothing. Give --guidance 2"),
        (["--guidance-interval", "0.3", "3"], "guides nothing. Give --guidance 2"),
        (["--sampler=ddim", "--eta=2"], "eta"),
        (["--eta=0.5"], "--sampler ddim"),
        (["--sampler=ddim", "--churn=5"], "--sampler heun"),
        (["--sampler=ddim", "--variance=fixed_small"], "--sampler ancestral"),
        (["--guidance=2"], "class-conditional"),
        (["--label=3"], "--label 3"),
        (["--spacing=karras"], "Give --num-steps 50"),
        (["--sampler=ddim", "--langevin-steps=3"], "--langevin-steps 3 belongs to"),
        (["--sampler=heun", "--langevin-rate=0.5"], "--langevin-rate 0.5 belongs to"),
        (["--pretrained=digits"], "name two models"),
        (["--seed=4294967296"], "--seed"),
        (["--num-devices=99"], "number of devices"),
    ],
)
def test_sampling_refuses_what_it_cannot_do(whole, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        program("sample.py", f"--run-dir={whole[0]}", f"--out={tmp_path}", *arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
