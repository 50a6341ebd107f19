"""Group normalisation in its three forms: against float64, in all modes of differentiation."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nn import kernels
from ddpm_jax.nn.blocks import GroupNorm
from ddpm_jax.nn.normalisation import Form, dispatch, normalise

pytestmark = pytest.mark.usefixtures("traced_for_gpus")

# Sizes: groups of 3, 12 and 48 channels, which are no powers of 2 and leave lanes idle; positions
# that are no multiple of a tile's rows.
SIZES = {
    "groups of 3": ((2, 5, 6, 24), 8),
    "two tiles of groups of 12": ((2, 4, 4, 96), 8),
    "groups of 48": ((2, 3, 5, 96), 2),
    "two tiles of rows": ((1, 13, 13, 8), 2),
    "a signal": ((2, 7, 8), 2),
}


def arrays(shape, dtype=jnp.float32):
    """x far from zero, scale, bias, shift, and the mask of what is kept."""
    keys = jax.random.split(jax.random.key(0), 5)
    x = 2 * jax.random.normal(keys[0], shape) + 3
    scale, bias = (jax.random.normal(k, shape[-1:], jnp.float32) for k in keys[1:3])
    shift = jax.random.normal(keys[3], (shape[0], shape[-1]))
    return (x.astype(dtype), scale, bias, shift.astype(dtype)), jax.random.bernoulli(
        keys[4], 0.7, shape
    )


def truth(x, scale, bias, shift, keep, groups):
    """The formula in NumPy's float64."""
    x = np.float64(x) + np.expand_dims(np.float64(shift), tuple(range(1, x.ndim - 1)))
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = grouped.var((1, 3), keepdims=True)
    h = ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    h = h * np.float64(scale) + np.float64(bias)
    return np.where(keep, h / (1 + np.exp(-h)) / 0.7, 0)


def by_kernels(groups, keep, dtype=jnp.float32):
    form = Form(groups, 1e-6, True, 0.3, dtype, interpret=True)
    return lambda *a: dispatch.by_kernels(*a, keep, form=form)


def plain(groups, keep):
    form = Form(groups, 1e-6, True, 0.3, jnp.float64)
    return lambda *a: dispatch.plain_form(*a, keep, form=form)


def close(got, expected, share=2e-6):
    """Equal but for `share` of the largest entry."""
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=share * np.abs(other).max())


@pytest.mark.parametrize("name", SIZES)
def test_both_forms_are_the_formula_in_float64(name):
    shape, groups = SIZES[name]
    given, keep = arrays(shape)
    expected = truth(*given, keep, groups)
    close(jax.jit(by_kernels(groups, keep))(*given), expected)
    form = Form(groups, 1e-6, True, 0.3, jnp.float32)
    close(jax.jit(lambda *a: normalise(*a, keep, form))(*given), expected)


def in_float64(function, *given):
    with jax.enable_x64(True):
        return jax.jit(function)(*(np.asarray(a, np.float64) for a in given))


def cotangents(function):
    """Those of the arguments, as a function of the arguments and the result's."""
    return jax.jit(lambda *a: jax.vjp(function, *a[:-1])[1](a[-1]))


@pytest.mark.parametrize("name", SIZES)
def test_the_kernels_gradients_are_those_of_the_plain_form_in_float64(name):
    shape, groups = SIZES[name]
    given, keep = arrays(shape)
    y = jax.random.normal(jax.random.key(9), shape)
    got = cotangents(by_kernels(groups, keep))(*given, y)
    close(got, in_float64(cotangents(plain(groups, keep)), *given, y))


def test_without_shift_mask_or_silu():
    given, _ = arrays((2, 4, 4, 16))
    form = Form(4, 1e-6, False, 0.0, jnp.float32, interpret=True)

    def got(*a):
        return dispatch.by_kernels(*a, None, None, form=form)

    def expected(*a):
        return dispatch.plain_form(*a, None, None, form=form._replace(dtype=jnp.float64))

    close(jax.jit(got)(*given[:3]), in_float64(expected, *given[:3]))
    y = given[0]
    close(cotangents(got)(*given[:3], y), in_float64(cotangents(expected), *given[:3], y))


