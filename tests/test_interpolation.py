import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.samplers import lerp, slerp


def pair(seed=0, shape=(3, 4, 5, 2)):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape).astype(np.float32) for _ in range(2))


def norms(x):
    return np.linalg.norm(np.asarray(x, np.float64).reshape(len(x), -1), axis=1)


def angles(a, b):
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (a, b))
    return np.arccos(np.sum(a * b, axis=1) / (norms(a) * norms(b)))


def slerp_64(a, b, f):
    """The textbook formula, in float64, example by example."""
    rows = []
    for x, y in zip(np.asarray(a, np.float64), np.asarray(b, np.float64), strict=True):
        theta = np.arccos(np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y))
        rows.append((np.sin((1 - f) * theta) * x + np.sin(f * theta) * y) / np.sin(theta))
    return np.stack(rows)


@pytest.mark.parametrize("f", [-0.3, 0.0, 0.2, 0.5, 1.0])
def test_slerp_is_the_textbook_formula_and_symmetric(f):
    a, b = pair()
    np.testing.assert_allclose(slerp(a, b, f), slerp_64(a, b, f), rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(slerp(a, b, f), slerp(b, a, 1 - f), rtol=1e-6, atol=1e-6)


def test_each_example_has_its_own_fraction_and_angle():
    a, b = pair()
    f = np.array([0.1, 0.5, 0.9], np.float32)
    for mix in (lerp, slerp):
        rows = [mix(a[i : i + 1], b[i : i + 1], f[i])[0] for i in range(3)]
        np.testing.assert_allclose(mix(a, b, f), np.stack(rows), rtol=1e-6, atol=1e-6)


def test_between_vectors_of_one_norm_slerp_keeps_it_and_divides_the_angle():
    a, b = (7.0 * x / norms(x)[:, None, None, None] for x in pair(1))
    a, b = a.astype(np.float32), b.astype(np.float32)
    mixed = slerp(a, b, 0.25)
    np.testing.assert_allclose(norms(mixed), 7.0, rtol=1e-6)
    np.testing.assert_allclose(angles(a, mixed), 0.25 * angles(a, b), rtol=1e-5)
    assert (norms(lerp(a, b, 0.5)) < 6.0).all()


@pytest.mark.parametrize("f", [0.0, 0.3, 1.0])
def test_parallel_vectors_are_mixed_along_the_line(f):
    a, _ = pair()
    np.testing.assert_allclose(slerp(a, 3 * a, f), (1 + 2 * f) * a, rtol=1e-6)


def test_a_zero_vector_divides_nothing_by_zero():
    a, _ = pair()
    np.testing.assert_allclose(slerp(a, 0 * a, 0.0), a, rtol=1e-6)
    np.testing.assert_allclose(slerp(0 * a, a, 0.0), 0 * a, atol=1e-6)


@pytest.mark.parametrize("theta", [1e-4, 1e-3, 1e-2])
def test_small_angles_keep_their_digits_in_float32(theta):
    """The cosine of 1e-4 rounds to 1, where an arc cosine sees no angle at all.

    Far outside 0..1 the angle tells: the way goes on round the circle, not along the line.
    """
    a = np.array([[1.0, 0.0]], np.float32)
    b = np.array([[np.cos(theta), np.sin(theta)]], np.float32)
    mixed = np.asarray(slerp(a, b, 0.25), np.float64)
    np.testing.assert_allclose(np.arctan2(mixed[0, 1], mixed[0, 0]), theta / 4, rtol=1e-5)
    far = slerp(a, b, 1.5 / theta)
    np.testing.assert_allclose(far, [[np.cos(1.5), np.sin(1.5)]], atol=2e-3)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_derivatives_of_parallel_vectors_are_those_of_the_line(scale):
    a, _ = pair()
    for f in (0.0, 0.3, 1.0):
        by_a, by_b = jax.grad(lambda x, y, f=f: slerp(x, y, f).sum(), (0, 1))(a, scale * a)
        # d slerp = (1-f) da + f db, plus what turns a and b apart, which is of second order.
        np.testing.assert_allclose(by_a, (1 - f) * np.ones_like(a), atol=1e-5)
        np.testing.assert_allclose(by_b, f * np.ones_like(a), atol=1e-5)


def test_other_shapes_are_refused():
    for mix in (lerp, slerp):
        with pytest.raises(ValueError, match="one shape"):
            mix(jnp.ones((2, 3)), jnp.ones((1, 3)), 0.5)


@pytest.mark.parametrize("f", [0.25, 0.5, 2.0])
@pytest.mark.parametrize("theta", [1e-3, 0.01, 0.018, 0.02, 0.3])
def test_small_angles_keep_the_norm_too(theta, f):
    """On both sides of where the series takes over, 0.0186 in float32."""
    a = np.array([[1.0, 0.0]], np.float32)
    b = np.array([[np.cos(theta), np.sin(theta)]], np.float32)
    mixed = np.asarray(slerp(a, b, f), np.float64)
    np.testing.assert_allclose(mixed, [[np.cos(f * theta), np.sin(f * theta)]], rtol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("mix", [lerp, slerp])
def test_half_precision_rounds_the_result_alone(mix, dtype):
    """Norms, angles and fractions are those of float32: ‖a‖² of a large image is above 65504."""
    a, b = pair(2, (2, 64, 64, 3))
    a, b = (jnp.asarray(5.0 * x, dtype) for x in (a, a + 0.3 * b))
    assert np.sum(np.square(np.asarray(a, np.float64)[0])) > np.finfo(np.float16).max
    expected = mix(a.astype(jnp.float32), b.astype(jnp.float32), 0.3)
    got = mix(a, b, 0.3)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, expected.astype(dtype))
