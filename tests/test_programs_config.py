import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import ablation
import train_celebahq
import train_cifar
import train_cifar_conditional
import train_cifar_cpu
import train_digits
import train_digits_conditional
import train_digits_flow
import train_folder
import train_lsun
import train_mnist
import train_ncsn
from ddpm_jax.data import ImageDataset, from_arrays
from ddpm_jax.nn import count_parameters
from ddpm_jax.programs.build import build_model, build_schedule
from ddpm_jax.programs.config import DataConfig, DiffusionConfig, TrainConfig, check_config
from ddpm_jax.programs.config_values import from_json, to_json
from ddpm_jax.programs.run_directory import (
    RunDirectory,
    RunDirectoryError,
    check_facts,
    differences,
    make_writable,
)
from ddpm_jax.programs.training_run import TrainingRun

CONFIGS = {
    module.__name__: module.CONFIG
    for module in (
        train_celebahq,
        train_cifar,
        train_cifar_conditional,
        train_cifar_cpu,
        train_digits,
        train_digits_conditional,
        train_digits_flow,
        train_folder,
        train_lsun,
        train_mnist,
    )
}
PRESETS = {
    f"{table} {name}": config
    for table, rows in {**ablation.ROWS, "train_ncsn": train_ncsn.ROWS}.items()
    for name, (_, config) in rows.items()
}
CONFIGS |= PRESETS
SHAPES = {
    "train_celebahq": ((256, 256, 3), 113_673_219),
    "train_lsun": ((256, 256, 3), 113_673_219),
    "train_cifar": ((32, 32, 3), 35_746_307),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_survives_json(name):
    text = json.dumps(to_json(CONFIGS[name]))
    assert from_json(TrainConfig, json.loads(text)) == CONFIGS[name]


@pytest.mark.parametrize("name", SHAPES)
def test_the_papers_configurations_have_the_papers_sizes(name):
    shape, parameters = SHAPES[name]
    model = build_model(CONFIGS[name], shape, None)
    state = model.init_shapes()
    assert count_parameters(state.params) == parameters


def test_the_cifar_configuration_is_the_papers():
    """Ho et al. 2020, App. B."""
    c = train_cifar.CONFIG
    assert (c.batch_size, c.num_steps, c.data.augment) == (128, 800_000, "flip")
    assert (c.optimizer.learning_rate, c.optimizer.warmup_steps) == (2e-4, 5000)
    assert (c.optimizer.clip_norm, c.optimizer.ema_decay, c.network.dropout) == (1.0, 0.9999, 0.1)
    d = c.diffusion
    assert (d.num_timesteps, d.beta_start, d.beta_end) == (1000, 1e-4, 0.02)
    assert (d.schedule, d.target, d.variance) == ("linear", "epsilon", "fixed_large")


def test_what_may_change_and_what_may_not():
    config = train_cifar.CONFIG
    free = dataclasses.replace(
        config,
        run_dir=Path("elsewhere"),
        num_steps=10,
        devices=dataclasses.replace(config.devices, count=1, backend="pmap"),
        data=dataclasses.replace(config.data, path=Path("here")),
    )
    assert differences(config, free) == []
    changed = dataclasses.replace(config, seed=1, batch_size=64)
    assert differences(config, changed) == ["--batch-size: 128 → 64", "--seed: 0 → 1"]
    # A cosine decay knows its end, so there the number of steps is part of the numbers.
    digits = train_digits.CONFIG
    assert differences(digits, dataclasses.replace(digits, num_steps=9)) != []


def test_unknown_and_missing_fields_are_named():
    values = to_json(train_digits.CONFIG)
    with pytest.raises(ValueError, match="unknown fields \\['colour'\\]"):
        from_json(TrainConfig, {**values, "colour": 1})
    del values["run_dir"]
    with pytest.raises(ValueError, match="missing fields \\['run_dir'\\]"):
        from_json(TrainConfig, values)


def test_epsilon_with_a_vanishing_signal_is_refused():
    with pytest.raises(ValueError, match="target v or x_0"):
        build_schedule(DiffusionConfig(schedule="jsd"))
    assert build_schedule(DiffusionConfig(schedule="jsd", target="v")).num_timesteps == 1000


@pytest.mark.parametrize(
    "name", ["linear", "quadratic", "constant", "warmup10", "warmup50", "cosine", "sigmoid"]
)
def test_every_schedule_can_be_named(name):
    assert build_schedule(DiffusionConfig(schedule=name)).num_timesteps == 1000


def test_a_folder_in_use_is_refused(tmp_path):
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    first.acquire()
    with pytest.raises(RunDirectoryError, match="in use by process"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


FACTS = {"data": {"fingerprint": "a", "image_shape": [8, 8, 1]}}


def test_another_config_or_other_data_are_refused_and_nothing_changed(tmp_path):
    run = RunDirectory(tmp_path)
    config = dataclasses.replace(train_digits.CONFIG, run_dir=tmp_path)
    run.check(config, FACTS)
    run.write(config, FACTS)
    (run.checkpoints / "100").mkdir(parents=True)
    before = run.config.read_bytes()
    with pytest.raises(RunDirectoryError, match="--seed: 0 → 5"):
        run.check(dataclasses.replace(config, seed=5), FACTS)
    with pytest.raises(RunDirectoryError) as caught:
        run.check(config, {"data": {**FACTS["data"], "fingerprint": "b"}})
    assert "\n  data.fingerprint: a → b\n" in str(caught.value)
    assert f"add --init-from {tmp_path}" in str(caught.value)
    assert run.config.read_bytes() == before
    run.check(config, FACTS)
    assert run.read() == (config, FACTS)


def test_a_file_in_an_output_folder_stays(tmp_path):
    (tmp_path / ".writable").write_text("mine")
    make_writable(tmp_path)
    assert (tmp_path / ".writable").read_text() == "mine"


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", ""),
        ("config.json", '{"_class_name": "UNet2DModel"}'),
        ("config.json", "weights"),
        ("log.jsonl", '{"step": 7}'),
        ("samples.png", "mine"),
    ],
)
def test_files_of_something_else_are_refused_and_stay(tmp_path, name, content):
    """Exported weights, a model of another library, the log of another program."""
    run, config = RunDirectory(tmp_path), dataclasses.replace(train_digits.CONFIG, run_dir=tmp_path)
    if content == "weights":
        run.write(config, {**FACTS, "weights": {"step": 3}})
    else:
        (tmp_path / name).write_text(content)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(RunDirectoryError, match=f"has {name} of something else.*--run-dir"):
        run.check(config, FACTS)
    assert (tmp_path / name).read_bytes() == before


