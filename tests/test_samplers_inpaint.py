"""Inpainting against the closed-form conditional of correlated Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.samplers import dpm_solver_pp, inpaint

FULL = dj.linear_schedule()
ALPHA_BAR = np.asarray(FULL.alpha_bar)
MEAN = np.array([0.2, -0.1, 0.3])
ROOT = np.array([[0.5, 0, 0], [0.35, 0.3, 0], [-0.3, 0.2, 0.25]])
COVARIANCE = ROOT @ ROOT.T
KNOWN = 0.9
MASK = jnp.array([True, False, False])


def gaussian_denoise(x, t):
    """E[x_0 | x_t] = m + √ᾱ C (ᾱ C + (1-ᾱ) I)⁻¹ (x_t - √ᾱ m), in C's eigenbasis."""
    values, vectors = (jnp.asarray(v, x.dtype) for v in np.linalg.eigh(COVARIANCE))
    mean, a = jnp.asarray(MEAN, x.dtype)[None], jnp.asarray(ALPHA_BAR)[t][:, None]
    gain = jnp.sqrt(a) * values[None] / (a * values[None] + 1 - a)
    return mean + ((x - jnp.sqrt(a) * mean) @ vectors * gain) @ vectors.T


def conditional():
    """Mean and covariance of the last two coordinates given that the first is KNOWN."""
    gain = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    mean = MEAN[1:] + gain * (KNOWN - MEAN[0])
    return mean, COVARIANCE[1:, 1:] - np.outer(gain, COVARIANCE[0, 1:])


def draw(num_resamples, num_steps, count=1024):
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, num_steps, "trailing"))
    sampler = inpaint(
        dj.ancestral(grid), jnp.array([KNOWN, 0, 0]), MASK, num_resamples=num_resamples
    )
    keys = dj.example_keys(jax.random.key(0), np.arange(count))
    x_T = dj.initial_noise(keys, (3,))
    run = jax.jit(lambda x, keys: dj.sample(sampler, gaussian_denoise, x, keys=keys))
    return np.asarray(run(x_T, keys))


@pytest.mark.slow
def test_resampling_approaches_the_conditional_distribution():
    mean, covariance = conditional()
    errors = []
    for num_resamples in (1, 10):
        got = draw(num_resamples, 150)
        np.testing.assert_array_equal(got[:, 0], np.float32(KNOWN))
        errors.append(np.abs(got[:, 1:].mean(0) - mean).max())
    assert errors[1] < 0.25 * errors[0]
    # 1,024 draws: four standard errors of a mean, and of a variance of 0.1.
    np.testing.assert_allclose(got[:, 1:].mean(0), mean, atol=4 * 0.32 / 32)
    np.testing.assert_allclose(np.cov(got[:, 1:].T), covariance, atol=4 * 0.14 / 32)


def test_the_known_region_is_at_the_level_of_noise_reached():
    """Whatever the sampler does, the known part of x at step t-1 is q(x_{t-1} | x_0)."""
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, 10))
    sampler = inpaint(dj.ddim(grid), jnp.float32(KNOWN), MASK)
    z = jnp.float32(np.random.default_rng(0).standard_normal((2, 3)))
    got = sampler.step(gaussian_denoise, jnp.ones((2, 3)), jnp.array([7, 1]), z, ()).x
    a = np.asarray(grid.alpha_bar)[[6, 0]]
    np.testing.assert_allclose(got[:, 0], np.sqrt(a) * KNOWN + np.sqrt(1 - a) * z[:, 0], rtol=1e-5)
    plain = dj.ddim(grid).step(gaussian_denoise, jnp.ones((2, 3)), jnp.array([7, 1]), None, ()).x
    np.testing.assert_allclose(got[:, 1:], plain[:, 1:], rtol=1e-5)


