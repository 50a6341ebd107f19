"""Sinusoidal embeddings against the formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nn import sinusoidal_embedding
from tests.reference_unet import embed_step


@pytest.mark.parametrize(
    "dim,max_period,more",
    [
        (4, 10_000.0, {}),
        (7, 10_000.0, {"order": "cos_sin"}),
        (128, 10_000.0, {}),
        (128, 10_000.0, {"order": "cos_sin", "shift": 0}),
        (32, 50, {"shift": 0}),
    ],
)
def test_formula(dim, max_period, more):
    """Float32 rounds an angle of up to 999 by at most 3e-5, and its frequency by as much again."""
    t = np.array([0, 1, 17, 500, 999])
    truth = np.stack([embed_step(step, dim, max_period, **more) for step in t])
    got = sinusoidal_embedding(t, dim, max_period, **more)
    np.testing.assert_allclose(got, truth, atol=7e-5, rtol=0)
    np.testing.assert_allclose(got[:3], truth[:3], atol=2e-6, rtol=0)


def test_sines_come_first_and_wavelengths_span_the_period():
    """At t = π/2 the fastest sine is 1 and its cosine 0; the slowest has turned by t / 10000."""
    embedding = np.asarray(sinusoidal_embedding(np.pi / 2, 10))
    np.testing.assert_allclose(embedding[[0, 5]], [1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(embedding[4], np.pi / 2 / 10_000, rtol=1e-6)
    np.testing.assert_array_equal(sinusoidal_embedding(0, 10), [0.0] * 5 + [1.0] * 5)


def test_odd_dim_ends_in_one_zero():
    embedding = np.asarray(sinusoidal_embedding(jnp.arange(1, 4), 9))
    assert embedding.shape == (3, 9)
    np.testing.assert_array_equal(embedding[:, -1], np.zeros(3))
    np.testing.assert_array_equal(embedding[:, :-1], sinusoidal_embedding(jnp.arange(1, 4), 8))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32, jnp.bfloat16, jnp.uint8])
def test_float32_whatever_the_type_of_t(dtype):
    embedding = sinusoidal_embedding(jnp.arange(3, dtype=dtype), 16)
    assert embedding.dtype == jnp.float32
    np.testing.assert_array_equal(embedding, sinusoidal_embedding(jnp.arange(3), 16))


def test_any_shape_and_under_jit():
    t = jnp.arange(6).reshape(2, 3)
    whole = jax.jit(lambda t: sinusoidal_embedding(t, 12))(t)
    assert whole.shape == (2, 3, 12)
    for i, j in np.ndindex(2, 3):
        np.testing.assert_allclose(whole[i, j], sinusoidal_embedding(t[i, j], 12), atol=1e-6)


def test_derivative_in_t():
    """d/dt [sin ωt, cos ωt] = ω [cos ωt, -sin ωt]."""
    t, half = 2.5, 4
    _, tangent = jax.jvp(lambda t: sinusoidal_embedding(t, 2 * half), (t,), (1.0,))
    omega = 10_000.0 ** (-np.arange(half) / (half - 1))
    truth = np.concatenate([omega * np.cos(omega * t), -omega * np.sin(omega * t)])
    np.testing.assert_allclose(tangent, truth, atol=1e-6)


@pytest.mark.parametrize("dim", [-1, 0, 2, 3])
def test_too_small_a_dim_is_refused(dim):
    with pytest.raises(ValueError, match=f"dim >= 4, got dim={dim}"):
        sinusoidal_embedding(jnp.arange(3), dim)


def test_a_period_without_room_is_refused():
    with pytest.raises(ValueError, match="max_period > 1 and finite, got max_period=1.0"):
        sinusoidal_embedding(jnp.arange(3), 8, max_period=1.0)


@pytest.mark.parametrize(
    "more,message", [({"order": "cos"}, "got 'cos'"), ({"shift": 2}, "shift 0 or 1, got 2")]
)
def test_unknown_conventions_are_refused(more, message):
    with pytest.raises(ValueError, match=message):
        sinusoidal_embedding(jnp.arange(3), 8, **more)