def test_what_a_start_that_was_killed_left_is_replaced(tmp_path):
    run, config = RunDirectory(tmp_path), dataclasses.replace(train_digits.CONFIG, run_dir=tmp_path)
    run.write(config, FACTS)
    (tmp_path / "log.jsonl").write_text('{"step": 7}\n')
    assert run.check(dataclasses.replace(config, seed=5), FACTS) == []


def test_a_config_that_trained_nothing_binds_nobody(tmp_path):
    run = RunDirectory(tmp_path)
    run.write(train_digits.CONFIG, FACTS)
    run.check(dataclasses.replace(train_digits.CONFIG, seed=5), FACTS)


@pytest.mark.parametrize(
    "field,value",
    [("channels", "8"), ("dropout", None), ("channel_multipliers", 3), ("dtype", "f4")],
)
def test_a_value_of_another_type_is_named(tmp_path, field, value):
    values = to_json(train_digits.CONFIG)
    values["network"][field] = value
    with pytest.raises(ValueError, match=f"network: {field} "):
        from_json(TrainConfig, values)


@pytest.mark.parametrize(
    ("part", "changes", "match"),
    [
        (None, {"batch_size": 0}, r"batch_size is 0, not in 1\.\."),
        (None, {"batch_size": 10**9}, "batch_size is 1,000,000,000"),
        ("network", {"channels": 0}, "network.channels is 0"),
        ("network", {"channels": 10**8}, "network.channels is"),
        ("network", {"num_res_blocks": 10**8}, "network.num_res_blocks is"),
        ("network", {"channel_multipliers": (10**6,)}, "multiplier"),
        ("diffusion", {"num_timesteps": 10**9}, "diffusion.num_timesteps is"),
    ],
)
def test_sizes_that_no_run_can_have_are_refused_before_anything_is_built(
    part, changes, match, tmp_path
):
    config = dataclasses.replace(train_digits.CONFIG, run_dir=tmp_path / "run")
    if part is not None:
        changes = {part: dataclasses.replace(getattr(config, part), **changes)}
    with pytest.raises(ValueError, match=match):
        TrainingRun(dataclasses.replace(config, **changes))
    assert not config.run_dir.exists()


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"final_sampler": "euler_maruyama"}, "--report.final-sampler euler_maruyama follows"),
        ({"final_steps": 201}, "--report.final-steps: spaced_timesteps needs .* 1..200, got 201"),
        ({"final_steps": 0}, "--report.final-steps: .*num_steps.* 1..200, got 0"),
        ({"spacing": "uniform", "sample_steps": 150}, "--report.sample-steps: .*no whole stride"),
    ],
)
def test_messages_about_pictures_name_the_options_of_training(report, words, tmp_path):
    config = dataclasses.replace(train_digits.CONFIG, run_dir=tmp_path / "run")
    report = dataclasses.replace(config.report, **report)
    with pytest.raises(ValueError, match=words):
        TrainingRun(dataclasses.replace(config, report=report))


def test_data_that_config_json_could_not_hold_are_refused_at_the_start(tmp_path):
    config = dataclasses.replace(train_digits.CONFIG, run_dir=tmp_path / "run")
    images = np.zeros((4, 8, 8, 1), np.uint8)
    data = ImageDataset(images, np.zeros(4, np.int32), None, "x", "f")
    wide = data._replace(cond=np.broadcast_to(np.float32(0), (4, 2_000_000)))
    with pytest.raises(ValueError, match=r"data\.cond_features is 2000000"):
        TrainingRun(config, lambda split: wide)


def test_long_signals_are_within_the_limits():
    check_facts({"image_shape": [441_000, 2]})  # ten seconds in stereo


