"""Geometric augmentation: what each number of its vector does, how often, and what it leaves."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

import ddpm_jax as dj
from ddpm_jax.data.augment import AUGMENT_FEATURES, SHIFT, augment_geometry, transform_image
from ddpm_jax.keys import split_each
from ddpm_jax.programs.build import build_model
from ddpm_jax.programs.config import DataConfig, DiffusionConfig, NetworkConfig, TrainConfig

IMAGE = jax.random.uniform(jax.random.key(0), (8, 6, 2))
SQUARE = jax.random.uniform(jax.random.key(1), (8, 8, 1))


def vector(**values):
    names = ("mirror", "flip", "scale", "cos_1", "sin", "stretch_x", "stretch_y", "right", "down")
    return jnp.array([values.get(name, 0.0) for name in names], jnp.float32)


@pytest.mark.parametrize(
    "image,how,expected",
    [
        (IMAGE, {}, IMAGE),
        (IMAGE, {"mirror": 1.0}, IMAGE[:, ::-1]),
        (IMAGE, {"flip": 1.0}, IMAGE[::-1]),
        (IMAGE, {"mirror": 1.0, "flip": 1.0}, IMAGE[::-1, ::-1]),
        # y points down: a positive angle turns right to down, which np.rot90 calls -1.
        (SQUARE, {"cos_1": -1.0, "sin": 1.0}, jnp.rot90(SQUARE, -1)),
        (SQUARE, {"right": 1.0}, jnp.pad(SQUARE, ((0, 0), (1, 0), (0, 0)), mode="reflect")[:, :8]),
        (SQUARE, {"down": -2.0}, jnp.pad(SQUARE, ((0, 2), (0, 0), (0, 0)), mode="reflect")[2:]),
    ],
)
def test_mirrors_quarter_turns_and_whole_pixels_are_exact(image, how, expected):
    assert SHIFT * 8 == 1
    np.testing.assert_allclose(transform_image(image, vector(**how)), expected, atol=1e-6)


@pytest.mark.parametrize("scale,x,y", [(5.0, 0, 0), (0, 5.0, 0), (0, 0, 5.0), (-2.0, 1.5, -2.5)])
def test_scale_and_stretch_are_the_affine_map(scale, x, y):
    """Against SciPy's resampling with the matrix from an eigendecomposition."""
    angle, length = np.arctan2(y, x) / 2, np.hypot(x, y)
    axes = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = 2 ** (scale / 5) * axes @ np.diag([2 ** (length / 5), 2 ** (-length / 5)]) @ axes.T
    inverse = np.linalg.inv(forward)[::-1, ::-1]  # rows first
    centre = np.full(2, 3.5)
    image = np.asarray(SQUARE[..., 0], np.float64)
    truth = ndimage.affine_transform(
        image,
        inverse,
        centre - inverse @ centre,
        order=1,
        mode="mirror",
    )
    how = vector(scale=scale, stretch_x=x, stretch_y=y)
    np.testing.assert_allclose(transform_image(SQUARE, how)[..., 0], truth, atol=1e-5)


def test_how_often_and_that_a_zero_vector_is_an_unchanged_image():
    count = 4000
    images = jnp.tile(IMAGE[None], (count, 1, 1, 1))
    keys = jax.random.split(jax.random.key(3), count)
    changed, how = jax.jit(augment_geometry)(images, keys)
    assert how.shape == (count, AUGMENT_FEATURES)
    used = np.asarray(how != 0)
    rates = used[:, [0, 1, 2, 4, 5, 7]].mean(axis=0)
    np.testing.assert_allclose(rates, [0.5, *[0.12] * 5], atol=0.03)
    for name, column in {"scale": 2, "right": 7, "down": 8}.items():
        values = np.asarray(how[:, column])[used[:, column]]
        assert abs(values.std() - 1) < 0.12, name
    alone = ~used.any(axis=1)
    assert alone.sum() > 500
    np.testing.assert_array_equal(changed[alone], images[alone])
    assert np.abs(changed - images)[~alone].max(axis=(1, 2, 3)).min() > 1e-3
    # Each image by its own key, wherever it stands.
    some, _ = jax.jit(augment_geometry)(images[:3], keys[7:10])
    np.testing.assert_allclose(some, changed[7:10], atol=1e-6)


class Remembers:
    """A network that predicts zeros and keeps what it was conditioned on."""

    def apply(self, variables, x, t, cond=None, dropout_keys=None):
        self.x, self.cond = x, cond
        return jnp.zeros_like(x)


@pytest.mark.slow
@pytest.mark.parametrize("features", [None, 2])
def test_training_tells_the_network_how_and_sampling_says_not_at_all(features):
    """The data's own vectors come first and are dropped; the augmentation's never are."""
    count, network = 64, Remembers()
    config = TrainConfig(
        run_dir=Path("unused"),
        num_steps=1,
        batch_size=count,
        data=DataConfig(augment="edm"),
        network=NetworkConfig(
            channels=8, channel_multipliers=(1,), attention_resolutions=(), num_groups=4
        ),
        diffusion=DiffusionConfig(num_timesteps=10, beta_end=0.4, label_dropout=0.5),
    )
    model = build_model(config, (8, 8, 1), None, features)
    assert model.network.cond_features == AUGMENT_FEATURES + (features or 0)
    model = dataclasses.replace(model, network=network)
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
    batch = {"image": images, "index": np.arange(count)}
    if features:
        batch["cond"] = np.ones((count, features), np.float32)
    keys = dj.example_keys(jax.random.key(0), jnp.arange(count))
    model.training_losses({}, batch, keys)
    key_t, key_noise, key_augment, *_ = split_each(keys, 5)
    x_0, how = augment_geometry(dj.from_pixels(images), key_augment)
    noise, t = dj.normal_per_example(key_noise, (8, 8, 1)), dj.uniform_timesteps(key_t, 10)
    x_t = dj.q_sample(model.schedule, x_0, t, noise)
    np.testing.assert_allclose(network.x, x_t, atol=1e-6)
    np.testing.assert_array_equal(network.cond[:, -AUGMENT_FEATURES:], how)
    if not features:
        model.denoiser_of({}, None)(x_t, t)
        assert network.cond is None
        return
    dropped = np.asarray(network.cond[:, 0] == 0)
    assert 16 < dropped.sum() < 48 and (how[dropped] != 0).any(axis=1).sum() > 4
    model.denoiser_of({}, None, cond=jnp.ones((count, 2)))(x_t, t)
    assert network.cond.shape == (count, 11)
    assert (network.cond[:, :2] == 1).all() and (network.cond[:, 2:] == 0).all()