def test_a_mean_far_above_the_spread():
    """E[x²] - E[x]² in float32 would leave nothing of a spread of 1 around 4096."""
    shape, groups = SIZES["groups of 3"]
    (x, *rest), keep = arrays(shape)
    x = x + 4096
    close(jax.jit(by_kernels(groups, keep))(x, *rest), truth(x, *rest, keep, groups), share=1e-3)


def test_bfloat16_rounds_once():
    """Statistics in float32 as in the plain form; the result is rounded to 8 bits."""
    shape, groups = SIZES["groups of 3"]
    given, keep = arrays(shape, jnp.bfloat16)
    got = jax.jit(by_kernels(groups, keep, jnp.bfloat16))(*given)
    assert got.dtype == jnp.bfloat16
    expected = truth(*given, keep, groups)
    np.testing.assert_allclose(np.float64(got), expected, rtol=2**-8, atol=1e-5)
    gradient = jax.grad(lambda x: by_kernels(groups, keep, jnp.bfloat16)(x, *given[1:]).sum())
    assert jax.eval_shape(gradient, given[0]).dtype == jnp.bfloat16


@pytest.mark.parametrize("spread", [1.0, 1 / 30])
@pytest.mark.parametrize("name", SIZES)
def test_one_pass_is_the_formula_in_float64(name, spread):
    """For 16-bit activations, with a mean of up to 45 times the spread."""
    shape, groups = SIZES[name]
    (x, *rest), keep = arrays(shape)
    given = ((3 + spread * (x - 3)).astype(jnp.bfloat16), *rest[:-1], spread * rest[-1])
    form = Form(groups, 1e-6, True, 0.3, jnp.float32)

    def one_pass(*a):
        return dispatch.one_pass_form(*a, keep, form=form)

    share = 2e-6 / spread**2
    close(jax.jit(one_pass)(*given), truth(*given, keep, groups), share)
    y = jax.random.normal(jax.random.key(9), shape)
    got = cotangents(one_pass)(given[0].astype(jnp.float32), *given[1:], y)
    close(got, in_float64(cotangents(plain(groups, keep)), *given, y), 2 * share)


def test_one_pass_of_one_value_is_zero():
    """E[x²] - mean² may round to less than zero."""
    x, ones = jnp.full((1, 3, 3, 4), 1.7, jnp.bfloat16), jnp.ones(4)
    form = Form(2, 1e-6, False, 0.0, jnp.bfloat16)
    y = dispatch.one_pass_form(x, ones, 0 * ones, None, None, form=form)
    np.testing.assert_allclose(np.float32(y), 0, atol=1e-3)


DERIVATIVES = {
    "forward mode": lambda f: lambda x: jax.jvp(f, (x,), (jnp.sin(x),))[1],
    "reverse over reverse": lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f)(x) * jnp.cos(x))),
    "forward over reverse": lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (jnp.sin(x),))[1],
    "reverse over forward": lambda f: jax.grad(lambda x: jax.jvp(f, (x,), (jnp.sin(x),))[1]),
    "one example at a time": lambda f: jax.vmap(lambda x: jax.grad(f)(x[None])),
    "recomputed": lambda f: jax.grad(jax.checkpoint(f)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_of_every_kind_are_those_of_the_plain_form(name):
    (x, scale, bias, shift), keep = arrays((2, 4, 4, 12))
    shift, keep = shift[:1], keep[:1]
    if name != "one example at a time":
        x = x[:1]
    derivative = DERIVATIVES[name]

    def total(form):
        return lambda x, *a: jnp.sum(jnp.square(form(x, *a)) * jnp.cos(x))

    got = jax.jit(derivative(lambda x: total(by_kernels(4, keep))(x, scale, bias, shift)))(x)
    expected = in_float64(
        lambda x, *a: derivative(lambda x: total(plain(4, keep))(x, *a))(x), x, scale, bias, shift
    )
    close(got, expected, share=5e-6)


def _lowered(platform, dtype=jnp.float32):
    norm = GroupNorm(2)
    x = jnp.ones((2, 4, 4, 8), dtype)
    variables = norm.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda x: norm.apply(variables, x, silu=True).sum()))
    return gradient.trace(x).lower(lowering_platforms=(platform,)).as_text()


