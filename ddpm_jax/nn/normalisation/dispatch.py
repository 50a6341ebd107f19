"""Group normalisation, SiLU and dropout as one function, in three forms.

On NVIDIA GPUs XLA needs four passes over the activations forward and six backward, in a dozen
kernels. There `kernels.py` reads them once and writes them once, forward; backward it reads them
and the output's gradient once.

On TPUs XLA computes sums over space while a convolution still writes the array, at no cost, if no
other sum has to come first. There 16-bit activations take `one_pass_form`.

Everywhere else the plain form is what runs.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.nn import kernels
from ddpm_jax.types import Array

MOST_CHANNELS = 64
"""Channels per group up to which the kernels are used: they compare all pairs of a tile's lanes."""


class Form(NamedTuple):
    """What is computed besides the arrays.

    Attributes:
        groups: number of groups of channels.
        epsilon: added to the variance.
        silu: whether SiLU follows.
        rate: probability of dropping; the mask of what is kept is an argument.
        dtype: of the result.
        interpret: run the kernels in Pallas's interpreter, for tests on a CPU.
    """

    groups: int
    epsilon: float
    silu: bool
    rate: float
    dtype: Any
    interpret: bool = False


def normalise(
    x: Array, scale: Array, bias: Array, shift: Array | None, keep: Array | None, form: Form
) -> Array:
    """y = dropout(SiLU((h - mean) / √(variance + ε) · scale + bias)) with h = x + shift.

    Args:
        x: [B, *space, C]; mean and variance are over space and C / groups channels at once.
        scale, bias: float32 [C].
        shift: [B, C], added to every position, or None.
        keep: bool, shaped like x: False is set to zero, the rest divided by 1 - rate. None keeps
            everything.
        form: see `Form`.
    """
    plain = functools.partial(plain_form, form=form)
    forms: dict[str, Any] = {}
    if kernels.may_run_on_tpu() and x.dtype in (jnp.float16, jnp.bfloat16):
        forms["tpu"] = lambda *arrays: one_pass_form(*arrays[:5], form=form)
    small = x.shape[-1] // form.groups <= MOST_CHANNELS and x.dtype in (
        jnp.float16,
        jnp.bfloat16,
        jnp.float32,
    )
    if small and kernels.may_run():
        forms["cuda"] = lambda *arrays: by_kernels(*arrays[:5], form=form)
    if not forms or 0 in x.shape:
        return plain(x, scale, bias, shift, keep)
    # x twice, where it may be used elsewhere, too: so its gradients are added in the order of the
    # plain form alone, and are the same to the last bit.
    again = x if shift is None else None
    return jax.lax.platform_dependent(*(x, scale, bias, shift, keep, again), **forms, default=plain)


def plain_form(
    x: Array,
    scale: Array,
    bias: Array,
    shift: Array | None,
    keep: Array | None,
    again: Array | None = None,
    *,
    form: Form,
) -> Array:
    """`normalise` written out; the mean is that of `again`, which is x, if given."""
    x = _shifted(x, shift).astype(form.dtype)
    again = None if again is None else again.astype(form.dtype)
    return _activated(_moments(x, scale, bias, form, again)[0], keep, form)


def one_pass_form(
    x: Array, scale: Array, bias: Array, shift: Array | None, keep: Array | None, *, form: Form
) -> Array:
    """`normalise` with the variance as E[x²] - mean², and group means as products of matrices.

    E[x²] in float32 has a relative error of some 1e-6, so the variance has one of
    1e-6 mean² / variance. Rounding x to 16 bits costs more: 2⁻⁹ |x| per value in bfloat16.
    """
    x = _shifted(x, shift).astype(form.dtype)
    ones = (1,) * (x.ndim - 2)
    x32 = x.astype(jnp.float32)
    space, size = tuple(range(1, x.ndim - 1)), x.shape[-1] // form.groups
    # [B, C] → the means over groups, again [B, C]: a TPU moves nothing between its lanes for it.
    of_group = np.kron(np.eye(form.groups), np.full((size, size), 1 / size)).astype(np.float32)

    def mean_of(values: Array) -> Array:
        return jnp.dot(values.mean(axis=space), of_group, precision="highest")

    mean = mean_of(x32)
    variance = jnp.maximum(mean_of(jnp.square(x32)) - jnp.square(mean), 0.0)
    gain = jax.lax.rsqrt(variance + form.epsilon) * scale[None]
    mean, gain, offset = (v.reshape(-1, *ones, x.shape[-1]) for v in (mean, gain, bias))
    h = ((x32 - mean) * gain + offset).astype(x.dtype)
    if keep is not None:
        # Else XLA draws the mask anew in each of the two or three passes that use it.
        keep = jax.lax.optimization_barrier(keep)
    return _activated(h, keep, form)


