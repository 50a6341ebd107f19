"""Inverse problems y = A x_0 + σ_y n with an unconditional denoiser: DPS and ΠGDM.

By Bayes and Tweedie E[x_0 | x_t, y] = x̂_0 + (1-ᾱ_t)/√ᾱ_t ∇_{x_t} log p(y | x_t), so guiding towards
a measurement wraps a denoiser and leaves every sampler as it is. p(y | x_t) is approximated as

    DPS     N(y; A x̂_0, σ_y² I)                 as if x_0 = x̂_0             (Chung et al. 2022)
    ΠGDM    N(y; A x̂_0, r_t² A Aᵀ + σ_y² I)     as if x_0 ~ N(x̂_0, r_t² I)   (Song et al. 2023)

(arXiv 2209.14687; "Pseudoinverse-Guided Diffusion Models for Inverse Problems", ICLR 2023). Both
differentiate through the denoiser. With data N(m, c² I) ΠGDM is exact, for any A. A region that is
known exactly can also be put back (`samplers.inpaint`).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from ddpm_jax.denoisers.scheduled import ScheduledDenoiser, check_denoiser
from ddpm_jax.forward import NoiseSchedule, lookup
from ddpm_jax.forward.checks import check_finite, check_function, check_number, check_real
from ddpm_jax.forward.process import scales_at
from ddpm_jax.forward.schedule import check_arguments, rows_of_timesteps
from ddpm_jax.types import Array, ArrayLike, Denoised, Denoiser, describe, x_0_of

Operator = Callable[[Array], Array]
"""A of one event: x [...] -> y [...]."""


def dps(
    schedule: NoiseSchedule,
    denoise: Denoiser,
    operator: Operator,
    measured: ArrayLike,
    *,
    noise: float,
    scale: float = 1.0,
) -> ScheduledDenoiser:
    """x̂_0 - s (1-ᾱ_t)/√ᾱ_t ∇_{x_t} ‖y - A x̂_0(x_t)‖²/(2σ_y²)  (DPS, Theorem 1).

    Treats x_0 as known once x̂_0 is, so far from the data it trusts y too much: its pull is up to
    Var(A x_0 | x_t)/σ_y² too strong, and small σ_y need a scale below 1. The paper's step size
    instead divides by ‖y - A x̂_0‖.

    Args:
        schedule: the process of the denoiser.
        denoise: x̂_0 without the measurement; not clipped, or the gradient is lost.
        operator: A of one event, real; differentiable, not necessarily linear.
        measured: y [B, ...], or of one event, for all of them; finite.
        noise: σ_y, above 0.
        scale: s; 1 is Bayes' rule.

    Where ᾱ_t is 0, x_t says nothing and x̂_0 stays. A learned variance stays the network's. Raises
    ValueError for noise <= 0, scale < 0 and a denoiser of another process, TypeError for arguments
    of another kind; the denoiser raises ValueError for measurements that A does not give.

    >>> schedule, x = dj.linear_schedule(), jnp.ones((2, 4))
    >>> half = lambda x: x[:2]
    >>> guided = dj.denoisers.dps(schedule, lambda x, t: 0.5 * x, half, jnp.zeros(2), noise=0.1)
    >>> guided(x, jnp.array([10, 500])).shape
    (2, 4)
    """
    _check("dps", schedule, denoise, operator, measured)
    remedy = "It divides by σ_y²; pi_gdm takes measurements without noise."
    check_number("dps", "noise", noise, remedy, within="(0, inf)")
    remedy = "1 is Bayes' rule, 0 no guidance."
    check_number("dps", "scale", scale, remedy, within="[0, inf)")

    def pull(residual: Array, row: Array, x_0_hat: Array) -> Array:
        return scale * residual / noise**2

    return _guided("dps", schedule, denoise, operator, measured, pull)


def pi_gdm(
    schedule: NoiseSchedule,
    denoise: Denoiser,
    operator: Operator,
    measured: ArrayLike,
    *,
    noise: float = 0.0,
    data_std: float = 1.0,
) -> ScheduledDenoiser:
    """x̂_0 + (1-ᾱ_t)/√ᾱ_t (∂x̂_0/∂x_t)ᵀ Aᵀ (r_t² A Aᵀ + σ_y² I)⁻¹ (y - A x̂_0)  (ΠGDM, Eq. 7).

    r_t² = c² (1-ᾱ_t)/(c² ᾱ_t + 1-ᾱ_t) is Var(x_0 | x_t) of data N(m, c² I), for which the result is
    E[x_0 | x_t, y]; c = 1 is the paper's r_t² = 1-ᾱ_t. The system is solved by conjugate gradients,
    to 1e-5, with Aᵀ from `jax.linear_transpose`.

    Args:
        schedule: the process of the denoiser.
        denoise: x̂_0 without the measurement; not clipped, or the gradient is lost.
        operator: A of one event, real and linear, possibly plus a constant.
        measured: y [B, ...], or of one event, for all of them; finite.
        noise: σ_y, at least 0.
        data_std: c, above 0.

    Where ᾱ_t is 0, x̂_0 stays. A learned variance stays the network's. Raises ValueError for noise <
    0, data_std <= 0 and a denoiser of another process, TypeError for arguments of another kind; the
    denoiser raises ValueError for measurements that A does not give, and TypeError for an A that is
    not linear.

    >>> schedule, x = dj.linear_schedule(), jnp.ones((2, 4))
    >>> half = lambda x: x[:2]
    >>> guided = dj.denoisers.pi_gdm(schedule, lambda x, t: 0.5 * x, half, jnp.zeros(2))
    >>> guided(x, jnp.array([10, 500])).shape
    (2, 4)
    """
    _check("pi_gdm", schedule, denoise, operator, measured)
    check_number("pi_gdm", "noise", noise, "0 is no noise.", within="[0, inf)")
    check_number("pi_gdm", "data_std", data_std, "Song et al. take 1.", within="(0, inf)")

    def pull(residual: Array, row: Array, x_0_hat: Array) -> Array:
        event = jax.ShapeDtypeStruct(x_0_hat.shape[1:], x_0_hat.dtype)
        linear, transpose = _linear("pi_gdm", operator, event)
        left = lookup(schedule.noise_scale, row) ** 2
        variance = data_std**2 * left / (data_std**2 * (1.0 - left) + left)

        def solve(residual, variance):
            def covariance(v):
                return variance * linear(transpose(v)) + noise**2 * v

            return cg(covariance, residual, tol=1e-5)[0]

        return jax.vmap(solve)(residual, variance)

    return _guided("pi_gdm", schedule, denoise, operator, measured, pull)


def _check(call, schedule, denoise, operator, measured) -> None:
    check_arguments(call, schedule=schedule)
    check_function(call, "denoise", denoise, "(x_t, timesteps) -> x̂_0")
    check_function(call, "operator", operator, "(x of one event) -> y")
    check_real(call, measured=measured)
    check_finite(call, measured=measured)
    check_denoiser(call, schedule, denoise)


def _guided(call, schedule, denoise, operator, measured, pull) -> ScheduledDenoiser:
    """x̂_0 + (1-ᾱ)/√ᾱ (∂ A x̂_0/∂x_t)ᵀ pull, pull the residual weighted by an inverse covariance."""

    def guided(x_t: Array, timesteps: Array) -> Array | Denoised:
        row = rows_of_timesteps(schedule, timesteps)
        signal, left = scales_at(schedule, row, x_t.ndim)

        def predicted(x):
            denoised = denoise(x, timesteps)
            x_0_hat = x_0_of(denoised, x)
            measured = jax.vmap(operator)(x_0_hat)
            _check_measured(call, measured)
            return measured, (x_0_hat, denoised)

        expected, backwards, (x_0_hat, denoised) = jax.vjp(predicted, x_t, has_aux=True)
        y = jnp.asarray(measured)
        if y.shape not in (expected.shape, expected.shape[1:]):
            raise ValueError(
                f"{call} needs measurements of the operator's shape, {expected.shape} or one for "
                f"all {expected.shape[1:]}, got {y.shape}."
            )
        residual = jnp.broadcast_to(y, expected.shape) - expected
        (gradient,) = backwards(pull(residual, row, x_0_hat).astype(expected.dtype))
        # Where ᾱ is 0 the derivative is 0, and the factor infinite.
        factor = jnp.where(signal == 0, 0.0, left**2 / jnp.where(signal == 0, 1.0, signal))
        moved = (x_0_hat + factor * gradient).astype(x_t.dtype)
        return denoised._replace(x_0=moved) if isinstance(denoised, Denoised) else moved

    return ScheduledDenoiser(schedule, guided, call)


def _check_measured(call: str, measured: object) -> None:
    """Raises TypeError unless A gives one array of real numbers.

    Integers have no derivative, and complex numbers have two parts: both would be lost.
    """
    dtype = getattr(measured, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{call} needs an operator that returns one floating-point array, got "
            f"{describe(measured)}. Stack several measurements, and the parts of complex ones: "
            "jnp.stack([z.real, z.imag])."
        )


def _linear(
    call: str, operator: Operator, event: jax.ShapeDtypeStruct
) -> tuple[Operator, Operator]:
    """A without its constant, and Aᵀ; TypeError, in the name of the call, if it is not linear."""
    try:
        transpose = jax.linear_transpose(operator, event)
        jax.eval_shape(transpose, jax.eval_shape(operator, event))
    except Exception as error:
        raise TypeError(
            f"{call} needs a linear operator of one event {event.shape}, such as a mask, a blur or "
            "a mean over pixels; this one cannot be transposed. dps takes any differentiable one."
        ) from error
    nothing = jnp.zeros(event.shape, event.dtype)
    return lambda v: jax.jvp(operator, (nothing,), (v,))[1], lambda v: transpose(v)[0]
