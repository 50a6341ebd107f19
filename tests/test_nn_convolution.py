"""Convolutions against XLA's own in float64: values, both gradients, tangents, transformations."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ddpm_jax.nn import kernels
from ddpm_jax.nn.convolution.dispatch import _by_dilation, convolution, upsampled_convolution

SHAPE, OUT = (2, 6, 8, 3), 5


def plain(x, kernel, strides, padding):
    """`lax` alone, and so with the gradients that it derives."""
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def repeated(x, kernel):
    return plain(x.repeat(2, axis=1).repeat(2, axis=2), kernel, (1, 1), "SAME")


def pair(strides, padding):
    return (
        lambda x, kernel: convolution(x, kernel, strides, padding),
        lambda x, kernel: plain(x, kernel, strides, padding),
    )


FORMS = {
    "stride 1": pair((1, 1), "SAME"),
    "stride 1, uneven padding": pair((1, 1), ((0, 2), (1, 0))),
    "stride 1, an output larger than the image": pair((1, 1), ((2, 1), (1, 1))),
    "stride 2, padding (0, 1)": pair((2, 2), ((0, 1), (0, 1))),
    "stride 2, padding (1, 1)": pair((2, 2), ((1, 1), (1, 1))),
    "upsampled": (lambda x, kernel: upsampled_convolution(x, kernel, (1, 1), "SAME"), repeated),
    "upsampled, on TPUs": (_by_dilation, repeated),
}


def arrays(dtype: Any = np.float32, seed: int = 0):
    """An image and a kernel, and a direction for each."""
    rng = np.random.default_rng(seed)
    shapes = (SHAPE, (3, 3, SHAPE[-1], OUT)) * 2
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def first_order(f, x, kernel, dx, dkernel):
    """Value, tangent, and both gradients."""
    value, tangent = jax.jvp(f, (x, kernel), (dx, dkernel))
    return value, tangent, jax.vjp(f, x, kernel)[1](jnp.cos(value))


def second_order(f, x, kernel, dx, dkernel):
    """The gradients of functions of a gradient and of a tangent, as score matching takes them."""

    def of_both(x, kernel):
        by_x = jax.grad(lambda x: jnp.sum(jnp.sin(f(x, kernel))))(x)
        _, push = jax.linearize(lambda x: jnp.sin(f(x, kernel)), x)
        return jnp.sum(jnp.square(by_x)) + jnp.sum(jnp.square(push(dx)))

    return jax.grad(of_both, (0, 1))(x, kernel)


@pytest.mark.parametrize(
    "name, order",
    [(name, first_order) for name in FORMS]
    + [(name, second_order) for name in ("stride 1", "stride 2, padding (0, 1)")],
)
def test_values_and_derivatives_are_those_of_lax_in_float64(name, order):
    """In float64, so that only the formulas are compared."""
    ours, theirs = FORMS[name]
    with jax.enable_x64(True):
        got, expected = (
            jax.jit(functools.partial(order, f))(*arrays(np.float64)) for f in (ours, theirs)
        )
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_only_tpus_dilate_the_image(dtype, monkeypatch):
    monkeypatch.setattr(kernels, "may_run_on_tpu", lambda: True)
    run = jax.jit(lambda x, kernel: upsampled_convolution(x, kernel, (1, 1), "SAME"))
    for platform in ("tpu", "cpu", "cuda"):
        text = run.trace(*arrays(dtype)[:2]).lower(lowering_platforms=(platform,)).as_text()
        assert ("lhs_dilate = [2, 2]" in text) == (platform == "tpu")


@pytest.mark.parametrize("name", FORMS)
def test_an_empty_batch_has_gradients_of_zero(name):
    f, _ = FORMS[name]
    x, kernel = arrays()[:2]
    for taps in (kernel, kernel[..., :2]):
        gradients = jax.jit(jax.grad(lambda x, k: jnp.sum(f(x, k)), (0, 1)))
        by_x, by_kernel = gradients(x[:0], taps)
        assert by_x.shape == (0, *SHAPE[1:]) and not by_kernel.any()


def test_bfloat16():
    """Gradients keep their argument's type and are right to its rounding."""
    ours, theirs = FORMS["stride 1"]
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in arrays()[:2])

    def gradients(f, x, kernel):
        return jax.grad(lambda x, k: jnp.sum(jnp.sin(f(x, k).astype(jnp.float32))), (0, 1))(
            x, kernel
        )

    got = jax.jit(functools.partial(gradients, ours))(x, kernel)
    expected = jax.jit(functools.partial(gradients, theirs))(
        x.astype(jnp.float32), kernel.astype(jnp.float32)
    )
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=3e-2 * np.abs(b).max())


@pytest.mark.parametrize("name", ["stride 1", "stride 2, padding (0, 1)"])
def test_gradients_per_example(name):
    """`vmap` of the gradient gives one kernel gradient an example; they sum to the batch's."""
    ours, theirs = FORMS[name]
    x, kernel = arrays()[:2]

    def gradient(f, x):
        return jax.grad(lambda k: jnp.sum(jnp.square(f(x, k))))(kernel)

    each = jax.jit(jax.vmap(lambda x: gradient(ours, x[None])))(x)
    assert each.shape == (len(x), *kernel.shape)
    expected = gradient(theirs, x)
    np.testing.assert_allclose(each.sum(axis=0), expected, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["stride 1", "stride 2, padding (0, 1)", "upsampled"])
