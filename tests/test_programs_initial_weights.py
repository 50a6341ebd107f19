"""A new run that begins with trained weights, and a run that goes on with another optimiser."""

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

from ddpm_jax.interop import Process, save_diffusers
from ddpm_jax.programs import train as train_program
from ddpm_jax.programs.config import DevicesConfig, OptimizerConfig, TrainConfig, check_config
from ddpm_jax.programs.config_values import to_json
from ddpm_jax.programs.initial_weights import begin_with_weights, read_initial_weights
from ddpm_jax.programs.run_directory import RunDirectory, RunDirectoryError
from ddpm_jax.programs.train import _check_new_decay, train
from ddpm_jax.programs.training_run import TrainingRun
from ddpm_jax.training import Checkpoints
from ddpm_jax.training.logs import read_jsonl
from tests.small_run import CONFIG, ROOT, make_run

REPORT = dataclasses.replace(
    CONFIG.report, heldout_every=0, sample_every=0, sample_count=2, sample_steps=2, final_count=2
)
REPORT = dataclasses.replace(REPORT, final_steps=2, checkpoint_every=2, checkpoint_keep=1)
SHORT = dataclasses.replace(CONFIG, num_steps=2, report=REPORT)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run whose parameters and averages differ."""
    root = make_run(tmp_path_factory.mktemp("source"))
    run = TrainingRun(dataclasses.replace(CONFIG, run_dir=root))
    with Checkpoints(root / "checkpoints") as checkpoints:
        state = checkpoints.restore(run.model.init())
        raw = jax.tree.map(lambda x: x + 1, state.params)
        checkpoints.save(5, state.replace(step=state.step + 5, params=raw))
    return root


def changed(part, **changes):
    return dataclasses.replace(
        SHORT, **{part: dataclasses.replace(getattr(SHORT, part), **changes)}
    )


def begin(config, source, weights="ema"):
    config = dataclasses.replace(config, init_from=source, init_weights=weights)
    run = TrainingRun(config)
    fresh = run.model.init()
    weights = read_initial_weights(config, run.model)
    return fresh, *begin_with_weights(config, weights, fresh)


def stored(source):
    run = TrainingRun(dataclasses.replace(CONFIG, run_dir=source))
    with Checkpoints(source / "checkpoints", writable=False) as checkpoints:
        return checkpoints.restore(run.model.init())


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize(
    "part,changes",
    [
        ("optimizer", {"learning_rate": 1e-5, "ema_decay": 0.5}),
        ("optimizer", {"decay": "cosine", "warmup_steps": 0}),
        ("network", {"dropout": 0.3}),
        ("data", {"augment": "flip"}),
        ("diffusion", {"weighting": "none", "timesteps": "importance"}),
    ],
)
@pytest.mark.slow
def test_what_is_free_changes_no_weight(source, weights, part, changes):
    fresh, state, record = begin(changed(part, **changes), source, weights)
    taken = stored(source).ema_params if weights == "ema" else stored(source).params
    assert_same(state.params, taken)
    assert_same(state.ema_params, taken)
    assert int(state.step) == 0
    assert_same(jax.tree.leaves(fresh.opt_state), jax.tree.leaves(state.opt_state))
    assert record["step"] == 5 and record["weights"] == weights and record["fresh"] == []


@pytest.mark.slow
def test_a_changed_head_is_initialised_afresh_and_named(source):
    config = changed("network", class_conditional=False)
    diffusion = dataclasses.replace(SHORT.diffusion, variance="fixed_large", loss="simple")
    fresh, state, record = begin(dataclasses.replace(config, diffusion=diffusion), source)
    assert sorted(record["fresh"]) == ["['conv_out']['bias']", "['conv_out']['kernel']"]
    assert record["dropped"] == ["['label_embedding']['table']['embedding']"]
    assert_same(state.params["conv_out"], fresh.params["conv_out"])
    assert_same(state.params["conv_in"], stored(source).ema_params["conv_in"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "part,changes,words",
    [
        ("network", {"channels": 16}, "--network.channels: 8 there, 16 here"),
        ("network", {"num_groups": 2}, "--network.num-groups: 4 there, 2 here"),
        ("network", {"attention_resolutions": (8,)}, "--network.attention-resolutions"),
        ("diffusion", {"num_timesteps": 30}, "--diffusion.num-timesteps: 20 there, 30 here"),
        ("diffusion", {"target": "v"}, "--diffusion.target: epsilon there, v here"),
    ],
)
def test_another_network_or_process_is_refused_and_named(source, part, changes, words):
    with pytest.raises(ValueError, match="--init-from .* is another one") as refused:
        begin(changed(part, **changes), source)
    assert words in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["folders", "top", "top without an index"])
def test_a_pipeline_gives_its_weights(source, tmp_path, layout):
    plain = changed("network", class_conditional=False)
    diffusion = dataclasses.replace(SHORT.diffusion, variance="fixed_large", loss="simple")
    config = dataclasses.replace(plain, diffusion=diffusion)
    run = TrainingRun(config)
    params = run.model.init().params
    d = config.diffusion
    process = Process(
        d.schedule, d.num_timesteps, d.beta_start, d.beta_end, False, d.target, d.variance, d.clip
    )
    save_diffusers(
        tmp_path, run.model.network, params, run.model.image_shape, process, run.model.schedule
    )
    if layout != "folders":
        for file in [p for p in tmp_path.rglob("*") if p.is_file()]:
            file.rename(tmp_path / file.name)
    if layout == "top without an index":
        (tmp_path / "model_index.json").unlink()
    config = dataclasses.replace(config, seed=7)
    _, state, record = begin(config, tmp_path)
    assert record["kind"] == "diffusers"
    assert_same(state.params, params)
    with pytest.raises(ValueError, match="one set of weights.*--init-weights raw"):
        begin(config, tmp_path, "raw")


@pytest.mark.parametrize("what", ["empty", "nothing", "no checkpoint"])
def test_what_has_no_weights_is_refused(source, tmp_path, what):
    folder = tmp_path / "given"
    if what != "nothing":
        folder.mkdir()
    if what == "no checkpoint":
        (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    with pytest.raises(ValueError, match=f"--init-from {folder}"):
        begin(SHORT, folder)


def facts(root):
    return json.loads((root / "config.json").read_text())


@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_anything_is_compiled(source, tmp_path, monkeypatch):
    def compiled(*_):
        pytest.fail("the step was compiled first")

    monkeypatch.setattr(train_program, "prepare_steps", compiled)
    other = changed("network", channels=16)
    for config in (dataclasses.replace(CONFIG, init_from=tmp_path / "nothing"), other):
        config = dataclasses.replace(config, run_dir=tmp_path / "run")
        if config.init_from is None:
            config = dataclasses.replace(config, init_from=source)
        with pytest.raises(ValueError, match="--init-from"):
            train(config)


@pytest.mark.slow
def test_a_run_records_where_it_began_and_what_was_changed(source, tmp_path):
    config = dataclasses.replace(SHORT, run_dir=tmp_path / "run", init_from=source)
    train(config)
    first = facts(config.run_dir)
    assert first["initial_weights"]["step"] == 5 and "changes" not in first
    # The same command goes on, and takes no weights again.
    train(dataclasses.replace(config, num_steps=4))
    assert facts(config.run_dir)["initial_weights"] == first["initial_weights"]
    slower = dataclasses.replace(
        config, num_steps=6, optimizer=OptimizerConfig(learning_rate=1e-6, ema_decay=0.9)
    )
    with pytest.raises(RunDirectoryError, match="(?s)--optimizer.ema-decay.*resume-with-changes"):
        train(slower)
    train(dataclasses.replace(slower, resume_with_changes=True))
    last = facts(config.run_dir)
    (change,) = last["changes"]
    assert change["step"] == 4 and last["initial_weights"] == first["initial_weights"]
    assert "--optimizer.learning-rate: 0.0002 → 1e-06" in change["changed"]
    train(dataclasses.replace(slower, num_steps=8))
    assert facts(config.run_dir)["changes"] == [change]
    directory = RunDirectory(config.run_dir)
    with pytest.raises(RunDirectoryError, match="--seed"):
        directory.check(dataclasses.replace(slower, seed=3, resume_with_changes=True), {})


@pytest.mark.slow
def test_a_constant_run_that_is_given_a_decay_is_the_run_begun_with_it(tmp_path):
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=1, ema_decay=0.5)
    decay = dataclasses.replace(optimizer, decay="linear", decay_steps=2)
    whole = dataclasses.replace(SHORT, num_steps=4, run_dir=tmp_path / "whole", optimizer=decay)
    train(whole)
    parts = dataclasses.replace(whole, num_steps=2, run_dir=tmp_path / "parts", optimizer=optimizer)
    train(parts)
    train(dataclasses.replace(whole, run_dir=parts.run_dir, resume_with_changes=True))
    (change,) = facts(parts.run_dir)["changes"]
    assert "--optimizer.decay-steps: None → 2" in change["changed"]
    a, b = map(stored, (whole.run_dir, parts.run_dir))
    assert int(a.step) == int(b.step) == 4
    assert_same(a.params, b.params)
    assert_same(a.ema_params, b.ema_params)


@pytest.mark.parametrize(
    "step,num_steps,decay_steps,said",
    [
        (0, 100, 20, None),
        (80, 100, 20, None),
        (90, 100, 20, "the first 10 of its steps are left out.*--optimizer.decay-steps 10"),
        (90, 100, None, "the first 85 of its steps are left out.*--optimizer.decay-steps 10"),
        (100, 100, 20, "has taken 100 steps without it.*--num-steps 120"),
        (100, 90, 20, "has taken 100 steps without it.*--num-steps 120"),
    ],
)
def test_a_decay_that_comes_too_late_is_told(tmp_path, step, num_steps, decay_steps, said):
    """It would be cut short, or, at the end of the run, not be taken at all."""
    optimizer = OptimizerConfig(warmup_steps=5, decay="linear", decay_steps=decay_steps)
    config = TrainConfig(tmp_path, num_steps, optimizer=optimizer)
    changes = ["--optimizer.decay: constant → linear"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if step < num_steps:
            _check_new_decay(config, step, changes)
        else:
            with pytest.raises(RunDirectoryError, match=said):
                _check_new_decay(config, step, changes)
        # A decay that the run has had from the beginning.
        _check_new_decay(config, step, ["--optimizer.clip-norm: 1.0 → 2.0"])
    told = [str(w.message) for w in caught]
    assert len(told) == (said is not None and step < num_steps)
    assert all(re.search(said, text) for text in told)


@pytest.mark.slow
def test_a_run_goes_on_with_changes_on_other_devices(tmp_path):
    """Changed settings and another number of devices at once: the numbers are those of one."""
    report = dataclasses.replace(REPORT, log_every=1)
    config = dataclasses.replace(SHORT, run_dir=tmp_path / "one", report=report)
    train(config)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    warm = dataclasses.replace(config.optimizer, learning_rate=1e-2, ema_decay=0.5, warmup_steps=1)
    changed = dataclasses.replace(config, num_steps=4, optimizer=warm, resume_with_changes=True)
    ends = []
    for name, count in (("one", 1), ("two", 2)):
        devices = DevicesConfig(count=count)
        train(dataclasses.replace(changed, run_dir=tmp_path / name, devices=devices))
        assert facts(tmp_path / name)["changes"][0]["step"] == 2
        ends.append(stored(tmp_path / name))
    assert [int(state.step) for state in ends] == [4, 4]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ends[0].params, ends[0].ema_params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    one, two = (
        [r["loss"] for r in read_jsonl(tmp_path / name / "log.jsonl") if r["kind"] == "train"]
        for name in ("one", "two")
    )
    assert len(one) == 4
    np.testing.assert_allclose(two, one, rtol=1e-3)


@pytest.mark.slow
def test_several_processes_begin_with_the_same_weights(source, tmp_path):
    """Two processes of one device; the first step has the rate 0, so it leaves the weights."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = dataclasses.replace(SHORT, run_dir=tmp_path / "run", num_steps=1, init_from=source)
    command = [sys.executable, "-m", "tests.train_one_of", tmp_path / "config.json", address, "2"]
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [*map(str, command), str(i)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    for process in started:
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output[-3000:]
    assert_same(stored(config.run_dir).params, stored(source).ema_params)
    assert facts(config.run_dir)["initial_weights"]["step"] == 5


@pytest.mark.parametrize("every,saved,right", [(0, 3, True), (6, 3, True), (4, 3, False)])
def test_only_saved_steps_can_be_kept(every, saved, right):
    report = dataclasses.replace(REPORT, checkpoint_every=saved, keep_every=every)
    config = TrainConfig(SHORT.run_dir, 1, report=report)
    if right:
        check_config(config)
    else:
        with pytest.raises(ValueError, match="--report.keep-every"):
            check_config(config)
