import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.devices.batched import RowSplit
from ddpm_jax.programs.chunks import chunk_length
from ddpm_jax.programs.config import SamplerOptions
from ddpm_jax.programs.console import run_program
from ddpm_jax.programs.generator import Generator, Stopped
from ddpm_jax.programs.training_run import TrainingRun
from tests.small_run import CONFIG

FULL = dj.linear_schedule()
SHAPE = (4, 4, 3)


def denoiser_of(params, labels):
    def denoise(x_t, t):
        shift = 0.0 if labels is None else dj.types.bcast_right(labels / 10.0, x_t.ndim)
        return jnp.clip(
            jnp.tanh(params * x_t) - 0.0003 * dj.types.bcast_right(t, x_t.ndim) + shift, -1, 1
        )

    return denoise


def make(num_steps=12, devices=None, sampler=dj.ancestral, **kwargs):
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, num_steps))
    return Generator(sampler(grid), denoiser_of, SHAPE, devices=devices, **kwargs)


@pytest.fixture(scope="module")
def reference():
    return make()(jnp.float32(1.2), seed=3, count=20, batch_size=20).images


@pytest.mark.parametrize("batch_size,devices", [(20, 1), (7, 1), (64, 8), (3, 4), (8, 8)])
def test_same_images_whatever_batch_and_devices(reference, batch_size, devices):
    generator = make(devices=jax.devices()[:devices])
    got = generator(jnp.float32(1.2), seed=3, count=20, batch_size=batch_size).images
    assert got.shape == (20, *SHAPE) and got.dtype == np.uint8
    assert np.abs(got.astype(int) - reference.astype(int)).max() <= 1


def test_same_images_whatever_the_count(reference):
    got = make()(jnp.float32(1.2), seed=3, count=5).images
    assert np.abs(got.astype(int) - reference[:5].astype(int)).max() <= 1


def test_no_more_devices_than_images(reference, monkeypatch):
    """Three images on eight devices take three, and one image at a time takes one."""
    used = []
    init = RowSplit.__init__
    monkeypatch.setattr(
        RowSplit, "__init__", lambda self, devices: used.append(len(devices)) or init(self, devices)
    )
    generator = make(devices=jax.devices()[:8])
    for options in ({"count": 3}, {"count": 2, "batch_size": 1}, {"count": 9}):
        got = generator(jnp.float32(1.2), seed=3, **options).images
        assert np.abs(got.astype(int) - reference[: len(got)].astype(int)).max() <= 1
    assert used == [3, 1, 8]


def test_another_seed_gives_other_images(reference):
    assert (make()(jnp.float32(1.2), seed=4, count=20).images != reference).mean() > 0.5


def test_equals_plain_sampling(reference):
    keys = dj.example_keys(jax.random.key(3), jnp.arange(20, dtype=jnp.uint32))
    sampler = dj.ancestral(dj.respace(FULL, dj.spaced_timesteps(1000, 12)))
    x = dj.sample(
        sampler, denoiser_of(jnp.float32(1.2), None), dj.initial_noise(keys, SHAPE), keys=keys
    )
    assert np.abs(np.asarray(dj.to_pixels(x)).astype(int) - reference.astype(int)).max() <= 1


def test_frames_go_from_noise_to_the_images():
    made = make(num_steps=12, target_chunks=4)(
        jnp.float32(1.2), seed=3, count=20, batch_size=8, frames_of=6
    )
    assert made.frames is not None and made.frames.shape == (5, 6, *SHAPE)
    np.testing.assert_array_equal(made.frames[-1], made.images[:6])
    assert made.frames[0].astype(float).std() > 80  # standard normal noise, clipped: 0.72 · 127.5


def test_progress_adds_up_and_stopping_stops():
    done = []
    make()(jnp.float32(1.0), seed=0, count=10, batch_size=4, on_progress=done.append)
    assert sum(done) == 10 * 12
    with pytest.raises(Stopped):
        make()(jnp.float32(1.0), seed=0, count=4, should_stop=lambda: True)


def test_labels_reach_their_images():
    labels = np.array([0, 5, 0, 5, 5])
    for batch in (5, 2):
        made = make(sampler=dj.ddim)(
            jnp.float32(0.0), seed=0, count=5, batch_size=batch, labels=labels
        )
        means = made.images.reshape(5, -1).mean(1)
        assert (means[labels == 5] > means[labels == 0].max() + 30).all()


def test_chunk_length_divides():
    assert [chunk_length(n, 40) for n in (1000, 200, 50, 7, 1)] == [25, 5, 1, 1, 1]
    assert chunk_length(97, 10) == 1 and chunk_length(100, 10) == 10


@pytest.mark.parametrize(
    "arguments,words",
    [
        ({"count": 0}, "count, a whole number"),
        ({"count": 4, "batch_size": 0}, "batch_size"),
        ({"count": 4, "start": 2**32}, "32 bits"),
        ({"count": 4, "labels": np.zeros(3, int)}, "labels with one row per image"),
        ({"count": 4, "conditions": {"cond": np.zeros((3, 2))}}, "cond with one row per image"),
    ],
)
def test_bad_values_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        make()(jnp.float32(1.0), seed=0, **arguments)


def test_images_with_nan_do_not_become_black_ones():
    with pytest.raises(ValueError, match="NaN or ±∞, which would become black"):
        make(sampler=dj.ddim, num_steps=2)(jnp.float32(jnp.nan), seed=0, count=2)


@pytest.fixture
def other_draws():
    """JAX as the environment may set it: with each setting every draw has other values."""
    settings = {
        "jax_threefry_partitionable": False,
        "jax_random_seed_offset": 5,
        "jax_enable_x64": True,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_a_seed_means_the_same_whatever_jax_is_set_to(other_draws, monkeypatch):
    pinned = []

    def program(config):
        pinned.append(jax.config.jax_enable_x64)
        for opened in (lambda: dj.load_run("digits", num_devices=1), lambda: TrainingRun(CONFIG)):
            jax.config.update("jax_threefry_partitionable", False)
            jax.config.update("jax_random_seed_offset", 5)
            opened()
            pinned.append(
                not jax.config.jax_threefry_partitionable or jax.config.jax_random_seed_offset != 0
            )

    monkeypatch.setattr(sys, "argv", ["program"])
    run_program(program, SamplerOptions(), None)
    assert pinned == [False] * 3