def test_classes_without_a_training_image_are_named(tmp_path):
    network = dataclasses.replace(train_digits.CONFIG.network, class_conditional=True)
    config = dataclasses.replace(train_digits.CONFIG, run_dir=tmp_path / "run", network=network)
    data = from_arrays(np.zeros((8, 8, 8, 1), np.uint8), np.array([1, 3] * 4), holdout=0.25)
    with pytest.warns(UserWarning, match=r"2 of 4 classes have no training image \(0, 2\)"):
        TrainingRun(config, data)


VALID_BUT_NO_DATA = json.dumps({"config": to_json(train_digits.CONFIG)})


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"config": 3}', '{"config": {"seed": 1}}', VALID_BUT_NO_DATA]
)
def test_a_damaged_config_is_refused(tmp_path, content):
    run = RunDirectory(tmp_path)
    run.config.write_text(content)
    with pytest.raises(RunDirectoryError, match="config.json"):
        run.read()
    assert run.config.read_text() == content


def test_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "file").write_text("{}")
    cases = {"": "has no config.json", "no": "does not exist", "file": "is a file"}
    for name, lacks in cases.items():
        folder = tmp_path / name
        with pytest.raises(RunDirectoryError, match=f"{folder} is not a run directory: it {lacks}"):
            RunDirectory(folder).read()


def test_checkpoints_without_config_are_not_overwritten(tmp_path):
    run = RunDirectory(tmp_path)
    (run.checkpoints / "100").mkdir(parents=True)
    with pytest.raises(RunDirectoryError, match="config.json"):
        run.check(train_digits.CONFIG, {})
    assert not run.config.exists()


def test_a_config_of_an_earlier_version_is_read(tmp_path):
    """`flip` became `augment`, and a folder had three channels whatever its images."""
    run = RunDirectory(tmp_path)
    config = dataclasses.replace(train_celebahq.CONFIG, run_dir=tmp_path)
    facts = {"data": {"name": "x/train", "fingerprint": None, "image_shape": [256, 256, 3]}}
    run.write(config, facts)
    values = json.loads(run.config.read_text())
    for name in ("channels", "labels", "augment"):
        del values["config"]["data"][name]
    for flip, augment in ((True, "flip"), (False, "none")):
        values["config"]["data"]["flip"] = flip
        run.config.write_text(json.dumps(values))
        data = dataclasses.replace(config.data, augment=augment, channels=3)
        old = run.read()[0]
        assert old == dataclasses.replace(config, data=data)
        changed = differences(old, config)
        assert [c.partition(":")[0] for c in changed] == ["--data.augment"] * (not flip)
    values["config"]["data"]["flip"] = "yes"
    run.config.write_text(json.dumps(values))
    with pytest.raises(RunDirectoryError, match="flip"):
        run.read()


@pytest.mark.parametrize("resolution", [64, "48x64", None])
def test_a_resolution_survives_json(resolution):
    data = DataConfig(name="folder", resolution=resolution)
    assert from_json(DataConfig, json.loads(json.dumps(to_json(data)))) == data


def test_data_config_has_a_default_that_needs_no_network():
    assert DataConfig().name == "digits"


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_run_of_its_own_that_can_be_built(name):
    config = PRESETS[name]
    folders = [other.run_dir for other in CONFIGS.values()]
    assert folders.count(config.run_dir) == 1
    check_config(config)
    model = build_model(config, (32, 32, 3) if config.data.name == "cifar10" else (8, 8, 1), 10)
    assert model.network.out_channels == model.image_shape[-1] * (1 + ("learned" in name))


def test_the_ablation_is_the_papers_table():
    """Ho et al. 2020, Table 2: prediction by objective, L_simple among them."""
    rows = {name: config.diffusion for name, (_, config) in ablation.ROWS["cifar10"].items()}
    cells = {(d.target, d.loss, d.variance) for d in rows.values()}
    objectives = [("bound", "learned"), ("bound", "fixed_large"), ("simple", "fixed_large")]
    targets = ("previous_mean", "epsilon", "x_0", "v")
    assert cells == {(t, *o) for t in targets for o in objectives} and len(rows) == 12
    paper = rows["epsilon-mse"]
    assert paper == train_cifar.CONFIG.diffusion


def test_ncsns_levels_are_the_papers():
    """Twice those of [0, 1]: from 1 to 0.01 in 10 levels (NCSN), from 50 in 232 (NCSNv2)."""
    for name, (top, count, rate) in {
        "cifar10": (1.0, 10, 2e-5 / 0.01**2),
        # NCSNv2 steps by ε s + √(2ε) z: its ε is half of the other's.
        "cifar10-v2": (50.0, 232, 2 * 6.2e-6 / 0.01**2),
    }.items():
        config = train_ncsn.ROWS[name][1]
        sigma = np.exp(-0.5 * np.asarray(build_schedule(config.diffusion).log_snr))
        np.testing.assert_allclose(sigma, 2 * np.geomspace(0.01, top, count), rtol=1e-4)
        np.testing.assert_allclose(config.report.langevin_rate, rate, rtol=1e-6)
