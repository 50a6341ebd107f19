"""The convolutional classifier: what it learns, its folder, and the programs that measure by it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from ddpm_jax import evaluation
from ddpm_jax.data import load_digits, make_dataset
from ddpm_jax.programs import classifier as programs_classifier
from ddpm_jax.programs.classifier import (
    ClassifierConfig,
    accuracy,
    load_classifier,
    train_classifier,
)
from ddpm_jax.programs.config import DataConfig
from ddpm_jax.training import NonFiniteError
from tests.small_run import make_run, program

pytestmark = pytest.mark.slow
SMALL = {"epochs": 2, "channels": 8, "batch_size": 16, "learning_rate": 1e-2}


def stripes(count, seed, shuffled=False):
    """Images of dark or bright left halves in noise, labelled by which."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    images = random.integers(80, 176, (count, 8, 8, 3))
    images[:, :, :4] += np.where(labels, 60, -60)[:, None, None, None]
    if shuffled:
        labels = random.integers(0, 2, count)
    return make_dataset(images.astype(np.uint8), labels, 2, "stripes")


@pytest.fixture
def data(monkeypatch):
    """Replaces both splits by data sets of the test."""

    def use(train, heldout):
        monkeypatch.setattr(
            programs_classifier,
            "load_data",
            lambda config, split: {"train": train, "heldout": heldout}[split],
        )

    return use


@pytest.mark.parametrize("augment", ["none", "pad_crop"])
def test_it_separates_what_can_be_separated(data, tmp_path, augment):
    data(stripes(320, 0), stripes(200, 1))
    config = ClassifierConfig(out=tmp_path, data=DataConfig(augment=augment), **SMALL)
    train_classifier(config)
    about = json.loads((tmp_path / "config.json").read_text())
    assert about["held_out"]["accuracy"] == 1.0
    assert about["data"]["fingerprint"] == stripes(320, 0).fingerprint
    assert about["held_out"]["fingerprint"] == stripes(200, 1).fingerprint


def test_it_is_at_chance_on_shuffled_labels(data, tmp_path):
    """Within 4 standard errors, √(¼/400) each."""
    data(stripes(320, 0, shuffled=True), stripes(400, 1, shuffled=True))
    train_classifier(ClassifierConfig(out=tmp_path, **SMALL))
    about = json.loads((tmp_path / "config.json").read_text())
    assert abs(about["held_out"]["accuracy"] - 0.5) < 4 * 0.025


def test_a_loaded_classifier_is_the_trained_one_bit_for_bit(data, tmp_path):
    data(stripes(64, 0), stripes(32, 1))
    config = ClassifierConfig(out=tmp_path / "a", **SMALL)
    trained = train_classifier(config)
    images = stripes(40, 2).images
    expected, loaded = trained.extractor(), load_classifier(tmp_path / "a").extractor()
    assert expected.fingerprint == loaded.fingerprint
    for name, values in expected(images).items():
        np.testing.assert_array_equal(values, loaded(images)[name])
    # The same seed gives the same weights, another seed others.
    for out, seed in (("b", 0), ("c", 1)):
        train_classifier(ClassifierConfig(out=tmp_path / out, seed=seed, **SMALL))
    prints = [load_classifier(tmp_path / out).extractor().fingerprint for out in "abc"]
    assert prints[0] == prints[1] != prints[2]


def test_grey_images_are_coloured_images_without_colour(tmp_path):
    network = evaluation.ImageClassifier(3, 8)
    params = network.init(jax.random.key(0), np.zeros((1, 8, 8, 3)))
    extractor = evaluation.classifier_extractor(network, params, batch_size=4)
    grey = stripes(6, 0).images[..., :1]
    found, coloured = extractor(grey), extractor(np.repeat(grey, 3, -1))
    np.testing.assert_array_equal(found["features"], coloured["features"])
    assert found["features"].shape == (6, 32) and found["logits"].shape == (6, 3)
    # Each image alone, whatever is in its batch.
    np.testing.assert_allclose(extractor(grey[4:5])["logits"], found["logits"][4:5], atol=1e-5)