def test_only_nvidia_gpus_get_kernels():
    assert _lowered("cuda").count("xla.gpu.triton") == 2  # forward for the moments, and backward
    assert "triton" not in _lowered("cpu") + _lowered("tpu") + _lowered("rocm")


def test_only_tpus_take_one_pass_and_only_in_16_bits(monkeypatch):
    monkeypatch.setattr(kernels, "may_run_on_tpu", lambda: True)
    assert "dot_general" in _lowered("tpu", jnp.bfloat16)
    for platform, dtype in (("tpu", jnp.float32), ("cpu", jnp.bfloat16), ("cuda", jnp.bfloat16)):
        assert "dot_general" not in _lowered(platform, dtype)


@pytest.mark.parametrize("replicated", [False, True])
def test_kernels_on_every_device_of_shard_map(replicated):
    """Where parameters are the same on all devices, and where they are marked as varying."""
    norm = GroupNorm(2)
    x = jnp.ones((2, 4, 4, 8))
    variables = norm.init(jax.random.key(0), x)

    def mean_gradient(variables, x):
        if not replicated:
            variables = jax.lax.pcast(variables, "data", to="varying")
        gradients = jax.grad(lambda v: norm.apply(v, x, silu=True).sum())(variables)
        return jax.tree.map(lambda g: jax.lax.pmean(g, "data"), gradients)

    spec = jax.sharding.PartitionSpec
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    run = jax.jit(
        jax.shard_map(mean_gradient, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec())
    )
    text = run.trace(variables, x).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == 2


def test_cards_before_ampere_keep_the_plain_form(monkeypatch):
    monkeypatch.setattr(kernels, "_TRIED", {})
    monkeypatch.setattr(kernels, "_cards", lambda: [(jax.devices()[0], 7.5)])
    jax.clear_caches()
    with pytest.warns(UserWarning, match="'normalise' is not used: Triton needs .* has 7.5"):
        assert "triton" not in _lowered("cuda")


def test_large_groups_and_float64_keep_the_plain_form():
    for x, groups in ((jnp.ones((1, 2, 2, 130)), 2), (np.ones((1, 2, 2, 8)), 2)):
        with jax.enable_x64(True):
            x = jnp.asarray(x)
            ones = jnp.ones(x.shape[-1], jnp.float32)
            form = Form(groups, 1e-6, True, 0.0, x.dtype)
            run = jax.jit(
                lambda x, ones=ones, form=form: normalise(x, ones, ones, None, None, form)
            )
            assert "triton" not in run.trace(x).lower(lowering_platforms=("cuda",)).as_text()


def test_exported_programs_hold_no_kernels():
    """Triton has no stable form; the plain form also takes a batch of any size."""
    norm = GroupNorm(2)
    variables = norm.init(jax.random.key(0), jnp.ones((2, 4, 4, 8)))
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, 4, 4, 8), jnp.float32)
    run = jax.jit(lambda x: norm.apply(variables, x, silu=True))
    exported = jax.export.export(run, platforms=("cuda", "cpu"))(x)
    again = jax.export.deserialize(bytearray(exported.serialize()))
    y = jax.random.normal(jax.random.key(1), (3, 4, 4, 8))
    np.testing.assert_allclose(again.call(y), run(y), atol=1e-6)
