"""Upsampling by differences against the plain convolution of the upsampled image."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nn.convolution.dispatch import upsampled_convolution
from ddpm_jax.nn.convolution.upsampled import upsampled_by_differences


def repeated(x, kernel):
    x = x.repeat(2, axis=1).repeat(2, axis=2)
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def ours(x, kernel):
    return upsampled_convolution(x, kernel, (1, 1), "SAME")


def arrays(image, kernel, dtype):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in (image, kernel) * 2]


def derivatives(f, x, kernel, dx, dkernel):
    value, tangent = jax.jvp(f, (x, kernel), (dx, dkernel))
    _, by_image = jax.jvp(lambda x: f(x, kernel), (x,), (dx,))
    return value, tangent, by_image, jax.vjp(f, x, kernel)[1](jnp.cos(value))


@pytest.mark.slow
@pytest.mark.parametrize("image", [(2, 3, 4, 3), (1, 1, 1, 3), (2, 1, 5, 3)])
def test_it_is_the_upsampled_images_convolution_in_float64(image):
    with jax.enable_x64(True):
        given = arrays(image, (3, 3, 3, 5), np.float64)
        got, expected = (derivatives(f, *given) for f in (upsampled_by_differences, repeated))
        for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_it_rounds_like_float32():
    """A float32 has 1.2e-7; the sums here are over 64 to 1,024 terms."""
    x, kernel, dx, dkernel = arrays((4, 8, 8, 64), (3, 3, 64, 64), np.float32)
    given = (x, kernel / 24, dx, dkernel / 24)  # so that values are of order 1
    got = jax.jit(functools.partial(derivatives, ours))(*given)
    with jax.enable_x64(True):
        exact = derivatives(repeated, *(jnp.asarray(a, jnp.float64) for a in given))
    for a, b in zip(*map(jax.tree.leaves, (got, exact)), strict=True):
        assert a.dtype == jnp.float32
        assert np.abs(np.asarray(a) - np.asarray(b)).max() < 4e-6 * np.abs(np.asarray(b)).max()


def test_a_constant_image_has_no_differences():
    """Inside, each pixel is the image times the sum of the taps."""
    _, kernel, *_ = arrays((1, 1, 1, 3), (3, 3, 3, 5), np.float32)
    y = upsampled_by_differences(jnp.ones((1, 6, 6, 3)), kernel)[0, 1:-1, 1:-1]
    expected = np.broadcast_to(kernel.sum((0, 1, 2)), y.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "platform, dtype, used",
    [("cpu", "float32", True), ("cpu", "bfloat16", False), ("cuda", "float32", False)],
)
def test_where_it_is_used(platform, dtype, used):
    """On CPUs, not where differences would be rounded to 8 bits; elsewhere four convolutions."""
    x, kernel, *_ = arrays((2, 4, 4, 8), (3, 3, 8, 8), dtype)
    gradients = jax.grad(lambda x, k: ours(x, k).astype("float32").sum(), (0, 1))
    for program in (ours, gradients):
        lowered = jax.jit(program).trace(x, kernel).lower(lowering_platforms=(platform,))
        text = lowered.as_text(debug_info=True)
        assert bool(re.search(r"[/(]upsampled[/)]", text)) == used
        assert ("stablehlo.convolution" in text) != used
