"""What may be done to x̂_0: the dynamic threshold against NumPy's percentiles, and who calls it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax as dj
from ddpm_jax.denoisers.thresholds import dynamic_threshold, threshold_x_0

RNG = np.random.default_rng(0)
WIDE = 2.0 * RNG.standard_normal((4, 6, 6, 3))
SCHEDULE = dj.linear_schedule(50, 0.002, 0.4)


def reference(x, percentile):
    rows = []
    for row in x:
        s = max(np.percentile(np.abs(row), percentile), 1.0)
        rows.append(np.clip(row, -s, s) / s)
    return np.stack(rows)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.5, 100.0])
@pytest.mark.parametrize("shape", [(4, 6, 6, 3), (4, 108), (432,)], ids=str)
def test_it_equals_numpys_percentile_in_each_example(percentile, shape):
    x = WIDE.reshape(shape)
    got = dynamic_threshold(percentile)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, reference(x, percentile), rtol=1e-5, atol=1e-6)
    assert np.abs(got).max() <= 1.0


def test_it_leaves_alone_what_lies_inside():
    """Even where the percentile is far below 1: it never stretches."""
    inside = jnp.asarray(RNG.uniform(-1, 1, (3, 5, 5, 1)), jnp.float32).at[0].multiply(0.01)
    np.testing.assert_array_equal(dynamic_threshold(80.0)(inside), inside)


def test_examples_have_limits_of_their_own():
    x = jnp.asarray(WIDE, jnp.float32)
    threshold = dynamic_threshold(95.0)
    np.testing.assert_array_equal(threshold(x.at[1].multiply(9.0))[2], threshold(x)[2])
    np.testing.assert_allclose(threshold(x)[1:2], threshold(x[1:2]), rtol=1e-6)


def test_the_top_percentile_rescales_and_the_others_clip():
    """At 100 nothing is clipped: directions are kept; below, the largest meet at ±1."""
    x = jnp.asarray(WIDE, jnp.float32)
    whole = dynamic_threshold(100.0)(x)
    np.testing.assert_allclose(whole[0] * np.abs(WIDE[0]).max(), WIDE[0], rtol=1e-4, atol=1e-5)
    saturated = np.abs(dynamic_threshold(90.0)(x)[0]) == 1.0
    assert saturated.sum() == 11  # of 108: ranks 97 to 107, the limit being at 96.3


def test_the_reverse_step_and_the_denoiser_use_it():
    x_t, t = jnp.asarray(WIDE, jnp.float32), jnp.array([0, 10, 30, 49])
    threshold = dynamic_threshold(90.0)

    def apply_fn(x_t, t):
        return jnp.cos(3 * x_t)

    x_0_hat = dj.predict_x_0(SCHEDULE, apply_fn(x_t, t), x_t, t, target="epsilon")
    wanted = reference(np.asarray(x_0_hat, np.float64), 90.0)
    step = dj.p_mean_variance(SCHEDULE, apply_fn(x_t, t), x_t, t, clip=threshold)
    np.testing.assert_allclose(step.x_0_hat, wanted, rtol=1e-4, atol=1e-5)
    mean = dj.posterior_mean(SCHEDULE, jnp.asarray(wanted, jnp.float32), x_t, t)
    np.testing.assert_allclose(step.mean, mean, rtol=1e-4, atol=1e-5)
    denoise = jax.jit(dj.make_denoiser(SCHEDULE, apply_fn, clip=threshold))
    np.testing.assert_allclose(denoise(x_t, t), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "clip,limits",
    [
        (True, (-1, 1)),
        (np.True_, (-1, 1)),
        (2.0, (-2, 2)),
        (2, (-2, 2)),
        (np.float32(0.5), (-0.5, 0.5)),
        ((0, 1), (0, 1)),
        ([-2.0, 2.5], (-2, 2.5)),
        (False, (-np.inf, np.inf)),
        (None, (-np.inf, np.inf)),
    ],
    ids=str,
)
def test_what_clip_may_be(clip, limits):
    x = jnp.array([[-3.0, -0.7, 0.2, 1.5, 3.0]])
    np.testing.assert_array_equal(threshold_x_0(x, clip), np.clip(x, *limits))
    denoise = dj.make_denoiser(SCHEDULE, lambda x_t, t: x_t, target="x_0", clip=clip)
    np.testing.assert_array_equal(denoise(x, 3), np.clip(x, *limits))
    step = dj.p_mean_variance(SCHEDULE, x, x, 3, target="x_0", clip=clip)
    np.testing.assert_array_equal(step.x_0_hat, np.clip(x, *limits))


def test_a_threshold_that_was_not_made_is_refused():
    denoise = dj.make_denoiser(SCHEDULE, lambda x_t, t: x_t, target="x_0", clip=dynamic_threshold)
    with pytest.raises(TypeError, match="clip=dynamic_threshold\\(99.5\\)"):
        denoise(jnp.ones((2, 3)), 3)
    with pytest.raises(ValueError, match="no fraction"):
        dynamic_threshold(0.995)


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.1, float("nan")])
def test_percentiles_that_are_none_are_refused(percentile):
    with pytest.raises(ValueError, match="dynamic_threshold needs"):
        dynamic_threshold(percentile)
