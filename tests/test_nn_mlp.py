"""The perceptron against its float64 NumPy reference and its own promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nn import MLP
from tests import reference_unet as reference
from tests.reference_unet import random_params

SMALL = MLP(features=16, num_layers=2, embedding_features=10, dropout=0.4)


def vectors(shape=(3, 5), seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def example_keys(*indices):
    """One key an example, by its index: the same whichever batch the example is in."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.array(indices))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_classes": 4, "out_features": 7},
        {"cond_features": 3},
        {"num_layers": 0, "max_period": 100.0},
    ],
)
def test_float64_reference(change):
    mlp, x, t = SMALL.clone(**change), vectors(), np.array([0, 3, 40])
    label = np.array([4, 0, 2]) if mlp.num_classes else None
    cond = vectors((3, 3), seed=2) if mlp.cond_features else None
    params = random_params(mlp, x, 0)
    truth = reference.mlp(params, x, t, label, cond, config=mlp)
    got = mlp.apply({"params": params}, x, t, label, cond=cond)
    assert got.shape == (3, mlp.out_features or 5) and np.std(truth) > 0.3
    np.testing.assert_allclose(got, truth, atol=1e-5, rtol=0)


def test_rows_do_not_meet():
    x, t, keys = vectors(), np.array([0, 3, 40]), example_keys(0, 1, 2)
    params = {"params": random_params(SMALL, x, 0)}
    plain = SMALL.apply(params, x, t)
    dropped = SMALL.apply(params, x, t, dropout_keys=keys)
    assert np.abs(plain - dropped).max() > 0.1
    for i in range(3):
        row = slice(i, i + 1)
        np.testing.assert_allclose(plain[row], SMALL.apply(params, x[row], t[i]), atol=1e-5)
        alone = SMALL.apply(params, x[row], t[row], dropout_keys=example_keys(i))
        np.testing.assert_allclose(dropped[row], alone, atol=1e-5)


def test_dropout_the_linen_way():
    """`rngs` draws masks of the rows: other keys, other masks; without a rate, none."""
    x = vectors()
    params = {"params": random_params(SMALL, x, 0)}
    first, again, other = (
        SMALL.apply(params, x, 3, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert np.abs(first - SMALL.apply(params, x, 3)).max() > 0.1
    with pytest.raises(ValueError, match="MLP got dropout_keys and rngs"):
        rngs = {"dropout": jax.random.key(0)}
        SMALL.apply(params, x, 3, dropout_keys=example_keys(0, 1, 2), rngs=rngs)


def test_starts_at_zero_and_reads_t_once_trained():
    """At initialisation the output is nothing; with its parameters random it depends on t."""
    x = vectors()
    variables = SMALL.init(jax.random.key(0), x, 0)
    assert np.abs(SMALL.apply(variables, x, 7)).max() < 1e-3
    params = {"params": random_params(SMALL, x, 0)}
    assert np.abs(SMALL.apply(params, x, 0) - SMALL.apply(params, x, 9)).max() > 0.1


def test_no_label_is_the_last_row():
    mlp, x = SMALL.clone(num_classes=4), vectors()
    params = {"params": random_params(mlp, x, 0)}
    none = mlp.apply(params, x, 1)
    np.testing.assert_array_equal(none, mlp.apply(params, x, 1, np.array([4, 4, 4])))
    assert np.abs(none - mlp.apply(params, x, 1, np.array([0, 1, 2]))).max(axis=1).min() > 0.1


def test_bfloat16():
    half, x = SMALL.clone(dtype=jnp.bfloat16), vectors()
    params = {"params": random_params(SMALL, x, 0)}
    shapes = jax.eval_shape(half.init, jax.random.key(0), x, 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    full, got = SMALL.apply(params, x, 3), half.apply(params, x, 3)
    assert got.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(got - full) / np.linalg.norm(full) < 0.03


def test_second_derivatives():
    """Score matching differentiates tr ∇_x f once more; reverse over forward meets differences."""
    mlp, x, h = SMALL.clone(num_layers=1), vectors((1, 2)), 1e-4
    params = random_params(mlp, x, 0)
    direction = random_params(mlp, x, 0, seed=5)

    def trace(params):
        f = lambda x: mlp.apply({"params": params}, x[None], 3)[0]  # noqa: E731
        return sum(jax.jvp(f, (x[0],), (e,))[1] @ e for e in jnp.eye(2))

    def trace64(params):
        def f(x):
            return reference.mlp(params, x[None], [3], config=mlp)[0]

        return sum((f(x[0] + h * e) - f(x[0] - h * e)) @ e / (2 * h) for e in np.eye(2))

    gradient = jax.grad(trace)(params)
    dots = jax.tree.map(lambda g, v: np.vdot(np.float64(g), v), gradient, direction)
    move = lambda s: jax.tree.map(lambda p, v: np.float64(p) + s * h * v, params, direction)  # noqa: E731
    slope = (trace64(move(1)) - trace64(move(-1))) / (2 * h)
    np.testing.assert_allclose(trace(params), trace64(reference.to_float64(params)), rtol=1e-4)
    np.testing.assert_allclose(sum(jax.tree.leaves(dots)), slope, rtol=1e-4)


@pytest.mark.parametrize(
    "change,shape,t,more,message",
    [
        ({"dropout": 1.5}, (3, 5), 0, {}, "MLP needs 0 <= dropout < 1, got dropout=1.5"),
        ({"num_classes": 0}, (3, 5), 0, {}, "MLP needs num_classes >= 1, got 0"),
        ({"embedding_features": 2}, (3, 5), 0, {}, "dim >= 4, got dim=2"),
        ({}, (3, 4, 4, 1), 0, {}, r"vectors \[B, D\], got shape \(3, 4, 4, 1\)"),
        ({}, (5,), 0, {}, r"got shape \(5,\)"),
        ({}, (3, 5), np.zeros(2), {}, r"one step t per example.*step t of shape \(2,\)"),
        ({}, (3, 5), 0, {"label": np.zeros(3, int)}, "MLP got a label but num_classes=None"),
        ({"num_classes": 3}, (3, 5), 0, {"label": np.zeros(2, int)}, r"got shape \(2,\)"),
        ({}, (3, 5), 0, {"dropout_keys": jax.random.key(0)}, r"shape \(3,\), got shape \(\)"),
        ({}, (3, 5), 0, {"cond": np.zeros((3, 2))}, "MLP got a cond but cond_features=None"),
        ({"cond_features": 2}, (3, 5), 0, {"cond": np.zeros((3, 1))}, r"\(3, 2\), got .*\(3, 1\)"),
    ],
)
def test_impossible_calls_are_refused(change, shape, t, more, message):
    with pytest.raises(ValueError, match=message):
        mlp = SMALL.clone(**change)
        jax.eval_shape(lambda: mlp.init(jax.random.key(0), jnp.zeros(shape), t, **more))
