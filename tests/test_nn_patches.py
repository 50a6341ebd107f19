"""Convolutions as products of patches against XLA's own: values, gradients, tangents, where."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nn.convolution.dispatch import convolution
from ddpm_jax.nn.convolution.patches import convolution_by_patches, patches

SAME = ((1, 1), (1, 1))


def plain(x, kernel, strides=(1, 1), pads=SAME):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def arrays(image=(2, 6, 4, 3), kernel=(3, 3, 3, 5), dtype=np.float64):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in (image, kernel) * 2]


@pytest.mark.parametrize(
    "strides, pads",
    [
        ((1, 1), SAME),
        ((2, 2), ((0, 1), (0, 1))),
        ((2, 2), SAME),
        ((2, 1), ((1, 0), (0, 2))),
        ((1, 1), ((0, 0), (0, 0))),
    ],
)
def test_it_is_the_plain_convolution_in_float64(strides, pads):
    with jax.enable_x64(True):
        x, kernel, dx, dkernel = arrays()

        @functools.partial(jax.jit, static_argnums=0)
        def derivatives(f, x, kernel, dx, dkernel):
            f = functools.partial(f, strides=strides, pads=pads)
            value, tangent = jax.jvp(f, (x, kernel), (dx, dkernel))
            return value, tangent, jax.vjp(f, x, kernel)[1](jnp.cos(value))

        results = [derivatives(f, x, kernel, dx, dkernel) for f in (convolution_by_patches, plain)]
        for a, b in zip(*map(jax.tree.leaves, results), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_patches_lie_in_a_kernels_order():
    """The patch in the middle of 3×3 pixels is the image, read as a kernel is."""
    x = jnp.arange(18.0).reshape(1, 3, 3, 2)
    rows = patches(x, (1, 1), SAME)
    assert rows.shape == (1, 3, 3, 18)
    np.testing.assert_array_equal(rows[0, 1, 1], x.ravel())
    assert not rows[0, 0, 0, :2].any()


@pytest.mark.parametrize(
    "image, kernel, strides, expected",
    [
        ((2, 4, 4, 64), (3, 3, 64, 64), (1, 1), False),
        ((2, 16, 16, 64), (3, 3, 64, 64), (2, 2), True),
    ],
)
def test_where_gradients_use_it(image, kernel, strides, expected):
    """On CPUs for stride 2; never the value, never elsewhere."""
    x, kernel = jnp.zeros(image), jnp.zeros(kernel)
    f = functools.partial(convolution, strides=strides, padding="SAME")
    gradients = jax.grad(lambda x, k: f(x, k).sum(), (0, 1))
    for program, platform, used in (
        (f, "cpu", False),
        (gradients, "cpu", expected),
        (gradients, "cuda", False),
    ):
        lowered = jax.jit(program).trace(x, kernel).lower(lowering_platforms=(platform,))
        text = lowered.as_text(debug_info=True)
        assert bool(re.search(r"[/(]patches[/)]", text)) == used
