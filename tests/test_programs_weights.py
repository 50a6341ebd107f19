"""Trained models as two files: what comes with the package, and runs written out."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.programs import convert as convert_module
from ddpm_jax.programs import trained_run
from ddpm_jax.programs import weights as weights_module
from ddpm_jax.programs.convert import (
    FromTensorFlow,
    ToWeights,
    _without_folders,
    from_tensorflow,
    to_weights,
)
from ddpm_jax.programs.export import ExportConfig, export
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.programs.sample import SampleConfig, sample
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun
from ddpm_jax.programs.weights import PRETRAINED, pretrained_names, read_weights
from tests.small_run import make_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("weights") / "run")


def test_the_shipped_digits_are_digits(capfd):
    """Nearer to the digits' mean image and spread than noise. And progress is shown."""
    run = dj.load_run("digits")
    assert run.config.data.name == "digits" and run.model.image_shape == (8, 8, 1)
    images = run.sample(64, sampler="ddim", num_steps=20).astype(float)
    printed = capfd.readouterr()
    assert "sampling: 100%" in printed.err and not printed.out
    data = run.train_data.images.astype(float)
    assert run.facts["data"]["fingerprint"] == run.train_data.fingerprint
    assert np.abs(images.mean(0) - data.mean(0)).mean() < 12
    # Pixels of an 8×8 digit are 0 or 255 at its borders: the columns 0 and 7 are nearly empty.
    assert images[:, :, [0, 7]].mean() < 20 < images[:, :, 3:5].mean()


def test_the_shipped_models_are_small():
    sizes = {path.parent.name: path.stat().st_size for path in PRETRAINED.rglob("*.safetensors")}
    assert set(sizes) == set(pretrained_names()) == {"digits", "cifar10-small"}
    assert max(sizes.values()) < 6_000_000


@pytest.mark.slow
def test_the_shipped_classes_of_cifar10_have_their_colours():
    """Sky and sea are blue, grass and sand are not: in the training images, the mean of blue minus
    red is 16.1 and 16.4 for airplanes and ships, -23.8 and -31.8 for deer and frogs."""
    run = dj.load_run("cifar10-small")
    assert run.config.data.name == "cifar10" and run.model.image_shape == (32, 32, 3)
    images = run.sample(80, sampler="ddim", num_steps=10, guidance=2.0).astype(float)
    blue = (images[..., 2] - images[..., 0]).mean((1, 2)).reshape(8, 10).mean(0)
    assert blue[[0, 8]].min() > 0 > blue[[4, 6]].max()
    assert images.std() > 30


def test_weights_are_the_runs(run_dir, tmp_path):
    """float32 weights give the run's own images; float16 ones nearly so."""
    run = TrainedRun(RunOptions(run_dir))
    images = run.sample(4, sampler="ddim", num_steps=4)
    for dtype, largest in (("float32", 0), ("float16", 8)):
        to_weights(ToWeights(run_dir, out=tmp_path / dtype, dtype=dtype))
        again = dj.load_run(tmp_path / dtype)
        assert again.step == run.step
        made = again.sample(4, sampler="ddim", num_steps=4)
        assert np.abs(images.astype(int) - made).max() <= largest
    assert again.config.data.path is None


def test_messages_say_that_a_run_is_unfinished(run_dir):
    assert dj.load_run(run_dir).title == f"{run_dir} at step 0 of 24"
    assert dj.load_run("digits").title == "pretrained digits at step 4,000"


def test_weights_do_not_tell_of_the_folders_of_this_machine(run_dir, tmp_path):
    """Wherever config.json names one: the folder of a run's weights may be published."""
    shutil.copytree(run_dir, tmp_path / "run")
    about = json.loads((tmp_path / "run/config.json").read_text())
    about["config"] |= {"run_dir": "/home/grace/runs/a", "init_from": "/home/grace/runs/b"}
    about["config"]["data"] |= {"path": "/home/grace/c", "labels": "/home/grace/labels.csv"}
    about["source"] = {"folder": "/home/grace/d", "sha256": {"e/f": "0"}}
    (tmp_path / "run/config.json").write_text(json.dumps(about))
    to_weights(ToWeights(tmp_path / "run", out=tmp_path / "out"))
    text = (tmp_path / "out/config.json").read_text()
    assert "grace" not in text and '"init_from": "b"' in text and '"e/f": "0"' in text
    assert dj.load_run(tmp_path / "out").config.data.labels == "labels.csv"


def test_names_of_classes_that_look_like_paths_stay():
    """Open Images numbers its classes /m/01yrx, and other lists may end alike."""
    names = ["/m/01yrx", "/n/01yrx", "cat"]
    facts = {"data": {"class_names": names, "name": "/home/grace/photos"}}
    kept = _without_folders(facts)
    assert kept == {"data": {"class_names": names, "name": "photos"}}


@pytest.mark.parametrize("label", [3, np.int64(3), np.uint8(3), "3"])
def test_a_class_may_be_a_number_of_numpy(label):
    names = [str(i) for i in range(5)] if label == "3" else []
    run = SimpleNamespace(
        name="a run",
        model=SimpleNamespace(num_classes=5),
        facts={"data": {"class_names": names}},
    )
    np.testing.assert_array_equal(TrainedRun.labels(run, 2, label), [3, 3])
    known = ", ".join(names) or "0..4"
    for wrong in (True, np.int64(5), 2.0):
        with pytest.raises(ValueError, match=f"is not a class of this run: {known}"):
            TrainedRun.labels(run, 2, wrong)


