"""Kernels are tried before they are trusted, and are traced only where a GPU may run them."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.nn import attention, kernels
from ddpm_jax.nn.normalisation import Form, dispatch, normalise


def fails(*arrays):
    raise RuntimeError("no such instruction\nand more")


RIGHT = {"forward": lambda x: [x + x + x], "backward": lambda x, g: [g + g + g]}
KERNELS = {
    "right": (RIGHT, ""),
    "another result": ({**RIGHT, "forward": lambda x: [x + x]}, "ValueError: it differs by"),
    "not a number": ({**RIGHT, "forward": lambda x: [x * jnp.nan]}, "ValueError: it differs by"),
    "another gradient": ({**RIGHT, "backward": lambda x, g: [g]}, "ValueError: it differs by"),
    "no result": ({**RIGHT, "forward": fails}, "RuntimeError: no such instruction\\. Results"),
    "no gradient": ({**RIGHT, "backward": fails}, "RuntimeError: no such instruction\\. Results"),
}


def triple(forward, backward):
    """3 x, plainly as a product and by the kernel as sums."""
    return kernels.kernel(
        "triple",
        plain=lambda x: [x * 3.0],
        forward=forward,
        backward=backward,
        shapes=lambda x: [x],
        moving=1,
        example=lambda: ([jnp.arange(8.0)], {}),
    )


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_fails_or_differs_is_not_used(name, monkeypatch):
    """A CPU in place of the card: what is tried runs while the program around it is lowered."""
    monkeypatch.setattr(kernels, "_TRIED", {})
    monkeypatch.setattr(kernels, "_cards", lambda: [(jax.devices()[0], 9.0)])
    functions, fault = KERNELS[name]
    f = triple(**functions)
    run = jax.jit(jax.value_and_grad(lambda x: f(x)[0].sum()))
    x = jnp.arange(4.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        text = run.lower(x).as_text()
    assert ("multiply" in text) == bool(fault)
    value, gradient = run(x)
    assert value == 18 and np.array_equal(gradient, [3, 3, 3, 3])
    about = [str(w.message) for w in said if "GPU kernel" in str(w.message)]
    assert len(about) == bool(fault)
    if fault:
        with pytest.raises(UserWarning, match=f"'triple' is not used: {fault}"):
            raise UserWarning(about[0])


def test_a_kernel_is_tried_while_shard_map_is_lowered(monkeypatch):
    monkeypatch.setattr(kernels, "_TRIED", {})
    monkeypatch.setattr(kernels, "_cards", lambda: [(jax.devices()[0], 9.0)])
    f = triple(**RIGHT)
    spec = jax.sharding.PartitionSpec("data")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    gradient = jax.shard_map(
        lambda x: jax.grad(lambda x: f(x)[0].sum())(x), mesh=mesh, in_specs=spec, out_specs=spec
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(jax.jit(gradient)(jnp.ones(4)), [3, 3, 3, 3])
    assert kernels._TRIED == {"triple": True}


def test_a_kernel_is_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr(kernels, "_TRIED", {})
    monkeypatch.setattr(kernels, "_cards", lambda: [(jax.devices()[0], 9.0)])
    monkeypatch.setattr(kernels, "_compare", lambda *arguments: tried.append(arguments))
    f = triple(**RIGHT)
    for size in (3, 4):
        jax.jit(jax.grad(lambda x: f(x)[0].sum()))(jnp.ones(size))
    assert len(tried) == 1


@pytest.mark.parametrize("installed", [True, False])
def test_without_cudas_plugin_no_kernel_is_traced(installed, monkeypatch):
    monkeypatch.setattr(kernels, "may_run", lambda: installed)
    x, ones = jnp.ones((2, 4, 4, 8)), jnp.ones(8)
    form = Form(2, 1e-6, True, 0.0, jnp.float32)
    text = str(jax.make_jaxpr(lambda x: normalise(x, ones, ones, None, None, form))(x))
    assert ("normalise" in text) == installed


@pytest.mark.parametrize(
    "modules,expected",
    [
        ([], False),
        (["jax_plugins"], False),
        (["jax_plugins", "jax_plugins.xla_cuda12"], True),
        (["jax_plugins", "jax_plugins.xla_cuda13"], True),
    ],
)
def test_where_cudas_plugin_is_installed(modules, expected, monkeypatch):
    find = lambda name: name if name in modules else None  # noqa: E731
    monkeypatch.setattr(kernels.importlib.util, "find_spec", find)
    kernels.may_run.cache_clear()
    assert kernels.may_run() == expected
    kernels.may_run.cache_clear()
    monkeypatch.setenv("DDPM_JAX_GPU_KERNELS", "0")
    assert not kernels.may_run()
    kernels.may_run.cache_clear()


@pytest.mark.parametrize("module", [attention, dispatch])
def test_the_examples_pass_in_the_interpreter(module, monkeypatch):
    """What is tried on a card is tried here with the kernels' own functions."""
    arrays, options = module._example()
    if module is attention:
        options = {"interpret": True}
    else:
        options = {"form": options["form"]._replace(interpret=True)}
    plain = {
        attention: lambda *a, interpret: [attention.plain_form(*a)],
        dispatch: dispatch._plain,
    }[module]
    moving = 3 if module is attention else 4
    plain, forward, backward = (
        jax.jit(f, static_argnames=tuple(options))
        for f in (plain, module._forward, module._backward)
    )
    kernels._compare(plain, forward, backward, moving, arrays, options)
    with pytest.raises(ValueError, match="differs"):
        wrong = lambda *a, **o: [1.5 * x for x in backward(*a, **o)]  # noqa: E731
        kernels._compare(plain, forward, wrong, moving, arrays, options)
