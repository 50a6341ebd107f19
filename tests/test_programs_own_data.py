"""Runs on data of one's own, from files or Python to samples: labels, vectors, functions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ddpm_jax as dj
import train_folder
from ddpm_jax.data import from_arrays
from ddpm_jax.programs.build import build_model
from ddpm_jax.programs.config import (
    DataConfig,
    DevicesConfig,
    DiffusionConfig,
    NetworkConfig,
    OptimizerConfig,
    ReportConfig,
    TrainConfig,
)
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.programs.sample import SampleConfig, sample
from ddpm_jax.programs.train import train
from ddpm_jax.programs.trained_run import RunOptions, TrainedRun, load_run
from ddpm_jax.programs.training_run import TrainingRun

pytestmark = pytest.mark.slow
SILENT = ReportConfig(
    log_every=10,
    heldout_every=40,
    heldout_draws=32,
    sample_every=0,
    checkpoint_every=40,
    final_count=4,
    final_steps=4,
)
CONFIG = TrainConfig(
    run_dir=None,  # type: ignore
    num_steps=40,
    batch_size=16,
    network=NetworkConfig(
        channels=8,
        channel_multipliers=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        num_groups=4,
        dropout=0.0,
    ),
    diffusion=DiffusionConfig(num_timesteps=20, beta_start=5e-3, beta_end=0.5),
    optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=5, ema_decay=0.9),
    devices=DevicesConfig(count=1),
    report=SILENT,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_CACHE", str(tmp_path / "cache"))


def bright_and_dark(count=64):
    """Images whose every pixel is what their vector says, and which the vector alone decides."""
    cond = np.random.default_rng(0).choice([-1.0, 1.0], (count, 1))
    images = np.broadcast_to((127.5 + 100 * cond)[:, :, None, None], (count, 4, 4, 1))
    return images.astype(np.uint8), np.concatenate([cond, np.zeros((count, 2))], 1)


@pytest.mark.parametrize("resident", [2.0, 0.0])
def test_vectors_condition_a_run_from_file_to_samples(tmp_path, resident):
    images, cond = bright_and_dark()
    np.savez(tmp_path / "own.npz", images=images, cond=cond)
    config = dataclasses.replace(
        CONFIG,
        run_dir=tmp_path / "run",
        num_steps=200,
        data=DataConfig(name="arrays", path=tmp_path / "own.npz"),
        devices=DevicesConfig(count=1, resident_gib=resident),
    )
    result = train(config)
    assert result is not None and result.step == 200 and result.heldout is not None
    run = TrainedRun(RunOptions(run_dir=tmp_path / "run"))
    assert run.model.cond_features == run.facts["data"]["cond_features"] == 3
    np.save(tmp_path / "cond.npy", np.array([[1.0, 0, 0], [-1.0, 0, 0]]))
    options = SampleConfig(
        run_dir=tmp_path / "run", sampler="ddim", num_steps=10, count=32, batch_size=16, gif=False
    )
    sample(dataclasses.replace(options, cond=tmp_path / "cond.npy", guidance=1.5))
    (made,) = (tmp_path / "run" / "generated").glob("*cond-cond-guidance1.5/samples.npz")
    levels = np.load(made)["images"].mean((1, 2, 3))
    # The vectors are used in turn: bright, dark, bright, … Without them, the two means would differ
    # by 0 ± 35.
    assert levels[0::2].mean() - levels[1::2].mean() > 120
    if resident:
        np.save(tmp_path / "cond.npy", np.ones((2, 4)))
        with pytest.raises(ValueError, match=r"--cond .* needs cond \[N, 3\]"):
            sample(dataclasses.replace(options, cond=tmp_path / "cond.npy"))


def told_by_one_token(count=256, length=3):
    """Images whose every pixel is what one of their tokens says, at a random place; others lie."""
    rng = np.random.default_rng(0)
    sign = rng.choice([-1.0, 1.0], (count, length))
    context = np.stack([np.full_like(sign, -1.0), sign], 2)
    which = np.arange(count), rng.integers(0, length, count)
    context[(*which, 0)] = 1
    images = np.broadcast_to((127.5 + 100 * sign[which])[:, None, None, None], (count, 4, 4, 1))
    return images.astype(np.uint8), context


def tokens_for(sign, place, length):
    """Tokens of which the one at `place` says `sign`, and the others the opposite."""
    tokens = np.stack([np.full(length, -1.0), np.full(length, -sign)], 1)
    tokens[place] = 1, sign
    return tokens


def test_tokens_condition_a_run_from_file_to_samples(tmp_path):
    images, context = told_by_one_token()
    # A fourth token that is always masked, and would decide every image otherwise.
    context = np.concatenate([context, np.full((len(images), 1, 2), 50.0)], 1)
    mask = np.arange(4) < np.full((len(images), 1), 3)
    np.savez(tmp_path / "own.npz", images=images, context=context, context_mask=mask)
    config = dataclasses.replace(
        CONFIG,
        run_dir=tmp_path / "run",
        num_steps=800,
        data=DataConfig(name="arrays", path=tmp_path / "own.npz"),
        devices=DevicesConfig(count=1, resident_gib=0.0),
    )
    result = train(config)
    assert result is not None and result.step == 800 and result.heldout is not None
    run = load_run(tmp_path / "run")
    assert run.model.context_features == run.facts["data"]["context_features"] == 2
    # Bright, dark, bright, … in turn, by more tokens than in training, at every place.
    wanted = np.stack([tokens_for(s, i, 4) for i in range(4) for s in (1, -1)])
    np.save(tmp_path / "tokens.npy", wanted)
    options = SampleConfig(
        run_dir=tmp_path / "run",
        sampler="ddim",
        num_steps=10,
        count=64,
        batch_size=32,
        gif=False,
        context=tmp_path / "tokens.npy",
        guidance=1.5,
    )
    sample(options)
    (made,) = (tmp_path / "run" / "generated").glob("*context-tokens-guidance1.5/samples.npz")
    images = np.load(made)["images"]
    levels = images.mean((1, 2, 3)).reshape(8, 8).mean(0)
    assert (levels[0::2] - levels[1::2]).min() > 120
    given = {"sampler": "ddim", "num_steps": 10, "guidance": 1.5}
    order = [3, 1, 0, 2]
    for tokens, mask in (
        (wanted[:, order], None),
        # Masked tokens are not there, whatever they are.
        (np.concatenate([wanted, wanted + 9], 1), np.arange(8) < np.full((8, 1), 4)),
    ):
        conditions = {"context": tokens, "context_mask": mask}
        again = run.sample(64, conditions=conditions, **given)
        assert np.abs(again.astype(int) - images).max() <= 1
    for arrays, match in (
        ({"context": np.ones((2, 4, 3))}, r"needs context \[N, L, 2\] .* got float64 \(2, 4, 3\)"),
        (
            {"context": np.ones((2, 2))},
            r"needs context \[N, L, 2\] of numbers, got float64 \(2, 2\)",
        ),
        ({"context": np.full((2, 4, 2), np.nan)}, "finite context"),
        ({"context": wanted, "context_mask": np.ones((8, 3), bool)}, r"context_mask \[8, 4\]"),
        ({"tokens": wanted}, "no array `context`"),
    ):
        np.savez(tmp_path / "wrong.npz", **arrays)
        with pytest.raises(ValueError, match=rf"--context .*{match}"):
            sample(dataclasses.replace(options, context=tmp_path / "wrong.npz"))
    with pytest.raises(ValueError, match="--cond .*takes no cond"):
        np.save(tmp_path / "cond.npy", np.ones((2, 4)))
        sample(dataclasses.replace(options, cond=tmp_path / "cond.npy"))
    for other, match in (({}, "has none"), ({"context": np.ones((256, 1, 3))}, r"\[\d+, 1, 3\]")):
        np.savez(tmp_path / "own.npz", images=told_by_one_token()[0], **other)
        with pytest.raises(ValueError, match=rf"needs context \[N, L, 2\].*{match}"):
            _ = load_run(tmp_path / "run").heldout_data


def test_held_out_data_need_the_conditions_of_the_training_data(tmp_path):
    images, context = told_by_one_token(64)
    whole = from_arrays(images, context=context)
    plain = from_arrays(images)
    with pytest.raises(ValueError, match=r"needs context \[N, L, 2\]"):
        train(
            dataclasses.replace(CONFIG, run_dir=tmp_path / "run"),
            data=lambda split: (whole if split == "train" else plain)(split),
        )


def random_images(*shape, labels=None):
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    return from_arrays(
        images, None if labels is None else np.arange(len(images)) * labels // len(images)
    )


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(
    "train_data,heldout,words",
    [
        (
            random_images(64, 4, 4, 1, labels=3),
            random_images(64, 4, 4, 3, labels=3),
            r"of 4×4×1, and .* of 4×4×3\. .*--data\.resolution and --data\.channels",
        ),
        (
            random_images(64, 4, 4, 1, labels=3),
            random_images(64, 4, 8, 1, labels=3),
            "of 4×4×1, and .* of 4×8×1",
        ),
        (
            random_images(64, 4, 4, 1, labels=3),
            random_images(64, 4, 4, 1, labels=4),
            "has 3 classes, and .* has the label 3.*from 0 to 2",
        ),
        (
            random_images(64, 4, 4, 1, labels=3),
            random_images(64, 4, 4, 1),
            "has 3 classes, and .* has no labels",
        ),
        (
            random_images(64, 4, 4, 1, labels=3),
            random_images(64, 4, 4, 1, labels=2),
            None,
        ),
    ],
)
def test_held_out_images_are_of_the_kind_of_the_training_images(
    tmp_path, train_data, heldout, words, conditional
):
    """Refused at the start and not at the first measurement; without labels, classes are free."""
    network = dataclasses.replace(CONFIG.network, class_conditional=conditional)
    config = dataclasses.replace(CONFIG, run_dir=tmp_path / "run", network=network)
    data = lambda split: (train_data if split == "train" else heldout)(split)  # noqa: E731
    if words is None or ("classes" in words and not conditional):
        assert len(TrainingRun(config, data).heldout_data.images)
        return
    with pytest.raises(ValueError, match=words):
        train(config, data=data)
    assert not (tmp_path / "run").exists()


def test_dropped_examples_have_no_token(tmp_path):
    """Training drops vectors and tokens of the same examples: zeros, and a cleared mask."""
    count, seen = 256, {}

    class Remembers:
        def apply(self, variables, x, t, **options):
            seen.update(options)
            return jnp.zeros_like(x)

    diffusion = dataclasses.replace(CONFIG.diffusion, label_dropout=0.5)
    config = dataclasses.replace(CONFIG, run_dir=tmp_path, diffusion=diffusion)
    model = build_model(config, (4, 4, 1), None, 1, 2)
    model = dataclasses.replace(model, network=Remembers())  # type: ignore
    images, context = told_by_one_token(count)
    batch = {"image": images, "cond": np.ones((count, 1), np.float32)}
    batch |= {"context": np.float32(context), "context_mask": np.arange(3) < np.full((count, 1), 2)}
    model.training_losses({}, batch, dj.example_keys(jax.random.key(0), jnp.arange(count)))
    dropped = np.asarray(seen["cond"][:, 0] == 0)
    assert 96 < dropped.sum() < 160
    np.testing.assert_array_equal(seen["context_mask"], batch["context_mask"] & ~dropped[:, None])
    np.testing.assert_array_equal(seen["context"], batch["context"])


def test_label_dropout_is_dropout_of_vectors(tmp_path):
    """With all conditions dropped but one in a thousand, a run learns nothing from them."""
    images, cond = bright_and_dark()
    load = from_arrays(images, cond=cond)
    config = dataclasses.replace(
        CONFIG, diffusion=dataclasses.replace(CONFIG.diffusion, label_dropout=0.999)
    )
    train(dataclasses.replace(config, run_dir=tmp_path / "run"), data=load)
    run = TrainedRun(RunOptions(run_dir=tmp_path / "run"))
    kernel = run.params["cond_dense"]["kernel"]
    fresh = run.model.init().params["cond_dense"]["kernel"]
    np.testing.assert_allclose(kernel, fresh, atol=0.02)
    train(dataclasses.replace(CONFIG, run_dir=tmp_path / "other"), data=load)
    learned = TrainedRun(RunOptions(run_dir=tmp_path / "other")).params["cond_dense"]["kernel"]
    assert np.abs(np.asarray(learned) - np.asarray(fresh))[0].max() > 0.02


def test_data_from_python_are_known_by_their_content(tmp_path):
    images, _ = bright_and_dark()
    config = dataclasses.replace(CONFIG, run_dir=tmp_path / "run")
    train(config, data=from_arrays(images))
    again = train(dataclasses.replace(config, num_steps=50), data=from_arrays(images, name="same"))
    assert again is not None and again.step == 50
    with pytest.raises(RunDirectoryError, match="another configuration"):
        train(config, data=from_arrays(255 - images))
    with pytest.raises(ValueError, match="passed from Python"):
        train(dataclasses.replace(config, data=DataConfig(name="python:data")))


MODULE = """
import numpy as np
from ddpm_jax.data import from_arrays
from ddpm_jax.programs.build import build_model
dots = from_arrays(np.arange(1280).astype(np.uint8).reshape(80, 4, 4, 1))
"""


def test_a_runs_folder_does_not_decide_which_code_is_run(tmp_path, monkeypatch):
    (tmp_path / "my_dots_for_a_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = DataConfig(name="my_dots_for_a_test:dots")
    train(dataclasses.replace(CONFIG, run_dir=tmp_path / "run", data=data))
    with pytest.raises(RunDirectoryError, match="--data-name package.module:function"):
        _ = TrainedRun(RunOptions(run_dir=tmp_path / "run")).train_data
    named = RunOptions(run_dir=tmp_path / "run", data_name=data.name)
    assert len(TrainedRun(named).train_data.images) == 72


def test_a_folder_with_labels_trains_with_classes(tmp_path):
    for name, level in (("dark", 20), ("bright", 230)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(16):
            Image.fromarray(np.full((5, 6), level + i % 5, np.uint8)).save(
                tmp_path / "photos" / name / f"{i}.png"
            )
    data = DataConfig(name="folder", path=tmp_path / "photos", resolution="4x6")
    config = dataclasses.replace(CONFIG, run_dir=tmp_path / "run", num_steps=150, data=data)
    train_folder.train_folder(config)
    run = TrainedRun(RunOptions(run_dir=tmp_path / "run"))
    assert run.model.image_shape == (4, 6, 1) and run.model.num_classes == 2
    for name, number in (("bright", 0), ("dark", 1)):
        np.testing.assert_array_equal(run.labels(3, name), [number] * 3)
        made = run.sample(16, sampler="ddim", num_steps=10, label=number, guidance=1.5)
        assert (made.mean() > 128) == (name == "bright")
    with pytest.raises(ValueError, match="0..1, bright, dark"):
        run.labels(1, "cow")
    assert not train_folder.fitted(
        dataclasses.replace(config, data=dataclasses.replace(data, labels="none"))
    ).network.class_conditional