def test_the_sampling_program_takes_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample(SampleConfig(sampler="ddim", num_steps=2, pretrained="digits", count=2, gif=False))
    (grid,) = tmp_path.rglob("grid.png")
    assert grid.is_relative_to(tmp_path / "runs" / "pretrained-digits")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pretrained": "digit"}, "--pretrained knows .*digits.*Did you mean digits"),
        ({"pretrained": "digits", "checkpoint": 3}, "leave out --checkpoint"),
        ({"pretrained": "digits", "ema": False}, "leave out --checkpoint, --no-ema, --ema-decay"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainedRun(RunOptions(**options))


@pytest.mark.parametrize(
    "said, here",
    [
        ("--data.path", "--data-path"),
        ("--data.name", "--data-name"),
        ("--data.labels", "the training script's --data.labels"),
        ("--data.cache-dir", "the training script's --data.cache-dir"),
        ("--data.stream", "the training script's --data.stream"),
        ("download=True", "--data.download in training, which keeps the data in the cache"),
    ],
)
def test_messages_about_data_name_options_of_the_program_at_hand(said, here, monkeypatch):
    def load(*arguments, **options):
        raise ValueError(f"try {said}.")

    monkeypatch.setattr(trained_run, "load_data", load)
    with pytest.raises(RunDirectoryError) as error:
        _ = dj.load_run("digits").train_data
    assert str(error.value) == f"try {here}."


FOREIGN = {
    "sample": (
        ("samples.npz", "grid.png", "denoising.gif"),
        lambda out: sample(
            SampleConfig(
                sampler="ddim", num_steps=1, pretrained="digits", count=1, gif=False, out=out
            )
        ),
    ),
    "to-weights": (
        ("config.json", "weights.safetensors"),
        lambda out: to_weights(ToWeights(pretrained="digits", out=out)),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_something_else_are_not_replaced(name, tmp_path):
    """Other files of the folder are no obstacle, nor what the program itself wrote there."""
    names, write = FOREIGN[name]
    for taken in names:
        (tmp_path / taken).write_text("{}")
        with pytest.raises(RunDirectoryError, match=rf"has {taken}.*--out.*Nothing was changed"):
            write(tmp_path)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {taken: "{}"}
        (tmp_path / taken).unlink()
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path)
    write(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert {names[0], "notes.txt"} < {path.name for path in tmp_path.iterdir()}


def test_an_exported_class_is_the_one_that_sampling_means(run_dir, tmp_path, monkeypatch):
    """A class may be named by the number of another one: folders 1, 10, 2, … in this order."""
    shutil.copytree(run_dir, tmp_path / "run")
    about = json.loads((tmp_path / "run/config.json").read_text())
    about["data"]["class_names"] = sorted(map(str, range(1, 11)))
    (tmp_path / "run/config.json").write_text(json.dumps(about))

    class Exported(Exception):
        pass

    def exported(*_, label, **__):
        raise Exported(label)

    monkeypatch.setattr("ddpm_jax.programs.export.export_sampler", exported)
    for label in ("10", 10):
        with pytest.raises(Exported, match="^1$"):
            export(ExportConfig(tmp_path / "run", label=label, out=tmp_path / "program"))
        assert dj.load_run(tmp_path / "run").labels(1, label) == [1]


def copied(run_dir, folder):
    """Weights, and the call that reads them; another file of this name may come in between."""
    to_weights(ToWeights(run_dir=run_dir, out=folder))
    return folder / "weights.safetensors", lambda: TrainedRun(RunOptions(folder))


def variables(run_dir, folder):
    """The authors' variables, and the call that imports them."""
    folder.mkdir()
    np.savez(folder / "variables.npz", a=np.zeros(3, np.float32))
    return folder / "variables.npz", lambda: from_tensorflow(
        FromTensorFlow(file=folder / "variables.npz", run_dir=folder / "run")
    )


@pytest.mark.parametrize(
    "make, module",
    [(copied, weights_module), (variables, convert_module)],
)
def test_a_file_replaced_while_it_is_read_is_refused(run_dir, tmp_path, monkeypatch, make, module):
    """What is read would have the digest of another file."""
    path, read = make(run_dir, tmp_path / "there")
    before = module.sha256_of

    def then_replaced(given):
        result = before(given)
        shutil.copy(path, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        return result

    monkeypatch.setattr(module, "sha256_of", then_replaced)
    with pytest.raises(ValueError, match=f"{path.name} was replaced while it was read"):
        read()


def test_changed_or_foreign_weights_are_refused(run_dir, tmp_path):
    to_weights(ToWeights(run_dir, out=tmp_path / "a"))
    path = tmp_path / "a" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not the file that config.json describes"):
        dj.load_run(tmp_path / "a")
    content[-1] ^= 1
    path.write_bytes(content)
    about = json.loads((tmp_path / "a" / "config.json").read_text())
    about["config"]["network"]["channels"] *= 2
    (tmp_path / "a" / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="does not fit the network"):
        dj.load_run(tmp_path / "a")


@pytest.mark.parametrize(
    "about", [{}, {"sha256": "0"}, {"step": "4", "sha256": "0"}, [], [4], None]
)
def test_weights_that_config_json_does_not_describe_are_refused(about, tmp_path):
    with pytest.raises(ValueError, match="config.json does not describe weights.safetensors"):
        read_weights(tmp_path, about, {})