def test_gradients_over_devices(name):
    """`shard_map` with its checks on: devices' kernel gradients average to the whole batch's."""
    ours, theirs = FORMS[name]
    x, kernel = arrays()[:2]
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradient(x, kernel):
        kernel = jax.lax.pcast(kernel, "data", to="varying")
        value, grads = jax.value_and_grad(lambda k: jnp.mean(jnp.square(ours(x, k))))(kernel)
        return jax.lax.pmean((value, grads), "data")

    split, whole = PartitionSpec("data"), PartitionSpec()
    mapped = jax.shard_map(gradient, mesh=mesh, in_specs=(split, whole), out_specs=whole)
    expected = jax.grad(lambda k: jnp.mean(jnp.square(theirs(x, k))))(kernel)
    np.testing.assert_allclose(jax.jit(mapped)(x, kernel)[1], expected, rtol=2e-5, atol=1e-6)


def fast(text):
    """The forms of the convolutions in XLA's program; only one of them is fast on CPUs."""
    return [
        line.split("dim_labels=")[1].split(",")[0]
        for line in text.splitlines()
        if " convolution(" in line
    ]


@pytest.mark.parametrize("name", ["stride 1", "stride 2, padding (0, 1)", "upsampled"])
def test_gradients_in_a_loop_take_the_fast_form_on_cpus(name):
    """Where XLA rewrites nothing, any convolution must come as b01f_01io->b01f, unreversed.

    `lax` alone gives other forms there: that half of the test tells when this module can go.
    """
    x, kernel = arrays()[:2]

    def program(f):
        def body(_, carry):
            x, kernel = carry
            return jax.grad(lambda x, k: jnp.sum(jnp.square(f(x, k))), (0, 1))(x, kernel)

        def loop(x, kernel):
            return jax.lax.fori_loop(0, 2, body, (x, kernel))

        return jax.jit(loop).lower(x, kernel).compile().as_text() or ""

    ours, theirs = (program(f) for f in FORMS[name])
    # Doubling has none, but products of matrices.
    assert set(fast(ours)) == (set() if name == "upsampled" else {"b01f_01io->b01f"})
    assert "rhs_reversal" not in ours and "lhs_dilate" not in ours
    assert set(fast(theirs)) != {"b01f_01io->b01f"}


@pytest.mark.parametrize("name", ["stride 1", "stride 2, padding (0, 1)"])
def test_tangents_of_a_fixed_kernel_take_the_fast_form_in_a_loop(name):
    """As the divergence of a flow needs them: forward mode by the image, inside an ODE's loop."""
    ours, _ = FORMS[name]
    x, kernel = arrays()[:2]

    def loop(x, kernel):
        return jax.lax.fori_loop(
            0,
            2,
            lambda _, total: total + jax.jvp(lambda x: ours(x, kernel), (x,), (x,))[1].sum(),
            0.0,
        )

    text = jax.jit(loop).lower(x, kernel).compile().as_text() or ""
    assert set(fast(text)) == {"b01f_01io->b01f"}


def test_accelerators_get_the_plain_form():
    """The gradient lowered for CUDA has `lax`'s convolutions, none with H × W taps of channels."""
    x, kernel = arrays()[:2]

    def lowered(f, platform):
        gradient = jax.jit(jax.grad(lambda x, k: jnp.sum(jnp.square(f(x, k))), (0, 1)))
        text = gradient.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
        return sorted(line.split("dim_numbers = ")[1].split(" :")[0] for line in lines)

    ours, theirs = FORMS["stride 1"]
    assert lowered(ours, "cuda") == lowered(theirs, "cuda")
    assert lowered(ours, "cpu") != lowered(theirs, "cpu")


@pytest.mark.parametrize(
    "call, options, message",
    [
        (convolution, {"rhs_dilation": (2, 2)}, "rhs_dilation"),
        (convolution, {"feature_group_count": 3}, "feature_group_count=3"),
        (
            upsampled_convolution,
            {"lhs_dilation": (2, 2)},
            "upsampled_convolution computes only plain",
        ),
    ],
)
def test_other_convolutions_are_refused(call, options, message):
    """Rather than computed as if they were plain ones."""
    with pytest.raises(ValueError, match=message):
        call(*arrays()[:2], (1, 1), "SAME", **options)


def test_upsampling_refuses_other_windows():
    """Its phases hold for 3×3 kernels, stride 1 and padding SAME only."""
    x, kernel = arrays()[:2]
    with pytest.raises(ValueError, match=r"got \(3, 3\), \(2, 2\) and 'SAME'"):
        upsampled_convolution(x, kernel, (2, 2), "SAME")
    with pytest.raises(ValueError, match="VALID"):
        upsampled_convolution(x, kernel, (1, 1), "VALID")