@pytest.mark.parametrize(
    "shape,patch_size", [((8, 8), 2), ((28, 28), 2), ((9, 15), 3), ((5, 7), 1)]
)
def test_images_of_any_size_have_features(shape, patch_size):
    network = evaluation.ImageClassifier(4, 16, patch_size)
    x = jax.ShapeDtypeStruct((2, *shape, 3), np.float32)
    found, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), x)
    assert found.features.shape == (2, 64) and found.logits.shape == (2, 4)


def test_it_learns_a_folder_of_labelled_pictures(tmp_path):
    some = stripes(60, 0)
    for i, (image, label) in enumerate(zip(some.images, some.labels, strict=True)):
        path = tmp_path / "pictures" / ("left dark", "left bright")[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    where = ["--data.name=folder", f"--data.path={tmp_path / 'pictures'}", "--data.resolution=8"]
    options = ["--data.augment=none", "--channels=8", "--batch-size=8", "--epochs=4"]
    program("train_classifier.py", f"--out={tmp_path / 'out'}", *where, *options)
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["held_out"]["accuracy"] == 1.0 and about["held_out"]["images"] == 6
    assert about["data"]["class_names"] == ["left bright", "left dark"]


def test_divergence_names_the_step_counted_from_one(data, tmp_path, monkeypatch):
    data(stripes(64, 0), stripes(32, 1))
    monkeypatch.setattr(optax, "softmax_cross_entropy", lambda logits, _: logits[:, 0] * jnp.nan)
    with pytest.raises(NonFiniteError, match=r"at step 1 \(.*--learning-rate"):
        train_classifier(ClassifierConfig(out=tmp_path, **SMALL))


def test_accuracy_counts_the_largest():
    logits = np.array([[1.0, 2, 0], [5, 1, 1], [0, 0, 3], [9, 8, 7]])
    assert accuracy(logits, np.array([1, 0, 2, 2])) == 0.75


ONE = make_dataset(stripes(20, 0).images, np.zeros(20, int), 2, "one")
NONE = make_dataset(stripes(20, 0).images, None, None, "none")
FULL = stripes(20, 0)


@pytest.mark.parametrize(
    "options,train,heldout,words",
    [
        ({"epochs": 0}, FULL, FULL, "--epochs must be at least 1"),
        ({"channels": 12}, FULL, FULL, "multiple of 8"),
        ({"label_smoothing": 1.0}, FULL, FULL, "--label-smoothing"),
        ({"data": DataConfig(augment="edm")}, FULL, FULL, "flip_pad_crop"),
        ({"patch_size": 3}, FULL, FULL, "--patch-size that divides"),
        ({}, NONE, NONE, "needs labels"),
        ({}, ONE, FULL, "at least two classes"),
        ({}, FULL, FULL._replace(images=FULL.images[:0], labels=FULL.labels[:0]), "holdout"),
        ({}, FULL, FULL._replace(images=np.repeat(FULL.images, 3, -1)), "--data.channels"),
        ({}, FULL, FULL._replace(labels=FULL.labels + 1), "has 2 classes, and .* the label 2"),
        ({}, FULL, NONE, "has no labels"),
    ],
)
def test_what_cannot_be_trained_is_said_at_once(data, tmp_path, options, train, heldout, words):
    data(train, heldout)
    with pytest.raises(ValueError, match=words):
        train_classifier(ClassifierConfig(out=tmp_path, **{**SMALL, **options}))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A classifier of digits, by the program."""
    out = tmp_path_factory.mktemp("classifier")
    arguments = ["--data.name=digits", "--data.augment=none", "--channels=16"]
    program("train_classifier.py", f"--out={out}", "--epochs=6", *arguments)
    return out


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_it_reads_digits(digits):
    about = json.loads((digits / "config.json").read_text())
    assert about["held_out"]["accuracy"] > 0.95 and about["held_out"]["images"] == 360
    heldout = load_digits("heldout")
    logits = load_classifier(digits).extractor()(heldout.images)["logits"]
    assert accuracy(logits, heldout.labels) == about["held_out"]["accuracy"]


def by_hand(folder, images, labels):
    """Fréchet distance to the training digits, and accuracy."""
    extractor = load_classifier(folder).extractor()
    truth = evaluation.moments(extractor(load_digits("train").images)["features"])
    found = extractor(images)
    distance = evaluation.frechet_distance(truth, evaluation.moments(found["features"]))
    return distance, float(np.mean(found["logits"].argmax(1) == labels))


def test_an_evaluation_is_what_its_samples_give(run_folder, digits, tmp_path):
    arguments = ["--count=30", "--sampler=ddim", "--num-steps=3", "--bits-count=0", "--bootstrap=2"]
    where = [f"--run-dir={run_folder}", f"--out={tmp_path}", f"--classifier={digits}"]
    program("evaluate.py", *where, "--features=classifier", *arguments)
    fingerprint = load_classifier(digits).extractor().fingerprint
    name = f"classifier-{fingerprint[:8]}"
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert result["features"] == "classifier" and result["features_fingerprint"] == fingerprint
    (shard,) = (tmp_path / "shards").iterdir()
    heldout = load_digits("heldout")
    sets = {
        "samples": (np.load(shard)["images"], np.arange(30) % 10),
        "held_out": (heldout.images[:30], heldout.labels[:30]),
    }
    for which, (images, labels) in sets.items():
        distance, share = by_hand(digits, images, labels)
        np.testing.assert_allclose(result[which]["frechet"], distance, rtol=1e-5)
        assert result[which]["accuracy"] == share
        assert "inception_score" not in result[which] and "sfid" not in result[which]
    row = (tmp_path / f"{name}.md").read_text()
    assert "Fréchet distance, classifier" in row and "FID" not in row and "accuracy" in row


def test_steps_against_quality_by_a_classifier(run_folder, digits, tmp_path):
    arguments = ["--steps", "3", "--count=20", "--batch-size=20", "--show=2"]
    arguments += ["--no-all-steps", "--no-analytic", "--bootstrap=2"]
    where = [f"--run-dir={run_folder}", f"--out={tmp_path}", f"--classifier={digits}"]
    program("steps_vs_quality.py", *where, *arguments)
    result = json.loads((tmp_path / "steps_vs_quality.json").read_text())
    heldout, train = load_digits("heldout"), load_digits("train")
    expected = by_hand(digits, heldout.images[:20], heldout.labels[:20])
    got = result["held out"]
    np.testing.assert_allclose(got["frechet_classifier"], expected[0], rtol=1e-5)
    assert got["accuracy"] == expected[1]
    drawn = evaluation.fitted_gaussian_images(train.images, 20, 0)
    expected = by_hand(digits, drawn, np.zeros(20))[0]
    np.testing.assert_allclose(result["fitted Gaussian"]["frechet_classifier"], expected, rtol=1e-5)
    assert "accuracy" not in result["fitted Gaussian"]
    cells = [cell for cells in result["rows"].values() for cell in cells.values()]
    assert len(cells) == 6 and "ancestral, analytic σ" not in result["rows"]
    assert all(cell["frechet_classifier"] > got["frechet_classifier"] for cell in cells)


def test_guidance_draws_every_class_from_the_same_noise(run_folder, digits, tmp_path):
    arguments = ["--num-steps=3", "--per-class=2", "--guidance", "0", "1", "3", "--classes=4"]
    arguments += ["--bootstrap=20"]
    where = [f"--run-dir={run_folder}", f"--out={tmp_path / 'a'}", f"--classifier={digits}"]
    program("guidance.py", *where, *arguments)
    result = json.loads((tmp_path / "a" / "guidance.json").read_text())
    assert result["images_per_scale"] == 20
    assert [row["scale"] for row in result["guidance"]] == [0, 1, 3]
    heldout = load_digits("heldout")
    expected = by_hand(digits, heldout.images[:20], heldout.labels[:20])
    np.testing.assert_allclose(result["held_out"]["frechet_classifier"], expected[0], rtol=1e-5)
    assert result["held_out"]["accuracy"] == expected[1]
    assert {p.name for p in (tmp_path / "a").glob("*.png")} == {"guidance.png", "curves.png"}
    from ddpm_jax.programs.config import SamplerOptions
    from ddpm_jax.programs.trained_run import RunOptions, TrainedRun

    run = TrainedRun(RunOptions(run_dir=run_folder))
    sampler = run.sampler(SamplerOptions("ddim", num_steps=3))
    for row in result["guidance"]:
        images = run.generator(sampler, guidance=row["scale"])(
            run.params, seed=0, count=20, labels=run.labels(20)
        ).images
        distance, share = by_hand(digits, images, run.labels(20))
        np.testing.assert_allclose(row["frechet_classifier"], distance, rtol=1e-4)
        assert abs(row["accuracy"] - share) <= 0.05  # rounding may decide an image of noise
        for field in ("accuracy", "frechet_classifier"):
            low, high = row[f"{field}_interval_95"]
            assert low <= row[field] <= high and low < high
    program("guidance.py", f"--run-dir={run_folder}", f"--out={tmp_path / 'b'}", *arguments)
    assert {p.name for p in (tmp_path / "b").iterdir()} == {"guidance.png", "guidance.json"}
    pictures = [np.asarray(Image.open(tmp_path / f / "guidance.png")) for f in "ab"]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize(
    "script,arguments,words",
    [
        ("evaluate.py", ["--features=classifier"], "belong together"),
        ("evaluate.py", ["--features=pixels", "--classifier={digits}"], "belong together"),
        ("evaluate.py", ["--classifier={run}"], "holds no classifier"),
        ("evaluate.py", ["--classifier=/nonexistent"], "holds no classifier"),
        ("evaluate.py", ["--classifier={colour}"], "images [8, 8, 3] of 2 classes"),
        ("steps_vs_quality.py", ["--classifier={colour}"], "images [8, 8, 3] of 2 classes"),
        ("steps_vs_quality.py", ["--steps=999999", "--no-all-steps"], "needs a number below T"),
        ("guidance.py", ["--classifier={two}"], "images [8, 8, 1] of 2 classes"),
        ("guidance.py", ["--classifier={damaged}"], "damaged or replaced"),
        ("guidance.py", ["--count=19", "--per-class=2"], "--count must be at least 20"),
        ("guidance.py", ["--guidance", "1", "1"], "different scales"),
        ("train_classifier.py", ["--data.name=digits", "--seed=-1"], "--seed"),
    ],
)
def test_wrong_folders_are_refused(
    run_folder, digits, tmp_path, data, capsys, script, arguments, words
):
    folders = {"digits": digits, "run": run_folder}
    for name, size in (("colour", 3), ("two", 1), ("damaged", 1)):
        if f"--classifier={{{name}}}" in arguments:
            some = [stripes(20, seed) for seed in (0, 1)]
            data(*(x._replace(images=x.images[..., :size]) for x in some))
            train_classifier(ClassifierConfig(out=tmp_path / name, **{**SMALL, "epochs": 1}))
            folders[name] = tmp_path / name
    if "damaged" in folders:
        path = folders["damaged"] / "weights.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    arguments = [argument.format(**folders) for argument in arguments]
    where = [] if script == "train_classifier.py" else [f"--run-dir={run_folder}"]
    with pytest.raises(SystemExit) as stopped:
        program(script, *where, f"--out={tmp_path / 'out'}", *arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error and "Traceback" not in error
    assert not list((tmp_path / "out").rglob("*.*"))


def test_a_folder_of_something_else_is_not_overwritten(run_folder, tmp_path):
    from ddpm_jax.programs.run_directory import RunDirectoryError

    program("convert.py", "to-weights", f"--run-dir={run_folder}", f"--out={tmp_path / 'weights'}")
    for folder in (run_folder, tmp_path / "weights"):
        before = (folder / "config.json").read_bytes()
        with pytest.raises(RunDirectoryError):
            train_classifier(ClassifierConfig(out=folder, **SMALL))
        assert (folder / "config.json").read_bytes() == before
