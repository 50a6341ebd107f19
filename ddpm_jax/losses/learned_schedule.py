"""The bound in continuous time, and how it learns the noise schedule γ(t) = -log SNR(t).

    L_∞ = KL(q(z_1|x_0) ‖ N(0, I)) + ½ ∫ γ'(t) E‖ε - ε̂(z_t; γ(t))‖² dt + E[-log p(x_0|z_0)]

with z_t = √sigmoid(-γ) x_0 + √sigmoid(γ) ε (Kingma et al. 2021, 2107.00630, "VDM", Eqs. 11 to 18).
The integral depends on γ through its ends alone (§5.1): the shape between them changes only the
variance of its estimate by one t per example. So the ends are trained by the bound, and the shape
by the squared loss, whose mean is that variance plus a constant (App. I.2).

The shape's gradient of L_i² is 2 L_i times that of L_i. It is taken in the backward pass of the
bound itself, at no evaluation more: `_attach` multiplies the shape's gradient by a cotangent that
`_emit` sets to 2 L_i.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.forward.checks import check_function, check_same_shape
from ddpm_jax.forward.continuous import check_times
from ddpm_jax.likelihood import discretized_log_likelihood, normal_kl
from ddpm_jax.likelihood.bound import NATS_PER_BIT
from ddpm_jax.nn import Gamma
from ddpm_jax.types import ApplyFn, Array, bcast_right, describe, mean_per_example


class ContinuousBound(NamedTuple):
    """The three terms of one estimate, in bits/dim, each [B].

    Attributes:
        prior: KL(q(z_1|x_0) ‖ N(0, I)).
        diffusion: one sample of the integral, by one t per example.
        reconstruction: the discretised decoder's code length at t = 0.
    """

    prior: Array
    diffusion: Array
    reconstruction: Array

    @property
    def total(self) -> Array:
        """The bound, [B]."""
        return self.prior + self.diffusion + self.reconstruction


@jax.custom_vjp
def _attach(shape: Any, carrier: Array) -> tuple[Any, Array]:
    """The identity. Backward, the shape's cotangents are multiplied by the carrier's [B]."""
    return shape, carrier


_attach.defvjp(
    lambda shape, carrier: ((shape, carrier), None),
    lambda _, cotangents: (
        jax.tree.map(lambda g: g * cotangents[1], cotangents[0]),
        jnp.zeros_like(cotangents[1]),
    ),
)


@jax.custom_vjp
def _emit(losses: Array, carrier: Array) -> Array:
    """The losses [B]. Backward, the carrier's cotangent is 2 L_i."""
    return losses


_emit.defvjp(
    lambda losses, carrier: (losses, losses), lambda losses, cotangent: (cotangent, 2.0 * losses)
)


def continuous_bound(
    gamma: Callable[[Array], Any], apply_fn: ApplyFn, x_0: Array, t: Array, noise: Array
) -> ContinuousBound:
    """The bound with a continuous, learnable schedule, in bits/dim: three terms, each [B].

    L_∞ above, from one evaluation of the network: the mean of `.total` is an unbiased estimate for
    t ~ U[0, 1] (VDM Eqs. 11, 17, 18). With a `GammaNetwork`'s parts the gradient of γ's ends is
    the bound's, and the gradient of its shape that of the squared diffusion term (App. I.2).

    Args:
        gamma: `t [B] -> Gamma`: `lambda t: network.apply(params, t, method="parts")`.
        apply_fn: `(z_t [B, ...], γ(t) [B]) -> ε̂ [B, ...]`.
        x_0: clean data [B, ...] on the grid of 256 levels, as `from_pixels` makes it.
        t: times in [0, 1], [B] or [].
        noise: ε ~ N(0, I) of x_0's shape. The decoder at t = 0 uses it, too.

    Raises ValueError for other shapes, and TypeError for other dtypes or a γ that is not in parts.

    Example:
        >>> gamma = lambda t: dj.nn.Gamma(jnp.array(-8.0), jnp.array(5.0), t)
        >>> x, t = jnp.ones((2, 3)), jnp.array([0.1, 0.9])
        >>> dj.losses.continuous_bound(gamma, lambda z, g: 0.0 * z, x, t, 0.0 * x).diffusion
        Array([0., 0.], dtype=float32)
    """
    call = "continuous_bound"
    check_function(call, "gamma", gamma, "t -> Gamma")
    check_function(call, "apply_fn", apply_fn, "(z_t, gamma) -> epsilon_hat")
    check_same_shape(call, x_0=x_0, noise=noise)
    t = check_times(call, t, x_0)
    start, end, shape = _parts(call, gamma, t)
    shape, carrier = _attach(shape, jnp.zeros_like(shape[0]))
    level, rate = Gamma(start, end, shape[0]).value, (end - start) * shape[1]
    signal, sigma = (bcast_right(scale, x_0.ndim) for scale in _scales(level))
    epsilon_hat = apply_fn(signal * x_0 + sigma * noise, level)
    check_same_shape(f"{call} (apply_fn)", noise=noise, output=epsilon_hat)
    error = mean_per_example(jnp.square(noise - epsilon_hat.astype(noise.dtype)))
    diffusion = _emit(0.5 * rate * error / NATS_PER_BIT, carrier)

    signal, sigma = _scales(end)
    prior = normal_kl(signal * x_0, jnp.full_like(x_0, 2.0) * jnp.log(sigma), 0.0, 0.0)
    # p(x_0|z_0) ∝ q(z_0|x_0): a Gaussian around z_0/√ᾱ_0 of variance σ_0² = e^{γ_0}.
    width = jnp.full_like(x_0, 0.5) * start
    decoder = discretized_log_likelihood(x_0, x_0 + jnp.exp(width) * noise, 2.0 * width)
    return ContinuousBound(
        mean_per_example(prior) / NATS_PER_BIT, diffusion, -mean_per_example(decoder) / NATS_PER_BIT
    )


def _scales(level: Array) -> tuple[Array, Array]:
    """√ᾱ and √(1-ᾱ) at γ."""
    return jnp.sqrt(jax.nn.sigmoid(-level)), jnp.sqrt(jax.nn.sigmoid(level))


def _parts(call: str, gamma: Any, t: Array) -> tuple[Array, Array, tuple[Array, Array]]:
    """(γ_0 [], γ_1 [], (share [B], its rate of change [B]))."""

    def share_of(t: Array) -> tuple[Array, tuple[Array, Array]]:
        parts = gamma(t)
        if not all(hasattr(parts, name) for name in ("start", "end", "share")):
            raise TypeError(
                f"{call} needs gamma, a function t -> Gamma(start, end, share), got one that "
                f"returns {describe(parts)}. Of a GammaNetwork it is "
                "lambda t: network.apply(params, t, method='parts')."
            )
        check_same_shape(f"{call} (gamma)", share=parts.share, t=t)
        return parts.share, (jnp.asarray(parts.start), jnp.asarray(parts.end))

    share, rate, (start, end) = jax.jvp(share_of, (t,), (jnp.ones_like(t),), has_aux=True)
    return start, end, (share, rate)
