"""Several averages in one run: kept in its checkpoints, sampled from, and combined afterwards."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ddpm_jax.programs.config import OptimizerConfig, TrainConfig
from ddpm_jax.programs.convert import ToWeights, convert
from ddpm_jax.programs.run_directory import RunDirectory, RunDirectoryError, differences
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun, load_run
from ddpm_jax.programs.training_run import TrainingRun
from ddpm_jax.training import Checkpoints
from ddpm_jax.training.power_ema import post_hoc_weights
from tests.small_run import CONFIG

STEPS = (4, 8, 12)
EMAS = OptimizerConfig(ema_decay=0.9, extra_ema_decays=(0.5, 0.99), ema_sigma_rel=(0.05, 0.1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose averages differ at every step, without the time of training it."""
    config = dataclasses.replace(
        CONFIG, run_dir=tmp_path_factory.mktemp("averages") / "run", optimizer=EMAS
    )
    run = TrainingRun(config)
    state = run.model.init()
    assert len(state.extra_ema_params) == 4
    with Checkpoints(run.directory.checkpoints, keep=3) as checkpoints:
        for step in STEPS:
            averages = [constant(state.params, 100 * step + i) for i in range(6)]
            checkpoints.save(
                step,
                state.replace(
                    step=jax.numpy.int32(step),
                    params=averages[0],
                    ema_params=averages[1],
                    extra_ema_params=tuple(averages[2:]),
                ),
            )
    run.directory.write(config, run.facts)
    return config.run_dir


def constant(params, value):
    return jax.tree.map(lambda leaf: jax.numpy.full_like(leaf, value), params)


def value_of(run):
    """The one number that all of a run's parameters are."""
    (value,) = {float(x) for leaf in jax.tree.leaves(run.params) for x in np.unique(leaf)}
    return value


@pytest.mark.slow
@pytest.mark.parametrize(
    "options,expected",
    [
        ({}, 1201),
        ({"ema": False}, 1200),
        ({"ema_decay": 0.9}, 1201),
        ({"ema_decay": 0.5}, 1202),
        ({"ema_decay": 0.99, "checkpoint": 8}, 803),
        ({"ema_sigma_rel": 0.05}, 1204),
        ({"ema_sigma_rel": 0.1, "checkpoint": 4}, 405),
    ],
)
def test_each_average_can_be_chosen(folder, options, expected):
    assert value_of(load_run(folder, **options)) == expected


@pytest.mark.slow
def test_an_average_that_was_not_kept_is_combined_from_all_checkpoints(folder, tmp_path):
    stored = [(step, width) for step in STEPS for width in (0.05, 0.1)]
    weights, _ = post_hoc_weights(stored, 12, 0.075)
    expected = weights @ [100 * step + i for step in STEPS for i in (4, 5)]
    run = load_run(folder, ema_sigma_rel=0.075)
    np.testing.assert_allclose(value_of(run), expected, rtol=1e-5)
    assert run.provenance()["average"] == "sigma0.075"
    assert run.checkpoint_sha256 != load_run(folder).checkpoint_sha256
    out = tmp_path / "weights"
    convert(ToWeights(run_dir=folder, out=out, ema_sigma_rel=0.075))
    assert value_of(load_run(out)) == value_of(run)
    about = json.loads((out / "config.json").read_text())["weights"]
    assert (about["parameters"], about["step"]) == ("averaged (sigma0.075)", 12)
    with pytest.raises(ValueError, match="only one average"):
        load_run(out, ema_sigma_rel=0.075)
    with pytest.warns(UserWarning, match="only to .*--report.keep-every"):
        load_run(folder, ema_sigma_rel=0.2)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"ema_decay": 0.7}, "--ema-decay 0.7: .* has the averages 0.9, 0.5, 0.99"),
        ({"ema_sigma_rel": 0.5}, "relative width"),
        ({"ema": False, "ema_decay": 0.5}, "exclude each other"),
        ({"ema_decay": 0.5, "ema_sigma_rel": 0.1}, "exclude each other"),
    ],
)
def test_averages_that_a_run_does_not_have(folder, options, message):
    with pytest.raises(ValueError, match=message):
        TrainedRun(RunOptions(folder, **options))


@pytest.mark.parametrize(
    "optimizer,message",
    [
        ({"extra_ema_decays": (0.5, 1.0)}, "--optimizer.extra-ema-decays"),
        ({"ema_sigma_rel": (0.05, 0.3)}, "ema_sigma_rel"),
        ({"betas": (0.9, 1.0)}, "--optimizer.betas"),
        ({"weight_decay": -0.1}, "--optimizer.weight-decay"),
    ],
)
def test_values_that_no_run_could_use_are_refused(optimizer, message, tmp_path):
    config = dataclasses.replace(
        CONFIG, run_dir=tmp_path, optimizer=dataclasses.replace(EMAS, **optimizer)
    )
    with pytest.raises(ValueError, match=message):
        TrainingRun(config)


def test_a_run_may_change_its_weight_decay_but_not_its_averages(folder):
    directory = RunDirectory(folder)
    config, facts = directory.read()
    may = dataclasses.replace(EMAS, weight_decay=0.1, betas=(0.8, 0.9))
    changed = dataclasses.replace(config, optimizer=may, resume_with_changes=True)
    assert len(directory.check(changed, facts)) == 2
    for changes in ({"extra_ema_decays": (0.5,)}, {"ema_sigma_rel": ()}):
        optimizer = dataclasses.replace(EMAS, **changes)
        other = dataclasses.replace(config, optimizer=optimizer, resume_with_changes=True)
        with pytest.raises(RunDirectoryError, match="another configuration"):
            directory.check(other, facts)


def test_runs_of_earlier_versions_are_read_and_resumed(tmp_path):
    """Their config.json has none of the fields, their checkpoints none of the arrays."""
    config: TrainConfig = dataclasses.replace(CONFIG, run_dir=tmp_path)
    run = TrainingRun(config)
    state = run.model.init()
    with Checkpoints(run.directory.checkpoints) as checkpoints:
        checkpoints.save(1, state.replace(step=jax.numpy.int32(1)))
    manifest = json.loads((run.directory.checkpoints / "1" / "manifest.json").read_text())
    assert "extra_ema_params" not in json.dumps(manifest)
    run.directory.write(config, run.facts)
    values = json.loads(run.directory.config.read_text())
    for name in ("weight_decay", "betas", "extra_ema_decays", "ema_sigma_rel"):
        del values["config"]["optimizer"][name]
    for part, name in (("report", "tracker"), ("devices", "profile_steps")):
        del values["config"][part][name]
    run.directory.config.write_text(json.dumps(values))
    assert differences(run.directory.read()[0], config) == []
    assert load_run(tmp_path).step == 1
    with pytest.raises(ValueError, match="trained without power-function averages"):
        load_run(tmp_path, ema_sigma_rel=0.1)