def _shifted(x: Array, shift: Array | None) -> Array:
    if shift is None:
        return x
    return x + shift.reshape(shift.shape[0], *(1,) * (x.ndim - 2), shift.shape[-1])


def _activated(h: Array, keep: Array | None, form: Form) -> Array:
    """SiLU and dropout of what is normalised."""
    h = jax.nn.silu(h) if form.silu else h
    return h if keep is None else jnp.where(keep, h / (1.0 - form.rate), jnp.zeros_like(h))


def _moments(
    x: Array, scale: Array, bias: Array, form: Form, again: Array | None = None
) -> tuple[Array, Array, Array]:
    """The normalised x, and each channel's mean and 1 / √(variance + ε), [B, 1, …, C]."""
    ones = (1,) * (x.ndim - 1)
    x32 = x.astype(jnp.float32)
    # Two passes: E[x²] - E[x]² in one pass cancels when a group's mean is far above its spread,
    # and saves at most a tenth of the time.
    mean = _group_mean(x32 if again is None else again.astype(jnp.float32), form.groups)
    centred = x32 - mean
    variance = _group_mean(jnp.square(centred), form.groups)
    inverse = jax.lax.rsqrt(variance + form.epsilon)
    gain = inverse * scale.reshape(*ones, -1)
    return (centred * gain + bias.reshape(*ones, -1)).astype(x.dtype), mean, inverse


def _group_mean(x: Array, groups: int) -> Array:
    """Averages x [B, *space, C] over space, then over each group's channels: [B, 1, …, C]."""
    # Averaging over space first keeps the channels in vector lanes: on a CPU 2 to 3 times as
    # fast as one mean over [B, H, W, groups, C / groups].
    size = x.shape[-1] // groups
    of_channels = x.mean(axis=tuple(range(1, x.ndim - 1)))
    by_group = of_channels.reshape(x.shape[0], groups, size).mean(axis=-1)
    spread = jnp.repeat(by_group, size, axis=-1)
    return spread.reshape(x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])


# The kernels' arrays: x [B, N, C], scale and bias [C], shift [B, C] and, if anything is dropped,
# keep int8 [B, N, C].


def by_kernels(
    x: Array, scale: Array, bias: Array, shift: Array | None, keep: Array | None, *, form: Form
) -> Array:
    """`normalise` by kernels."""
    batch, channels = x.shape[0], x.shape[-1]
    flat = (batch, math.prod(x.shape[1:-1]), channels)
    shift = jnp.zeros((batch, channels), x.dtype) if shift is None else shift
    masks = () if keep is None else (keep.reshape(flat).astype(jnp.int8),)
    arrays = (x.reshape(flat), scale, bias, shift, *masks)
    return _by_kernels(*arrays, form=form)[0].reshape(x.shape)


def _plain(x: Array, scale: Array, bias: Array, shift: Array, *keep: Array, form: Form) -> Any:
    """What the forward kernel computes: the result, and each channel's mean and 1 / √variance."""
    y = plain_form(x, scale, bias, shift, keep[0] != 0 if keep else None, form=form)
    _, mean, inverse = _moments((x + shift[:, None]).astype(jnp.float32), scale, bias, form)
    return [y, mean[:, 0], inverse[:, 0]]


def _forward(*arrays: Array, form: Form) -> list[Array]:
    from ddpm_jax.nn.normalisation.kernels import forward

    return forward(*arrays, form=form)


def _backward(*arrays: Array, form: Form) -> list[Array]:
    from ddpm_jax.nn.normalisation.kernels import backward

    return backward(*arrays, form=form)


def _shapes(x: Any, *_: Any, form: Form) -> list[Any]:
    vectors = jax.ShapeDtypeStruct((x.shape[0], x.shape[-1]), jnp.float32)
    return [jax.ShapeDtypeStruct(x.shape, form.dtype), vectors, vectors]


def _example() -> Any:
    keys = jax.random.split(jax.random.key(0), 4)
    x, shift = jax.random.normal(keys[0], (2, 200, 96)), jax.random.normal(keys[1], (2, 96))
    gain, offset = jax.random.normal(keys[2], (2, 96))
    keep = jax.random.bernoulli(keys[3], 0.9, x.shape)
    form = Form(8, 1e-6, True, 0.1, jnp.float32)
    return [x + 1, gain, offset, shift, keep.astype(jnp.int8)], {"form": form}


_by_kernels = kernels.kernel(
    "normalise",
    plain=_plain,
    forward=_forward,
    backward=_backward,
    shapes=_shapes,
    moving=4,
    example=_example,
)
