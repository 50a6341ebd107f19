"""Hand-written kernels for NVIDIA GPUs as primitives that JAX differentiates in any mode.

A kernel comes with its plain form, which says what it computes. Of the derivatives only the
gradient of the result is a kernel, too. Tangents (forward mode) and derivatives of derivatives are
those of the plain form. A platform that does not run the kernel neither traces nor imports it,
because a primitive is lowered only for the platform that needs it.

No kernel is trusted unseen: before a program is compiled for a card of this machine, the kernel and
its gradient are run on that card once, on a small example. If they fail or differ from the plain
form, a warning says so and the plain form is used.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import config
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ddpm_jax.types import Array

Arrays = list[Array]
Compute = Callable[..., Arrays]
Example = Callable[[], tuple[Sequence[Array], dict[str, Any]]]


@functools.cache
def may_run() -> bool:
    """Whether programs may be compiled for NVIDIA GPUs, by what is installed.

    Elsewhere the plain forms are called directly: to trace both takes twice as long. The
    environment variable DDPM_JAX_GPU_KERNELS=0 has the same effect.
    """
    if os.environ.get("DDPM_JAX_GPU_KERNELS") == "0":
        return False
    plugins = importlib.util.find_spec("jax_plugins") is not None
    names = ("xla_cuda12", "xla_cuda13")
    return plugins and any(importlib.util.find_spec(f"jax_plugins.{name}") for name in names)


@functools.cache
def may_run_on_tpu() -> bool:
    """Whether programs may be compiled for TPUs, by what is installed."""
    return importlib.util.find_spec("libtpu") is not None


def kernel(
    name: str,
    *,
    plain: Compute,
    forward: Compute,
    backward: Compute,
    shapes: Any,
    moving: int,
    example: Example,
) -> Callable[..., Arrays]:
    """Makes the function that `forward` computes, with `backward` as its gradient.

    Args:
        name: what its operations are called.
        plain: `(*arguments, **options) -> [result, *others]` in JAX's own operations.
        forward: the same by a kernel. Options are hashable.
        backward: `(*arguments, *others, gradient, **options) -> gradients` of the first `moving`
            arguments, from the gradient of the result.
        shapes: `(*arguments, **options) -> [result, *others]` as things with shape and dtype.
        moving: how many arguments have a gradient; the others, such as masks, come after them.
        example: makes small arguments and options, on which the kernels are tried.
    """

    def tangent(*arrays, count, **options):
        """The tangents of `plain`; arrays are its arguments, its other results, and tangents."""
        arguments, tangents = arrays[:count], arrays[-moving:]
        along = lambda *a: plain(*a, *arguments[moving:], **options)  # noqa: E731
        return jax.jvp(along, arguments[:moving], tangents)[1]

    def gradients(*arrays, count, **options):
        """The gradients of `plain`'s result; arrays are those of `backward`."""
        arguments = arrays[:count]
        along = lambda *a: plain(*a, *arguments[moving:], **options)[0]  # noqa: E731
        return list(jax.vjp(along, *arguments[:moving])[1](arrays[-1]))

    def uncounted(compute):
        return lambda *arrays, count, **options: compute(*arrays, **options)

    def shapes_of_tangents(*arrays, count, **options):
        return shapes(*arrays[:count], **options)

    def shapes_of_gradients(*arrays, **options):
        return arrays[:moving]

    def runs() -> bool:
        """Whether this machine's cards run the kernels, and rightly; True if it has no card."""
        if name not in _TRIED:
            fault = _fault(lambda: _compare(plain, forward, backward, moving, *example()))
            if fault:
                warnings.warn(
                    f"the GPU kernel {name!r} is not used: {fault}. Results are right without it, "
                    "but take longer.",
                    stacklevel=2,
                )
            _TRIED[name] = not fault
        return _TRIED[name]

    forward_p = _primitive(name, forward, plain, shapes, runs)
    tangent_p = _primitive(f"{name}_tangent", tangent, tangent, shapes_of_tangents, runs)
    backward_p = _primitive(
        f"{name}_gradient", uncounted(backward), gradients, shapes_of_gradients, runs
    )

    def forward_jvp(primals, tangents, **options):
        out = forward_p.bind(*primals, **options)
        tangents = _alike([ad.instantiate_zeros(t) for t in tangents[:moving]], primals)
        arrays = (*primals, *out[1:], *tangents)
        return out, tangent_p.bind(*arrays, count=len(primals), **options)

    def transpose(cotangents, *arrays, count, **options):
        fixed, tangents = arrays[:-moving], arrays[-moving:]
        gradient, *of_others = (ad.instantiate_zeros(c) for c in cotangents)
        if all(type(c) is ad.Zero for c in cotangents[1:]):
            found = backward_p.bind(*fixed, gradient, count=count, **options)
        else:
            along = lambda *a: plain(*a, *fixed[moving:count], **options)  # noqa: E731
            found = jax.vjp(along, *fixed[:moving])[1]([gradient, *of_others])
        undefined = [ad.is_undefined_primal(t) for t in tangents]
        return [None] * len(fixed) + [
            g if wanted else None for g, wanted in zip(found, undefined, strict=True)
        ]

    ad.primitive_jvps[forward_p] = forward_jvp
    ad.primitive_jvps[tangent_p] = _jvp_of(tangent)
    ad.primitive_jvps[backward_p] = _jvp_of(gradients)
    ad.primitive_transposes[tangent_p] = transpose
    return lambda *arrays, **options: forward_p.bind(*_alike(arrays, arrays), **options)


