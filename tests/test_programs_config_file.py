"""`--config FILE`: what a run writes is read back, flags override it, mistakes are named."""

import dataclasses
import json
import sys

import pytest
import yaml

import train_digits
import train_folder
import train_ncsn
from ddpm_jax.programs import console
from ddpm_jax.programs.config import TrainConfig
from ddpm_jax.programs.config_file import read_config
from ddpm_jax.programs.config_values import to_json
from ddpm_jax.programs.run_directory import RunDirectory

BASE = train_digits.CONFIG


def parsed(monkeypatch, *words, default=BASE):
    """The configuration that a training program is given with these words."""
    monkeypatch.setattr(sys, "argv", ["train", *map(str, words)])
    given = []
    console.run_program(given.append, default, "A program.")
    return given[0]


def test_what_a_run_wrote_is_read_back_and_flags_override_it(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)
    written = dataclasses.replace(train_folder.CONFIG, run_dir=tmp_path, seed=7)
    run.write(written, {"data": {"image_shape": [8, 8, 1], "fingerprint": "a"}})
    assert parsed(monkeypatch, "--config", run.config) == written
    changed = parsed(monkeypatch, "--seed", 8, f"--config={run.config}", "--data.augment", "none")
    data = dataclasses.replace(written.data, augment="none")
    assert changed == dataclasses.replace(written, seed=8, data=data)


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_some_fields_replace_the_presets(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"mine{suffix}"
    values = {"batch_size": 5, "network": {"channel_multipliers": [1, 2, 3]}}
    path.write_text(json.dumps(values) if suffix == ".json" else yaml.safe_dump(values))
    network = dataclasses.replace(BASE.network, channel_multipliers=(1, 2, 3))
    expected = dataclasses.replace(BASE, batch_size=5, network=network)
    assert parsed(monkeypatch, "--config", path) == expected
    ncsn = parsed(monkeypatch, "cifar10", "--config", path, default=train_ncsn.ROWS)
    assert (ncsn.batch_size, ncsn.data.name) == (5, "cifar10")


def test_yaml_reads_numbers_as_json_does(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("optimizer: {learning_rate: 1e-4, spike_factor: 2}\ndata: {path: null}\n")
    config = read_config(path, BASE)
    assert (config.optimizer.learning_rate, config.optimizer.spike_factor) == (1e-4, 2)


@pytest.mark.parametrize(
    "name,text,message",
    [
        ("a.json", '{"bach_size": 1}', "bach_size .did you mean batch_size."),
        ("a.json", '{"data": {"nmae": 1}}', "data.nmae .did you mean data.name."),
        ("a.json", '{"learning_rate": 1.0}', "did you mean optimizer.learning_rate."),
        ("a.yaml", "1: 2", "unknown fields: 1"),
        ("a.json", '{"seed": "x"}', "seed does not fit its type int: got 'x'"),
        ("a.yaml", "data: {holdout: much}", "holdout does not fit its type float: got 'much'"),
        ("a.json", '{"data": 3}', "data must be an object of fields"),
        ("a.json", '{"optimizer": {"betas": [0.9]}}', "betas does not fit its type"),
        ("a.json", '{"seed": 1, "seed": 2}', "'seed' occurs twice"),
        ("a.yaml", "seed: 1\nseed: 2", "'seed' occurs twice"),
        ("a.yaml", "seed: 010", "010 is no decimal number"),
        ("a.yaml", "seed: 1:30", "1:30 is no decimal number"),
        ("a.yaml", "optimizer: {weight_decay: 1:30.5}", "1:30.5 is no decimal number"),
        ("a.yaml", "[1, 2]", "must hold fields, not a list"),
        ("a.yaml", "{", "is not YAML"),
        ("a.yaml", "!!python/object:os.system {}", "is not YAML"),
        ("a.json", "{", "not JSON"),
        ("a.toml", "", "ends in .json, .yaml or .yml"),
        ("a.json", None, "No such file"),
    ],
)
def test_a_wrong_file_is_one_error_that_names_it(
    name, text, message, tmp_path, monkeypatch, capsys
):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises((ValueError, OSError), match=message):
        read_config(path, BASE)
    with pytest.raises(SystemExit) as ended:
        parsed(monkeypatch, "--config", path)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and printed.startswith("error: ") and str(path) in printed


def test_the_option_is_in_the_help_and_needs_a_value(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        parsed(monkeypatch, "--help")
    assert "--config FILE.json" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        parsed(monkeypatch, "--config")
    assert ended.value.code == 2


def test_only_one_file_can_be_given(tmp_path, monkeypatch, capsys):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(SystemExit) as ended:
        parsed(monkeypatch, "--config", tmp_path / "a.json", "--config", tmp_path / "b.json")
    assert ended.value.code == 2
    assert "--config is given 2 times, and takes one file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.yaml", "A.YML", "a.JSON"])
def test_a_file_at_home_and_endings_in_capitals(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name).write_text('{"seed": 7}')
    assert read_config(f"~/{name}", BASE).seed == 7


def test_a_complete_file_needs_no_preset(tmp_path):
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump(to_json(BASE)))
    other = TrainConfig(run_dir=tmp_path, num_steps=1)
    assert read_config(path, other) == BASE
