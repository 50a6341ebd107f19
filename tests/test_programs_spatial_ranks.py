"""Runs on signals [N, L, C] and volumes [N, D, H, W, C]: the same program as for images."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
import train_folder
from ddpm_jax.data import from_arrays, load_arrays, prepare_images
from ddpm_jax.programs.build import build_model
from ddpm_jax.programs.config import DataConfig, DevicesConfig, ReportConfig
from ddpm_jax.programs.convert import ToDiffusers, to_diffusers
from ddpm_jax.programs.evaluate import EvaluateConfig, evaluate
from ddpm_jax.programs.generator import Generator
from ddpm_jax.programs.pictures import need_pictures
from ddpm_jax.programs.run_directory import RunDirectoryError
from ddpm_jax.programs.sample import SampleConfig, sample
from ddpm_jax.programs.train import train
from ddpm_jax.programs.trained_run import load_run
from ddpm_jax.samplers import ancestral
from tests.reference_unet import random_params
from tests.test_programs_own_data import CONFIG, own_cache  # noqa: F401 - a fixture for all

pytestmark = pytest.mark.slow

SHAPES = {1: (8, 2), 3: (4, 4, 4, 1)}


def events(rank, count=64):
    """Ramps up or down along the last axis of space, of either sign, with little noise."""
    rng = np.random.default_rng(rank)
    shape = SHAPES[rank]
    ramp = np.linspace(-90, 90, shape[-2])[:, None]
    sign = rng.choice([-1, 1], (count, *(1,) * len(shape)))
    values = 127.5 + sign * ramp + rng.normal(0, 4, (count, *shape))
    return np.clip(values, 0, 255).astype(np.uint8)


def keys_of(count):
    return dj.example_keys(jax.random.key(0), jnp.arange(count))


def flat(kernel):
    """A kernel with one more, last axis of space: on events of length one there, the same map."""
    if kernel.ndim < 3:
        return kernel
    wide = np.zeros((*kernel.shape[:-2], 3, *kernel.shape[-2:]), np.float32)
    wide[..., 1, :, :] = kernel
    return wide


@pytest.mark.parametrize("process", ["ddpm", "flow"])
@pytest.mark.parametrize("rank", [1, 2])
def test_losses_and_samples_are_those_of_data_with_an_axis_of_one_more(tmp_path, rank, process):
    """Signals [L, C] are images [L, 1, C], and those volumes [L, 1, 1, C], to every part."""
    shape = {1: (8, 2), 2: (8, 4, 2)}[rank]
    network = dataclasses.replace(CONFIG.network, attention_resolutions=(8,))
    diffusion = CONFIG.diffusion
    if process == "flow":
        diffusion = dataclasses.replace(diffusion, process="flow", target="velocity")
    config = dataclasses.replace(CONFIG, run_dir=tmp_path, network=network, diffusion=diffusion)
    widths = {"concat_features": 1}
    low = build_model(config, shape, None, **widths)
    high = build_model(config, (*shape[:-1], 1, shape[-1]), None, **widths)
    x = np.zeros((1, *shape[:-1], shape[-1] + 1), np.float32)
    params = random_params(low.network, x, 0)
    pairs = [(low, params), (high, jax.tree.map(flat, params))]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, *shape)).astype(np.uint8)
    concat = rng.normal(size=(6, *shape[:-1], 1)).astype(np.float32)
    t = jnp.array([0, 1, 5, 9, 15, 19])
    found = []
    for model, weights in pairs:
        x_0 = images.reshape(6, *model.image_shape)
        beside = {"concat": concat.reshape(6, *model.image_shape[:-1], 1)}
        batch = {"image": x_0, "index": np.arange(6), **beside}
        training = jax.jit(model.training_losses)(weights, batch, keys_of(6))
        heldout = jax.jit(model.heldout_losses)(weights, x_0, beside, t, keys_of(6))
        generator = Generator(ancestral(model.schedule), model.guided(1.0), model.image_shape)
        made = generator(weights, seed=1, count=6, conditions=beside, frames_of=6)
        assert made.images.shape == x_0.shape
        found.append((training, heldout, made.images.reshape(images.shape).astype(int)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=2e-4)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=2e-4)
    assert np.std(found[0][0]) > 0.01
    assert np.abs(found[0][2] - found[1][2]).max() <= 1


@pytest.mark.parametrize("rank", [1, 3])
def test_a_run_from_file_to_samples(tmp_path, rank):
    data = events(rank)
    np.save(tmp_path / "own.npy", data)
    report = dataclasses.replace(CONFIG.report, sample_every=300, sample_count=4, sample_steps=4)
    config = dataclasses.replace(
        CONFIG,
        run_dir=tmp_path / "run",
        num_steps=600,
        data=DataConfig(name="arrays", path=tmp_path / "own.npy", spatial_rank=rank),
        report=report,
    )
    result = train(config)
    assert result is not None and result.heldout is not None
    assert result.heldout.bits_per_dim < 8 and result.heldout.loss < 0.5
    assert all(path.is_file() for path in result.pictures)
    run = load_run(tmp_path / "run")
    assert run.model.image_shape == SHAPES[rank] and run.model.network.spatial_rank == rank
    options = SampleConfig(
        run_dir=tmp_path / "run", sampler="ddim", num_steps=10, count=32, batch_size=16
    )
    sample(options)
    (made,) = (tmp_path / "run" / "generated").glob("*/samples.npz")
    assert (made.parent / "grid.png").is_file() and (made.parent / "denoising.gif").is_file()
    samples = np.load(made)["images"]
    assert samples.shape == (32, *SHAPES[rank]) and samples.dtype == np.uint8
    np.testing.assert_array_equal(
        samples, run.sample(32, sampler="ddim", num_steps=10, batch_size=16)
    )
    # Ramps of both signs, far from the flat mean of the data.
    ramp = np.linspace(-1, 1, SHAPES[rank][-2])[:, None]
    slopes = ((samples - 127.5) * ramp).mean(tuple(range(1, data.ndim))) / np.mean(90 * ramp**2)
    assert (np.abs(slopes) > 0.6).mean() > 0.8 and -1 < np.sign(slopes).mean() < 1, slopes
    with pytest.raises(RunDirectoryError, match="--format png draws images"):
        sample(dataclasses.replace(options, format="png"))
    with pytest.raises(RunDirectoryError, match=r"inpaint draws images .*ddpm-jax likelihood"):
        need_pictures(run, "inpaint")
    with pytest.raises(ValueError, match="from x_t alone"):
        to_diffusers(ToDiffusers(run_dir=tmp_path / "run"))
    measure = EvaluateConfig(
        run_dir=tmp_path / "run", sampler="ddim", num_steps=10, bootstrap=0, bits_count=4
    )
    with pytest.raises(ValueError, match="--features pixels"):
        evaluate(dataclasses.replace(measure, features="inception"))
    evaluate(measure)
    (written,) = (tmp_path / "run" / "evaluation").glob("*/pixels.json")
    results = json.loads(written.read_text())
    assert results["features"] == "pixels" and results["bits_per_dim"]["bits_per_dim"] < 8
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, spatial_rank=2))
    with pytest.raises((ValueError, RunDirectoryError), match="own.npy|spatial-rank: 1 → 2"):
        train(other)


@pytest.mark.parametrize("rank", [1, 3])
def test_resumed_and_split_over_devices_a_run_is_the_same(tmp_path, rank):
    """With an array beside x_t, some of which is dropped, and mirrored with its image."""
    images = events(rank)
    concat = images if rank == 3 else images / np.float32(255)
    load = from_arrays(images, concat=concat, spatial_rank=rank)
    config = dataclasses.replace(
        CONFIG,
        num_steps=12,
        data=DataConfig(augment="flip"),
        report=ReportConfig(
            log_every=0,
            heldout_every=0,
            sample_every=0,
            checkpoint_every=0,
            final_count=2,
            final_steps=2,
        ),
    )

    def params_after(name, *configs):
        for one in configs:
            train(dataclasses.replace(one, run_dir=tmp_path / name), data=load)
        run = load_run(tmp_path / name, ema=False)
        assert run.step == 12
        return run.params

    whole = params_after("whole", config)
    resumed = params_after("resumed", dataclasses.replace(config, num_steps=5), config)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    # Volumes are streamed from the host, signals stay on the devices.
    devices = DevicesConfig(backend="shard_map", count=8, resident_gib=2.0 if rank == 1 else 0.0)
    split = params_after("split", dataclasses.replace(config, devices=devices))
    # Biases before a normalisation have no gradient but rounding, of which Adam makes 1e-5.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), whole, split)
    start = load_run(tmp_path / "split").model.init().params
    assert np.abs(whole["conv_in"]["kernel"] - start["conv_in"]["kernel"]).max() > 0.01


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_augmentation_mirrors_the_last_axis_of_space_and_shifts_all(rank):
    shape = {1: (16, 2), 2: (8, 6, 2), 3: (6, 8, 10, 1)}[rank]
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (32, *shape)), jnp.uint8)
    x = dj.from_pixels(images)
    got = np.asarray(prepare_images(images, keys_of(32), flip=True))
    mirrored = np.asarray(x)[..., ::-1, :]
    same = [(a == b).all() for a, b in zip(got, np.asarray(x), strict=True)]
    other = [(a == b).all() for a, b in zip(got, mirrored, strict=True)]
    assert 6 < sum(same) < 26 and np.logical_xor(same, other).all()
    shifted = np.asarray(prepare_images(images, keys_of(32), flip=False, pad_crop=True))
    padded = np.pad(x, ((0, 0), *((4, 4),) * rank, (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, shape[:-1], tuple(range(1, rank + 1))
    )
    windows = np.moveaxis(windows, rank + 1, -1).reshape(32, -1, *shape)
    hits = (windows == shifted[:, None]).reshape(32, windows.shape[1], -1).all(-1)
    assert (hits.sum(1) == 1).all()
    corners = np.stack(np.unravel_index(hits.argmax(1), (9,) * rank))
    assert (corners.max(1) - corners.min(1) >= 4).all()


def test_what_suits_images_only_is_refused(tmp_path):
    config = dataclasses.replace(CONFIG, run_dir=tmp_path, data=DataConfig(augment="edm"))
    for rank in (1, 3):
        with pytest.raises(ValueError, match="--data.augment edm rotates .*flip"):
            build_model(config, SHAPES[rank], None)


def test_arrays_are_what_their_rank_says(tmp_path):
    signals, volumes = events(1), events(3)
    for rank, whole in ((1, signals), (3, volumes)):
        np.savez(tmp_path / "own.npz", images=whole)
        data = load_arrays("train", path=tmp_path / "own.npz", spatial_rank=rank, holdout=0.5)
        assert data.spatial_rank == rank and data.images.shape == (32, *SHAPES[rank])
        with pytest.raises(ValueError, match="--data.spatial-rank 1 signals"):
            load_arrays("train", path=tmp_path / "own.npz", spatial_rank=4 - rank)
    assert from_arrays(signals[..., 0], spatial_rank=1)("train").images.shape[1:] == (8, 1)
    assert from_arrays(volumes[..., 0], spatial_rank=3)("train").images.shape[1:] == (4, 4, 4, 1)
    # Three axes are grey images unless something else is said.
    assert from_arrays(signals)("train").images.shape[1:] == (8, 2, 1)
    for rank in (0, 4, "1", None):
        with pytest.raises(ValueError, match="spatial_rank 1 .signals., 2"):
            from_arrays(signals, spatial_rank=rank)
    with pytest.raises(TypeError, match="uint8"):
        from_arrays(signals.astype(np.float32), spatial_rank=1)


def test_the_preset_for_own_data_attends_at_a_quarter_of_arrays(tmp_path):
    np.save(tmp_path / "own.npy", np.zeros((20, 24, 3), np.uint8))
    data = DataConfig(name="arrays", path=tmp_path / "own.npy", spatial_rank=1)
    config = dataclasses.replace(train_folder.CONFIG, run_dir=tmp_path / "run", data=data)
    assert train_folder.fitted(config).network.attention_resolutions == (6,)


def test_ancestral_samples_of_an_exact_denoiser_have_the_covariance_of_the_signals():
    """A Gaussian process of unit length scale: x̂_0 = Σ s (s² Σ + n²)^-1 x_t is exact."""
    schedule, length = dj.cosine_schedule(200), 6
    where = np.arange(length)
    covariance = 0.04 * np.exp(-0.5 * (where[:, None] - where) ** 2)
    signal, noise = schedule.signal_scale, schedule.noise_scale

    def denoise(x, t):
        s, n = (jnp.asarray(scale)[t][:, None, None] for scale in (signal, noise))
        inner = jnp.linalg.inv(s**2 * covariance[None] + n**2 * jnp.eye(length)[None])
        return jnp.einsum("ij,bjk,bkc->bic", covariance, s * inner, x)

    count = 4000
    generator = Generator(ancestral(schedule), lambda params, labels: denoise, (length, 1))
    made = generator({}, seed=0, count=count, batch_size=count).images
    got = np.cov(made[..., 0].T / 127.5 - 1)
    error = 4 * 0.04 * np.sqrt(2 / count)  # four standard errors of a variance
    np.testing.assert_allclose(got, covariance, atol=error + 0.002)
