"""Winograd's convolution against XLA's plain one in float64, and where `convolution` uses it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ddpm_jax.nn.convolution.dispatch import convolution
from ddpm_jax.nn.convolution.winograd import winograd_convolution

WIDE = ((2, 8, 8, 256), (3, 3, 256, 128))


def plain(x, kernel, padding="SAME"):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def ours(x, kernel):
    return convolution(x, kernel, (1, 1), "SAME")


def arrays(shapes, dtype, seed=0):
    """An image and a kernel that keeps its size, and a direction for each."""
    rng = np.random.default_rng(seed)
    x, kernel = (rng.normal(size=shape) for shape in shapes)
    dx, dkernel = (rng.normal(size=shape) for shape in shapes)
    scale = np.prod(shapes[1][:3]) ** -0.5
    return tuple(jnp.asarray(a, dtype) for a in (x, scale * kernel, dx, scale * dkernel))


def derivatives(f, x, kernel, dx, dkernel):
    """Value, tangent, both gradients, and the gradient of a gradient."""
    value, tangent = jax.jvp(f, (x, kernel), (dx, dkernel))

    def slope(x, kernel):
        return jnp.sum(jnp.square(jax.grad(lambda x: jnp.sum(jnp.sin(f(x, kernel))))(x)))

    gradients = jax.vjp(f, x, kernel)[1](jnp.cos(value))
    return value, tangent, gradients, jax.grad(slope, (0, 1))(x, kernel)


@pytest.mark.parametrize("image", [(1, 2, 2, 1), (2, 6, 4, 3), (3, 10, 8, 2)])
def test_it_is_the_plain_convolution_in_float64(image):
    """Only the order of sums differs, in every derivative."""
    with jax.enable_x64(True):
        given = arrays((image, (3, 3, image[-1], 5)), np.float64)
        got, expected = (
            jax.jit(functools.partial(derivatives, f))(*given)
            for f in (winograd_convolution, plain)
        )
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * np.abs(b).max() + 1e-14)


def test_wide_convolutions_round_like_float32():
    """Values and gradients of `convolution` where Winograd's algorithm is used, against float64."""
    given = arrays(WIDE, np.float32)
    got = jax.jit(functools.partial(derivatives, ours))(*given)
    with jax.enable_x64(True):
        exact = jax.jit(functools.partial(derivatives, plain))(
            *(jnp.asarray(a, jnp.float64) for a in given)
        )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.float32
        # A float32 has 1.2e-7; the sums here are over 72 to 2304 terms.
        assert np.abs(np.asarray(a) - np.asarray(b)).max() < 4e-6 * np.abs(np.asarray(b)).max()


@pytest.mark.parametrize(
    "image, kernel, dtype, padding, expected",
    [
        (*WIDE, "float32", "SAME", True),
        ((7, 8, 8, 128), (3, 3, 128, 256), "float32", "SAME", True),
        (*WIDE, "bfloat16", "SAME", False),
        (*WIDE, "float32", "VALID", False),
        ((2, 8, 8, 128), (3, 3, 128, 128), "float32", "SAME", True),
        ((2, 8, 8, 128), (3, 3, 128, 64), "float32", "SAME", False),
        ((2, 9, 8, 256), (3, 3, 256, 128), "float32", "SAME", False),
        ((2, 4, 4, 256), (3, 3, 256, 256), "float32", "SAME", False),
        ((2, 8, 8, 256), (1, 1, 256, 128), "float32", "SAME", False),
    ],
)
def test_where_convolution_uses_it(image, kernel, dtype, padding, expected):
    """Its products are in the program for CPUs, of the value and of both gradients, or of none."""
    x, kernel = jnp.zeros(image, dtype), jnp.zeros(kernel, dtype)
    f = functools.partial(convolution, strides=(1, 1), padding=padding)

    def gradient(argument, x, kernel):
        return jax.grad(lambda *a: f(*a).astype("float32").sum(), argument)(x, kernel)

    for program in (f, functools.partial(gradient, 0), functools.partial(gradient, 1)):
        text = jax.jit(program).lower(x, kernel).as_text(debug_info=True)
        assert bool(re.search(r"[/(]winograd[/)]", text)) == expected
        if expected:
            assert "dot_general" in text and "stablehlo.convolution" not in text
        elif program is f:
            assert "stablehlo.convolution" in text


def test_accelerators_keep_the_plain_convolution():
    x, kernel = (jnp.zeros(shape) for shape in WIDE)
    gradients = jax.grad(lambda x, k: jnp.sum(jnp.square(ours(x, k))), (0, 1))
    for program in (ours, gradients):
        text = jax.jit(program).trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()
        assert "stablehlo.convolution" in text and "dot_general" not in text


def test_an_example_does_not_depend_on_its_company():
    x, kernel, *_ = arrays(((6, 8, 8, 256), WIDE[1]), np.float32)
    together = jax.jit(ours)(x, kernel)
    alone = jax.jit(ours)(x[:1], kernel)
    np.testing.assert_allclose(together[:1], alone, atol=4e-6 * float(jnp.abs(alone).max()))


def test_gradients_per_example_and_over_devices():
    """`vmap` and `shard_map`, its checks on, of wide kernels' gradients: the batch's together."""
    x, kernel, *_ = arrays(WIDE, np.float32)

    def gradient(f, x, kernel):
        return jax.grad(lambda k: jnp.sum(jnp.square(f(x, k))))(kernel)

    def on_device(x, kernel):
        kernel = jax.lax.pcast(kernel, "data", to="varying")
        return jax.lax.psum(gradient(ours, x, kernel), "data")

    expected = jax.jit(functools.partial(gradient, plain))(x, kernel)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (PartitionSpec("data"), PartitionSpec())
    split = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    each = jax.vmap(lambda x: gradient(ours, x[None], kernel))
    close = functools.partial(
        np.testing.assert_allclose, desired=expected, atol=1e-5 * float(jnp.abs(expected).max())
    )
    close(jax.jit(split)(x, kernel))
    close(jax.jit(each)(x).sum(axis=0))


@pytest.mark.parametrize(
    "image, kernel", [((1, 5, 4, 2), (3, 3, 2, 2)), ((1, 4, 4, 2), (5, 5, 2, 2))]
)
def test_what_it_cannot_do_is_refused(image, kernel):
    with pytest.raises(ValueError, match=r"winograd_convolution needs a 3×3 kernel and an even"):
        winograd_convolution(jnp.zeros(image), jnp.zeros(kernel))