def _primitive(
    name: str, compute: Compute, plain: Compute, shapes: Any, runs: Callable[[], bool]
) -> Primitive:
    """A primitive with several results: `compute`, but `plain` under `vmap` and without Triton."""
    made = Primitive(name)
    made.multiple_results = True

    def abstract(*avals, **options):
        return [avals[0].update(shape=s.shape, dtype=s.dtype) for s in shapes(*avals, **options)]

    def batched(arrays, axes, **options):
        out = jax.vmap(functools.partial(plain, **options), axes)(*arrays)
        return out, [0] * len(out)

    def lower(ctx, *arrays, **options):
        # An exported program may hold no Triton, which has no stable form.
        exported = ctx.module_context.lowering_parameters.for_export
        chosen = plain if exported or not runs() else compute
        # `shard_map` demands to know which axes a kernel's results vary over, which Pallas's own
        # functions do not say. The results of this primitive have passed that check already.
        bare = [ShapedArray(a.shape, a.dtype) for a in ctx.avals_in]
        with config._check_vma(False):
            return mlir.lower_fun(chosen, multiple_results=True)(
                ctx.replace(avals_in=bare), *arrays, **options
            )

    made.def_impl(lambda *arrays, **options: (compute if runs() else plain)(*arrays, **options))
    made.def_abstract_eval(abstract)
    batching.primitive_batchers[made] = batched
    mlir.register_lowering(made, lower)
    return made


_TRIED: dict[str, bool] = {}
"""Whether each kernel that was tried runs here, by its name."""


def _cards() -> list[tuple[Any, float]]:
    """The NVIDIA GPUs of this process and their compute capabilities.

    None where programs are compiled for a card elsewhere.
    """
    try:
        return [
            (card, float(card.compute_capability)) for card in jax.local_devices(backend="cuda")
        ]
    except RuntimeError:
        return []


def _fault(try_kernel: Callable[[], None]) -> str:
    """What is wrong with a kernel on this machine's cards; empty if nothing is."""
    cards = _cards()
    if not cards:
        return ""
    if (least := min(capability for _, capability in cards)) < 8.0:
        return f"Triton needs compute capability 8.0, and this card has {least}"
    try:
        with jax.default_device(cards[0][0]), jax.ensure_compile_time_eval():
            try_kernel()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _compare(
    plain: Compute,
    forward: Compute,
    backward: Compute,
    moving: int,
    arrays: Sequence[Array],
    options: dict[str, Any],
) -> None:
    """Raises ValueError where results or gradients of the kernels are not the plain form's."""
    got, expected = forward(*arrays, **options), plain(*arrays, **options)
    along = lambda *a: plain(*a, *arrays[moving:], **options)[0]  # noqa: E731
    y, vjp = jax.vjp(along, *arrays[:moving])
    gradient = jnp.cos(y.astype(jnp.float32)).astype(y.dtype)
    got = [*got, *backward(*arrays, *got[1:], gradient, **options)]
    for one, other in zip(got, [*expected, *vjp(gradient)], strict=True):
        share = 2.0**-5 if jnp.dtype(one.dtype).itemsize == 2 else 1e-4
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        apart, largest = np.abs(one - other).max(), np.abs(other).max()
        if not apart <= share * largest:
            raise ValueError(f"it differs by {apart:.2g} where values reach {largest:.2g}")


def _jvp_of(compute: Compute) -> Any:
    def jvp(primals, tangents, **options):
        tangents = tuple(ad.instantiate_zeros(t) for t in tangents)
        return jax.jvp(functools.partial(compute, **options), tuple(primals), tangents)

    return jvp


def _alike(arrays: Sequence[Array], others: Sequence[Array]) -> list[Array]:
    """The arrays, each marked as varying over the devices that any of `others` varies over.

    `shard_map` wants this of a primitive's arguments. Sums of nothing, 0, carry the marks.
    """
    nothing = sum(
        (a.ravel()[:0].sum().astype(jnp.float32) for a in others), jnp.zeros((), jnp.float32)
    )
    return [a + nothing.astype(a.dtype) for a in arrays]
