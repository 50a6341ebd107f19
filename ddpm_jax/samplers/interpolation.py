"""Interpolation between two images or two latents, on the line and on the sphere."""

from __future__ import annotations

import jax.numpy as jnp

from ddpm_jax.forward.checks import check_batch, check_real
from ddpm_jax.types import Array, ArrayLike, bcast_right, per_example


def lerp(a: Array, b: Array, fraction: ArrayLike) -> Array:
    """(1-f) a + f b for a, b [B, ...] and f [B], or [] shared by all.

    Halfway between independent noises this has norm ‖a‖/√2, which no latent in training has;
    `slerp` keeps the norm. Raises ValueError when a and b differ in shape or the fraction is
    neither [] nor [B], and TypeError for images that are not floating point.

    >>> dj.samplers.lerp(jnp.zeros((2, 3)), jnp.ones((2, 3)), 0.25)[0, 0]
    Array(0.25, dtype=float32)
    """
    f = _fraction("lerp", a, b, fraction)
    return ((1.0 - f) * a + f * b).astype(jnp.result_type(a, b))


def slerp(a: Array, b: Array, fraction: ArrayLike) -> Array:
    """sin((1-f)θ)/sin θ · a + sin(fθ)/sin θ · b, θ the angle between a and b [B, ...], f [B] or [].

    θ is taken over all axes of an example, and f may lie outside 0..1. Between vectors of one norm
    this is the great circle: each point has that norm, and the angle to `a` is fθ. Parallel vectors
    give `lerp`. Opposite ones have no shortest path, and the result means nothing: it is 0, huge
    from rounding or not finite. Raises as `lerp` does.

    Shoemake 1985; for diffusion latents Song, Meng, Ermon 2020 (2010.02502), App. D.5.

    >>> dj.slerp(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), 0.5).round(3)
    Array([[0.707, 0.707]], dtype=float32)
    """
    f = _fraction("slerp", a, b, fraction)
    unit_a, unit_b = (x / _norm(x) for x in (a.astype(f.dtype), b.astype(f.dtype)))
    # Not the arc cosine of the dot product: in float32 it resolves no angle below 3e-4.
    theta = 2.0 * jnp.arctan2(_norm(unit_a - unit_b), _norm(unit_a + unit_b))

    def weight(share):
        # sin(share θ)/sin θ. At small angles its series: the next term is less than rounding, and
        # the quotient has no derivative at θ = 0.
        series = share * (1.0 + (1.0 - share**2) * theta**2 / 6.0)
        small = jnp.maximum(1.0, jnp.abs(share)) * theta < jnp.finfo(theta.dtype).eps ** 0.25
        larger = jnp.where(small, 1.0, theta)
        return jnp.where(small, series, jnp.sin(share * larger) / jnp.sin(larger))

    return (weight(1.0 - f) * a + weight(f) * b).astype(jnp.result_type(a, b))


def _norm(x: Array) -> Array:
    """‖x‖ of each example [B, 1, ...], kept off 0 so that the zero vector can be divided by it."""
    squares = jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)), keepdims=True)
    return jnp.sqrt(jnp.maximum(squares, jnp.finfo(x.dtype).tiny))


def _fraction(name: str, a: Array, b: Array, fraction: ArrayLike) -> Array:
    a, b = check_batch(name, a=a, b=b)
    check_real(name, fraction=fraction)
    # Norms and angles take this dtype, too: in half precision they would overflow or be rough.
    wide = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    f = per_example(name, "fraction", jnp.asarray(fraction, wide), a)
    return bcast_right(f, a.ndim)
