"""Attention of positions to each other: as products and a softmax, or by one kernel on NVIDIA GPUs.

On a GPU the products' float32 logits, their softmax and their gradients go through the memory
several times. Pallas's flash attention (Dao et al. 2022) keeps them on the chip. It also computes
logits and softmax in float32, and is used where the network computes in 16 bits.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.nn import kernels
from ddpm_jax.types import Array


def attend(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    """softmax(q kᵀ / √C) v of q [B, N, C], k and v [B, L, C]; the softmax is in float32.

    Keys whose mask [B, L] is False are not seen; where none is, the result is 0.
    """
    if mask is None and kernels.may_run() and _kernel_fits(query, key):
        return jax.lax.platform_dependent(query, key, value, cuda=by_kernel, default=plain_form)
    return plain_form(query, key, value, mask)


def plain_form(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    """`attend` written out."""
    logits = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32)
    logits = logits * query.shape[-1] ** -0.5
    if mask is None:
        weights = jax.nn.softmax(logits, axis=-1)
    else:
        seen, lowest = mask[:, None, :], jnp.finfo(logits.dtype).min
        weights = jax.nn.softmax(jnp.where(seen, logits, lowest), axis=-1) * seen
    return jnp.einsum("bqk,bkc->bqc", weights.astype(value.dtype), value)


def by_kernel(query: Array, key: Array, value: Array, *, interpret: bool = False) -> Array:
    """`attend` by flash attention; q, k and v have the same shape."""
    return _by_kernel(query, key, value, interpret=interpret)[0]


def _kernel_fits(query: Array, key: Array) -> bool:
    (batch, positions, size), dtype = query.shape, query.dtype
    whole = positions in (16, 32) or positions % 64 == 0
    return (
        query.shape == key.shape
        and batch > 0
        and positions > 0
        and dtype in (jnp.float16, jnp.bfloat16)
        and size in (16, 32, 64, 128, 256)
        and whole
    )


def _flash(*arrays: Array, interpret: bool, residuals: bool) -> Any:
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    # Small blocks, because a head of 256 channels fills the registers.
    blocks = BlockSizes(64, 64, 32, 32, 32, 32)
    one_head = [a[:, :, None] for a in arrays]
    return mha(
        *one_head,
        None,
        sm_scale=arrays[0].shape[-1] ** -0.5,
        block_sizes=blocks,
        num_warps=8,
        interpret=interpret,
        return_residuals=residuals,
    )


def _forward(*arrays: Array, interpret: bool) -> list[Array]:
    # With the residuals it is the forward pass of the gradient, which XLA then computes once.
    return [_flash(*arrays, interpret=interpret, residuals=True)[0][:, :, 0]]


def _backward(query: Array, key: Array, value: Array, gradient: Array, *, interpret: bool) -> Any:
    flash = functools.partial(_flash, interpret=interpret, residuals=False)
    return list(jax.vjp(flash, query, key, value)[1](gradient[:, :, None]))


def _example() -> Any:
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (2, 128, 64), jnp.bfloat16) for key in keys], {
        "interpret": False
    }


_by_kernel = kernels.kernel(
    "attend",
    plain=lambda *arrays, interpret: [plain_form(*arrays)],
    forward=_forward,
    backward=_backward,
    shapes=lambda *arrays, **_: [arrays[2]],
    moving=3,
    example=_example,
)