def test_a_resampled_step_is_step_diffuse_step():
    """Three rounds of a deterministic sampler by hand, with the noise in its documented order."""
    grid = dj.respace(FULL, dj.spaced_timesteps(1000, 10))
    base = dj.ddim(grid)
    sampler = inpaint(base, jnp.float32(KNOWN), MASK, num_resamples=3)
    assert sampler.num_draws == 5
    z = jnp.float32(np.random.default_rng(1).standard_normal((5, 2, 3)))
    t = jnp.full(2, 6)
    a, beta = np.asarray(grid.alpha_bar)[5], np.asarray(grid.beta)[6]

    def one(x, fresh):
        x = base.step(gaussian_denoise, x, t, None, ()).x
        known = np.sqrt(a) * KNOWN + np.sqrt(1 - a) * fresh
        return jnp.where(MASK[None], known, x)

    x = one(jnp.ones((2, 3)), z[0])
    for jump, fresh in [(z[1], z[2]), (z[3], z[4])]:
        x = one(np.sqrt(1 - beta) * x + np.sqrt(beta) * jump, fresh)
    got = sampler.step(gaussian_denoise, jnp.ones((2, 3)), t, z, ()).x
    np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "mask_shape,x_0_shape",
    [((4, 4, 1), (2, 4, 4, 3)), ((2, 4, 4, 1), (4, 4, 3)), ((4, 4, 3), (4, 4, 3))],
)
def test_masks_and_data_of_any_shape_that_fits(mask_shape, x_0_shape):
    rng = np.random.default_rng(0)
    mask, x_0 = rng.random(mask_shape) < 0.5, jnp.float32(rng.uniform(-1, 1, x_0_shape))
    grid = dj.respace(FULL, [0, 999])
    sampler = inpaint(dpm_solver_pp(grid), x_0, jnp.asarray(mask), num_resamples=2)
    keys = dj.example_keys(jax.random.key(0), np.arange(2))
    x_T = dj.initial_noise(keys, (4, 4, 3))
    got = np.asarray(dj.sample(sampler, lambda x, t: 0.5 * x, x_T, keys=keys))
    whole = np.broadcast_to(mask, got.shape)
    np.testing.assert_array_equal(got[whole], np.broadcast_to(x_0, got.shape)[whole])
    assert not np.isclose(got[~whole], np.broadcast_to(x_0, got.shape)[~whole]).all()


@pytest.mark.parametrize(
    "kwargs,words",
    [
        ({"num_resamples": 0}, "num_resamples"),
        ({"mask": jnp.ones(3)}, "bool mask"),
        ({"known": jnp.zeros(3, jnp.uint8)}, "from_pixels"),
        ({"known": FULL}, "known, an array"),  # the schedule is the sampler's own
        ({"sampler": dj.ddim}, "needs sampler, a Sampler"),
    ],
)
def test_bad_calls_are_named(kwargs, words):
    args = {"sampler": dj.ddim(FULL), "known": jnp.zeros(3), "mask": MASK}
    with pytest.raises((ValueError, TypeError), match=words):
        inpaint(**(args | kwargs))


@pytest.mark.parametrize(
    "known,mask",
    [
        *(((8, 8, 3), (8, 8)), ((8, 8, 3), (8, 8, 2)), ((8, 8), (8, 8, 3)), ((5, 8, 8, 3), ())),
        # One known image is that of every sample without its batch axis, [H, W, C].
        *(((1, 8, 8, 3), (8, 8, 3)), ((8, 8, 1), (8, 8, 3)), ((4, 1, 8, 3), ())),
    ],
)
def test_shapes_that_do_not_fit_the_samples_are_refused(known, mask):
    """A mask without its channel axis would be aligned with the wrong axes where sizes agree."""
    sampler = inpaint(dj.ddim(FULL), jnp.zeros(known), jnp.ones(mask, bool))
    keys = dj.example_keys(jax.random.key(0), np.arange(4))
    with pytest.raises(ValueError, match="of the samples' shape"):
        dj.sample(sampler, lambda x, t: 0.5 * x, jnp.zeros((4, 8, 8, 3)), keys=keys)
