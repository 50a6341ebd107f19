"""Attention in both forms: against float64, in all modes of differentiation, and where it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nn import attention

# One block of queries and keys, several, and fewer positions than a block.
SIZES = {"one block": (2, 64, 16), "several": (1, 128, 32), "4×4": (3, 16, 16)}


def arrays(shape, dtype=jnp.float32):
    return tuple(jax.random.normal(jax.random.key(i), shape).astype(dtype) for i in range(3))


def by_kernel(query, key, value):
    return attention.by_kernel(query, key, value, interpret=True)


def formula(query, key, value):
    """softmax(q kᵀ / √C) v in the arrays' own precision."""
    logits = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value


def in_float64(function, *given):
    with jax.enable_x64(True):
        return jax.jit(function)(*(np.asarray(a, np.float64) for a in given))


def close(got, expected, share):
    """Equal but for `share` of the largest entry."""
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        largest = np.abs(np.asarray(other)).max()
        np.testing.assert_allclose(np.float64(one), other, rtol=0, atol=share * largest)


@pytest.mark.parametrize("dtype,share", [(jnp.float32, 2e-6), (jnp.bfloat16, 2**-7)])
@pytest.mark.parametrize("name", SIZES)
def test_value_and_gradients_are_the_formulas_in_float64(name, dtype, share):
    given = arrays(SIZES[name], dtype)
    y = jax.random.normal(jax.random.key(9), SIZES[name]).astype(dtype)

    def both(function):
        return lambda *a: (function(*a[:-1]), jax.vjp(function, *a[:-1])[1](a[-1]))

    expected = in_float64(both(formula), *given, y)
    for form in (by_kernel, attention.attend):
        got = jax.jit(both(form))(*given, y)
        assert {a.dtype for a in jax.tree.leaves(got)} == {jnp.dtype(dtype)}
        close(got, expected, share)


DERIVATIVES = {
    "forward mode": lambda f: lambda x: jax.jvp(f, (x,), (jnp.sin(x),))[1],
    "reverse over reverse": lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f)(x) * jnp.cos(x))),
    "forward over reverse": lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (jnp.sin(x),))[1],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_of_every_kind_are_the_formulas(name):
    query, key, value = arrays((1, 64, 16))

    def derivative(form):
        def total(query, key, value):
            return jnp.sum(jnp.square(form(query, key, value)))

        return lambda q, k, v: DERIVATIVES[name](lambda q: total(q, k, v))(q)

    expected = in_float64(derivative(formula), query, key, value)
    close(jax.jit(derivative(by_kernel))(query, key, value), expected, 5e-6)


def test_hidden_keys_have_no_weight():
    query, key, value = arrays((2, 5, 8))
    mask = jnp.array([[True, True, False, True, False], [False] * 5])
    seen = attention.attend(query, key, value, mask)
    close(seen[0], formula(query[:1], key[:1, mask[0]], value[:1, mask[0]])[0], 1e-6)
    assert not np.any(seen[1])


@pytest.mark.usefixtures("traced_for_gpus")
@pytest.mark.parametrize(
    "shape,keys,dtype,masked,platform,kernel",
    [
        ((2, 256, 256), 256, jnp.bfloat16, False, "cuda", True),
        ((2, 16, 64), 16, jnp.float16, False, "cuda", True),
        ((2, 256, 256), 256, jnp.bfloat16, False, "cpu", False),
        ((2, 256, 256), 256, jnp.bfloat16, False, "tpu", False),
        ((2, 256, 256), 256, jnp.float32, False, "cuda", False),
        ((2, 256, 512), 256, jnp.bfloat16, False, "cuda", False),
        ((2, 49, 64), 49, jnp.bfloat16, False, "cuda", False),
        ((2, 256, 64), 64, jnp.bfloat16, False, "cuda", False),
        ((2, 256, 64), 256, jnp.bfloat16, True, "cuda", False),
        ((0, 256, 64), 256, jnp.bfloat16, False, "cuda", False),
    ],
)
def test_where_the_kernel_runs(shape, keys, dtype, masked, platform, kernel):
    query = jnp.ones(shape, dtype)
    key = jnp.ones((shape[0], keys, shape[2]), dtype)
    mask = jnp.ones(key.shape[:2], bool) if masked else None
    run = jax.jit(lambda q, k: attention.attend(q, k, k, mask))
    text = run.trace(query, key).lower(lowering_platforms=(platform,)).as_text()
    assert ("triton" in text) == kernel
