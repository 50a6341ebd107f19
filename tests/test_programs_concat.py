"""Runs with an array concatenated to x_t (super-resolution, inpainting, maps), files to samples."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.data import from_arrays
from ddpm_jax.programs.build import build_model
from ddpm_jax.programs.config import DataConfig, DevicesConfig
from ddpm_jax.programs.convert import ToDiffusers, to_diffusers
from ddpm_jax.programs.evaluate import EvaluateConfig, evaluate
from ddpm_jax.programs.inputs import augmented
from ddpm_jax.programs.sample import SampleConfig, sample
from ddpm_jax.programs.shards import read_shards
from ddpm_jax.programs.train import train
from ddpm_jax.programs.trained_run import load_run
from ddpm_jax.programs.training_run import TrainingRun
from tests.test_programs_own_data import CONFIG, own_cache  # noqa: F401 - a fixture for all

pytestmark = pytest.mark.slow


def patterns(count=256, seed=0):
    """Images whose four quarters are grey levels drawn at random."""
    levels = np.random.default_rng(seed).choice([30, 225], (count, 2, 2, 1)).astype(np.uint8)
    return levels.repeat(2, axis=1).repeat(2, axis=2)


class Remembers:
    """A network that keeps its inputs and predicts zeros."""

    def apply(self, variables, x, t, **options):
        self.seen = {"x": x, **options}
        return jnp.zeros_like(x[..., :1])


def remembering(tmp_path, share=0.5, **widths):
    diffusion = dataclasses.replace(CONFIG.diffusion, label_dropout=share)
    config = dataclasses.replace(CONFIG, run_dir=tmp_path, diffusion=diffusion)
    network = Remembers()
    model = build_model(config, (4, 4, 1), None, **widths)
    return dataclasses.replace(model, network=network), network  # type: ignore


@pytest.mark.parametrize("resident", [2.0, 0.0])
def test_samples_are_nearer_to_their_own_array_than_to_others(tmp_path, resident):
    """The target equals the array beside it, which six hundred steps suffice to learn."""
    images = patterns()
    # Pixels and floats in [-1, 1] are the same thing to the network.
    concat = images if resident else np.asarray(dj.from_pixels(images))
    np.savez(tmp_path / "own.npz", images=images, concat=concat)
    config = dataclasses.replace(
        CONFIG,
        run_dir=tmp_path / "run",
        num_steps=600,
        data=DataConfig(name="arrays", path=tmp_path / "own.npz"),
        devices=DevicesConfig(count=1, resident_gib=resident),
    )
    result = train(config)
    assert result is not None and result.step == 600 and result.heldout is not None
    run = load_run(tmp_path / "run")
    assert run.model.concat_features == run.facts["data"]["concat_features"] == 1
    wanted = patterns(8, seed=1)
    np.save(tmp_path / "small.npy", wanted)
    options = SampleConfig(
        run_dir=tmp_path / "run",
        sampler="ddim",
        num_steps=10,
        count=32,
        batch_size=16,
        gif=False,
        concat=tmp_path / "small.npy",
    )
    sample(options)
    (made,) = (tmp_path / "run" / "generated").glob("*concat-small/samples.npz")
    images = np.load(made)["images"]
    distances = np.abs(images[:, None].astype(float) - wanted).mean((2, 3, 4))
    own = distances[np.arange(32), np.arange(32) % 8]
    # Two different patterns are 49 grey levels apart or more, and 98 on average.
    assert own.mean() < 25, own.mean()
    others = distances[np.arange(32), (np.arange(32) + 1) % 8]
    assert own.mean() < 0.3 * others.mean(), (own.mean(), others.mean())
    given = {"sampler": "ddim", "num_steps": 10, "conditions": {"concat": wanted}}
    np.testing.assert_array_equal(run.sample(32, **given, batch_size=16), images)
    as_floats = {**given, "conditions": {"concat": np.asarray(dj.from_pixels(wanted))}}
    np.testing.assert_array_equal(run.sample(32, **as_floats, batch_size=16), images)
    # Held-out data with their own arrays, and with those of others.
    training = TrainingRun(config)
    data = training.heldout_data
    shuffled = data._replace(concat=np.roll(data.concat, 1, axis=0))
    losses = [training.heldout_loss(run.params, some, 256).loss for some in (data, shuffled)]
    assert losses[0] < 0.6 * losses[1], losses
    if not resident:
        return
    for arrays, match in (
        ({"concat": np.ones((2, 4, 4))}, r"needs concat \[N, 4, 4, 1\] .*\(2, 4, 4\)"),
        ({"concat": np.ones((2, 8, 8, 1))}, r"needs concat \[N, 4, 4, 1\]"),
        ({"concat": np.ones((2, 4, 4, 2))}, r"needs concat \[N, 4, 4, 1\]"),
        ({"concat": np.full((2, 4, 4, 1), np.nan)}, "finite concat"),
        ({"images": wanted}, "no array `concat`"),
    ):
        np.savez(tmp_path / "wrong.npz", **arrays)
        with pytest.raises(ValueError, match=rf"--concat .*{match}"):
            sample(dataclasses.replace(options, concat=tmp_path / "wrong.npz"))
    with pytest.raises(ValueError, match=r"needs concat \(1, 4, 4, 1\), .*\(1, 2, 4, 1\)"):
        run.apply_fn(jnp.zeros((1, 4, 4, 1)), jnp.zeros(1, int), concat=jnp.zeros((1, 2, 4, 1)))
    with pytest.raises(ValueError, match="from x_t alone"):
        to_diffusers(ToDiffusers(run_dir=tmp_path / "run"))
    evaluates_with_held_out_arrays(tmp_path, run)
    np.savez(tmp_path / "own.npz", images=patterns())
    with pytest.raises(ValueError, match=r"needs concat \[N, 4, 4, 1\].*has none"):
        _ = load_run(tmp_path / "run").heldout_data


def evaluates_with_held_out_arrays(tmp_path, run):
    """Evaluation gives each sample the array of a held-out image, in turn."""
    count = len(run.heldout_data.images)
    options = EvaluateConfig(run_dir=tmp_path / "run", sampler="ddim", num_steps=10, count=count)
    evaluate(dataclasses.replace(options, bootstrap=0, bits_count=4))
    (report,) = (tmp_path / "run" / "evaluation").glob("*/pixels.json")
    results = json.loads(report.read_text())
    assert results["conditions"]["fingerprint"] == run.heldout_data.fingerprint
    made = np.concatenate(list(read_shards(report.parent, count, (4, 4, 1))))
    assert np.abs(made.astype(float) - run.heldout_data.images).mean() < 25
    assert results["bits_per_dim"]["images"] == 4


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_dropped_examples_get_zeros_and_others_what_they_have(tmp_path, dtype):
    model, network = remembering(tmp_path, cond_features=1, concat_features=2)
    count = 256
    concat = np.random.default_rng(0).integers(1, 255, (count, 4, 4, 2)).astype(dtype)
    batch = {"image": patterns(count), "cond": np.ones((count, 1), np.float32)}
    batch["concat"] = concat.reshape(count, -1)  # as rows, in the memory of a device
    model.training_losses({}, batch, dj.example_keys(jax.random.key(0), jnp.arange(count)))
    beside = np.asarray(network.seen["x"][..., 1:])
    dropped = np.asarray(network.seen["cond"][:, 0] == 0)
    assert 96 < dropped.sum() < 160
    np.testing.assert_array_equal(beside[dropped], 0)
    kept = concat / np.float32(127.5) - 1 if dtype == np.uint8 else concat
    np.testing.assert_allclose(beside[~dropped], kept[~dropped], atol=1e-6)
    model, network = remembering(tmp_path, share=0.0, concat_features=2)
    model.training_losses({}, batch, dj.example_keys(jax.random.key(0), jnp.arange(count)))
    assert (np.asarray(network.seen["x"][..., 1:]) != 0).all()


@pytest.mark.parametrize("kind", ["none", "flip", "pad_crop", "flip_pad_crop", "edm"])
def test_augmentation_moves_the_array_with_its_image(kind):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (64, 8, 6, 2)), jnp.uint8)
    keys = dj.example_keys(jax.random.key(0), jnp.arange(64))
    concat = dj.from_pixels(images)
    x_0, given = augmented(kind, images, {"concat": concat}, keys)
    np.testing.assert_array_equal(given["concat"], x_0)
    moved = np.abs(x_0 - concat).max(axis=(1, 2, 3)) > 0.01
    assert (moved.mean() > 0.3) == (kind != "none")
    assert ("cond" in given) == (kind == "edm")


def test_guidance_is_away_from_zeros_beside_x_t(tmp_path):
    """With x̂_0 = x_t + 0.1 · concat, a scale s gives x_t + 0.1 s · concat."""

    class Adds:
        def apply(self, variables, x, t):
            return x[..., :1] + 0.1 * x[..., 1:]

    model, _ = remembering(tmp_path, concat_features=1)
    diffusion = dataclasses.replace(model.config.diffusion, target="x_0", clip=False)
    config = dataclasses.replace(model.config, diffusion=diffusion)
    model = dataclasses.replace(model, network=Adds(), config=config)
    x, concat = (
        dj.normal_per_example(dj.example_keys(jax.random.key(i), jnp.arange(3)), (4, 4, 1))
        for i in (0, 1)
    )
    for scale in (0.0, 1.0, 3.0):
        denoise = model.guided(scale)({}, None, concat=concat)
        x_0 = dj.types.x_0_of(denoise(x, jnp.full(3, 5)), x)
        np.testing.assert_allclose(x_0, x + 0.1 * scale * concat, atol=1e-5)
    plain = dataclasses.replace(model, concat_features=None)
    with pytest.raises(ValueError, match="takes no concat"):
        plain.guided(1.0)({}, None, concat=concat)(x, jnp.full(3, 5))


@pytest.mark.parametrize(
    ("concat", "match"),
    [
        (np.ones((4, 3, 3)), r"concat \[N, 3, 5, C\] of numbers for 4 images, got float64"),
        (np.ones((4, 5, 3, 1)), r"concat \[N, 3, 5, C\]"),
        (np.ones((5, 3, 5, 1)), "for 4 images"),
        (np.ones((4, 3, 5, 0)), "got float64"),
        (np.full((4, 3, 5, 1), np.inf), "finite concat .* image 0"),
        (np.full((4, 3, 5, 1), "a"), "of .*numbers"),
    ],
)
def test_wrong_arrays_are_refused(concat, match):
    with pytest.raises((ValueError, TypeError), match=rf"from_arrays.*{match}"):
        from_arrays(np.zeros((4, 3, 5, 1), np.uint8), concat=concat)


def test_data_keep_pixels_as_pixels_and_know_their_array():
    images = patterns(8)
    prints = set()
    for concat in (None, images, 255 - images, images.astype(np.float64)):
        data = from_arrays(images, concat=concat, holdout=0)("train")
        prints.add(data.fingerprint)
        if concat is not None:
            assert data.conditions["concat"].dtype == (
                np.uint8 if concat.dtype == np.uint8 else np.float32
            )
    assert len(prints) == 4
