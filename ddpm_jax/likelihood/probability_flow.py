"""The probability-flow ODE: samples, codes and exact likelihoods by one adaptive solver.

The densities p_σ of y = x_0 + σ ε are carried into one another by the flow

    dy/dσ = (y - D(y; σ))/σ = -σ ∇ log p_σ(y),       D(y; σ) = E[x_0 | y],

(Song et al. 2021, 2011.13456, §4.3; in these variables Karras et al. 2022, 2206.00364, Eq. 1). What
is integrated here is the same flow in u = log σ and x = y/s, s = √(1+σ²), which is the x_t of a
variance-preserving process:

    dx/du = x/s² - D(s x; σ)/s,      d log p(x)/du = -tr(I/s² - ∂D/∂y).

Tolerances refer to x, which stays O(1). For data of unit variance its right side is near 0 at large
σ, where dy/du ≈ y grows exponentially: on a small U-Net x took 105 steps and y 174.

Each example is integrated with its own steps, by `jax.vmap` over a diffrax solve, so its result
does not depend on its batch; steps shared by a batch of 16 would have saved 16 % of the time. Build
denoisers with clip=False, or the solver has kinks to resolve, and jit the calls: every trace of a
solve is compiled anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.denoisers.sigma import SigmaDenoiser, check_sigmas, denoise_one
from ddpm_jax.forward.checks import (
    check_choice,
    check_flag,
    check_function,
    check_number,
    check_real,
    check_same_shape,
    check_whole,
)
from ddpm_jax.likelihood.adaptive_ode import rms, solve
from ddpm_jax.types import Array, ArrayLike, describe

Trace = Literal["hutchinson", "exact"]
TRACES: tuple[Trace, ...] = ("hutchinson", "exact")


class FlowSolution(NamedTuple):
    """The end of the flow, and its cost.

    Attributes:
        y: [B, ...] at the last σ; NaN for examples that did not converge.
        num_evaluations: of the denoiser, per example, int32 [B]. A batch costs their maximum.
        converged: bool [B], False where `max_steps` were too few or the denoiser gave NaN.
    """

    y: Array
    num_evaluations: Array
    converged: Array


class FlowLikelihood(NamedTuple):
    """The log-likelihood of each example, and what came with it.

    Attributes:
        log_likelihood: log p(y_0) in nats [B].
        y_T: the code [B, ...] at σ_max.
        num_evaluations: as in FlowSolution, each with its derivatives.
        converged: as in FlowSolution.
    """

    log_likelihood: Array
    y_T: Array
    num_evaluations: Array
    converged: Array


def probability_flow_sample(
    denoise: SigmaDenoiser | Callable[..., Array],
    y_T: ArrayLike,
    *,
    sigma_max: float,
    sigma_min: float,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
    solver: Any = None,
    final_denoise: bool = False,
    conditions: tuple[Any, ...] = (),
) -> FlowSolution:
    """Follows the flow from noise y_T [B, ...] at σ_max to data at σ_min (Song et al. 2021, §4.3).

    Args:
        denoise: `(y [1, ...], sigma [1], *conditions) -> x_0_hat [1, ...]`; see `sigma_denoiser`.
        y_T: noise σ_max ε. From the x_T ~ N(0, I) of a grid sampler it is √(1+σ_max²) x_T.
        sigma_max, sigma_min: where to start and stop, host floats; see `sigma_range`.
        rtol, atol: tolerances on one step's error in x = y/√(1+σ²). 1e-5 is Song et al.'s, and near
            the limit of float32.
        max_steps: attempted steps after which an example is given up.
        solver: an adaptive explicit Runge–Kutta method of diffrax; None for `diffrax.Dopri5()`.
        final_denoise: returns x̂_0 = D(y; σ_min) in place of y, with one more evaluation: y still
            has noise of standard deviation σ_min.
        conditions: what the denoiser takes besides y and σ, such as labels [B]: pytrees of arrays
            [B, ...], of which each example gets its own row. A closure over labels [B] does not
            work, because the denoiser is called one example at a time.

    Raises ValueError for noise levels out of order, other shapes, and solvers of another kind;
    TypeError for events that are not floating-point and for levels that are traced.

    Example:
        >>> flow = dj.probability_flow_sample(
        ...     lambda y, sigma: 0.0 * y, jnp.ones((2, 3)), sigma_max=1.0, sigma_min=0.1)
        >>> flow.y[0].round(3)  # for data at 0 the flow is y ∝ σ
        Array([0.1, 0.1, 0.1], dtype=float32)
    """
    call = "probability_flow_sample"
    options = (rtol, atol, max_steps, solver)
    y_T = _check_call(call, denoise, y_T, (sigma_min, sigma_max), options, conditions)
    check_flag(call, "final_denoise", final_denoise)
    flow = _transport(call, denoise, y_T, conditions, (sigma_max, sigma_min), options)
    if not final_denoise:
        return flow
    last = jnp.asarray(sigma_min, flow.y.dtype)
    finish = jax.vmap(lambda y, rows: denoise_one(call, denoise, y, last, rows))
    return FlowSolution(finish(flow.y, conditions), flow.num_evaluations + 1, flow.converged)


def probability_flow_encode(
    denoise: SigmaDenoiser | Callable[..., Array],
    y_0: ArrayLike,
    *,
    sigma_min: float,
    sigma_max: float,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
    solver: Any = None,
    conditions: tuple[Any, ...] = (),
) -> FlowSolution:
    """Follows the flow from data y_0 [B, ...] at σ_min to its code at σ_max, `sample`'s inverse.

    y_T/σ_max is close to N(0, I), and unique to y_0 (Song et al. 2021, §4.3). Arguments and errors
    are those of `probability_flow_sample`.

    Example:
        >>> flow = dj.probability_flow_encode(
        ...     lambda y, sigma: 0.0 * y, jnp.ones((2, 3)), sigma_min=0.1, sigma_max=1.0)
        >>> flow.y[0].round(2)
        Array([10., 10., 10.], dtype=float32)
    """
    call = "probability_flow_encode"
    options = (rtol, atol, max_steps, solver)
    y_0 = _check_call(call, denoise, y_0, (sigma_min, sigma_max), options, conditions)
    return _transport(call, denoise, y_0, conditions, (sigma_min, sigma_max), options)


def probability_flow_log_likelihood(
    denoise: SigmaDenoiser | Callable[..., Array],
    y_0: ArrayLike,
    *,
    sigma_min: float,
    sigma_max: float,
    trace: Trace = "hutchinson",
    probes: ArrayLike | None = None,
    prior_mean: ArrayLike = 0.0,
    prior_std: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
    solver: Any = None,
    conditions: tuple[Any, ...] = (),
) -> FlowLikelihood:
    """log p(y_0) in nats, by the change of variables along the flow (Song et al. 2021, App. D.2).

    log p(y_0) = log N(y_T; prior_mean, prior_std² I) + ∫ tr ∂(dy/du)/∂y du over u = log σ.

    The density is that of the flow started from the prior and stopped at σ_min: normalised
    whatever the network, and not that of data without noise. With Hutchinson's estimate vᵀJv of
    the trace, E[vvᵀ] = I, it is unbiased except for the solver's error; with one Rademacher probe
    (±1) it is exact where J is diagonal.

    Args:
        denoise: as in `probability_flow_sample`, differentiable in y: clipping would zero the
            derivative where it acts.
        y_0: data [B, ...]; pixels must be `dequantize`d.
        sigma_min, sigma_max: host floats; see `sigma_range`.
        trace: "hutchinson", K + 1 products per evaluation; or "exact", by all d forward-mode
            products at once, for d small enough to hold d tangents of the network.
        probes: v [K, B, ...], Rademacher or Gaussian, held fixed along the way; for "hutchinson".
        prior_mean, prior_std: of y_T; the mean broadcasts to one event. The defaults, 0 and σ_max,
            neglect the data's own mean m and standard deviation c: y_T ~ N(m, (c² + σ_max²) I) to
            second order. For m = 0.25, c = 0.5 and σ_max = 157 that changes log p by 2e-3 z nats
            per dimension, z ~ N(0, 1), and its mean over data by 1e-6.
        rtol, atol: tolerances on one step's error, in x and in nats per dimension.
        max_steps, solver, conditions: as in `probability_flow_sample`.

    Raises ValueError for unknown traces, probes missing, superfluous or of another shape, a
    prior_std that is not positive; and as `probability_flow_sample` does.

    Example:
        >>> flow = dj.probability_flow_log_likelihood(
        ...     lambda y, sigma: y / (1 + sigma[:, None] ** 2),  # data ~ N(0, 1)
        ...     jnp.zeros((1, 2)), sigma_min=0.01, sigma_max=100.0, trace="exact")
        >>> f"{flow.log_likelihood[0]:.2f}"  # -log 2π
        '-1.84'
    """
    call = "probability_flow_log_likelihood"
    options = (rtol, atol, max_steps, solver)
    y_0 = _check_call(call, denoise, y_0, (sigma_min, sigma_max), options, conditions)
    probes = _check_probes(call, trace, probes, y_0)
    prior_std = sigma_max if prior_std is None else prior_std
    check_number(call, "prior_std", prior_std, "σ_max is the usual one.", within="(0, inf)")
    check_real(call, prior_mean=prior_mean)
    if jnp.shape(prior_mean) not in ((), y_0.shape[1:]):
        raise ValueError(
            f"{call} needs prior_mean [], or of one event's shape {y_0.shape[1:]}, got shape "
            f"{jnp.shape(prior_mean)}."
        )
    event_shape = y_0.shape[1:]
    d = math.prod(event_shape)
    basis = jnp.eye(d, dtype=y_0.dtype).reshape(d, *event_shape) if trace == "exact" else None

    def one(y, v, conditions):
        velocity = _velocity(call, denoise, conditions)
        directions, count = (v, v.shape[0]) if basis is None else (basis, 1)

        def field(u, state):
            def push(v):
                return jax.jvp(lambda x: velocity(u, x), (state[0],), (v,))

            dx, pushed = jax.vmap(push, out_axes=(None, 0))(directions)
            return dx, jnp.sum(directions * pushed) / (d * count)

        def norm(state):
            # Nats per dimension count as much as all of x, not as one of d + 1 values.
            return jnp.maximum(rms(state[0]), jnp.abs(state[1]))

        start = (y / math.hypot(1.0, sigma_min), jnp.zeros((), y.dtype))
        return solve(call, field, start, (sigma_min, sigma_max), norm, options)

    (x_T, divergence), num_evaluations, converged = jax.vmap(
        one, in_axes=(0, None if probes is None else 1, 0)
    )(y_0, probes, conditions)
    y_T = x_T * math.hypot(1.0, sigma_max)
    prior_mean = jnp.broadcast_to(jnp.asarray(prior_mean, y_0.dtype), event_shape)
    squared = jnp.sum(jnp.square((y_T - prior_mean[None]) / prior_std).reshape(len(y_T), d), 1)
    # log s_T - log s_0 converts densities from y to x and back; log prior_std nearly cancels it.
    rescaled = math.hypot(1.0, sigma_max) / (prior_std * math.hypot(1.0, sigma_min))
    constant = math.log(rescaled) - 0.5 * math.log(2.0 * math.pi)
    log_likelihood = d * (divergence + constant) - 0.5 * squared
    return FlowLikelihood(log_likelihood, y_T, num_evaluations, converged)


def _transport(
    call: str, denoise: Any, y: Array, conditions: Any, sigmas: tuple[float, float], options
) -> FlowSolution:
    """Follows the flow from sigmas[0] to sigmas[1], in either direction, from a checked y."""

    def one(y, conditions):
        velocity = _velocity(call, denoise, conditions)
        x = y / math.hypot(1.0, sigmas[0])
        x, num_evaluations, converged = solve(call, velocity, x, sigmas, rms, options)
        return FlowSolution(x * math.hypot(1.0, sigmas[1]), num_evaluations, converged)

    return jax.vmap(one)(y, conditions)


def _velocity(call: str, denoise: Any, conditions: Any) -> Callable[[Array, Array], Array]:
    """dx/du of one example as a function of u [] and x [...]."""

    def velocity(u: Array, x: Array) -> Array:
        sigma = jnp.exp(u)
        s = jnp.hypot(1.0, sigma)
        return x / s**2 - denoise_one(call, denoise, s * x, sigma, conditions) / s

    return velocity


def _check_call(
    call: str,
    denoise: Any,
    y: ArrayLike,
    sigmas: tuple[float, float],
    options: tuple[float, float, int, Any],
    conditions: Any,
) -> Array:
    """y in float32 or wider; TypeError or ValueError for bad arguments."""
    check_function(call, "denoise", denoise, "(y, sigma) -> x_0_hat")
    check_real(call, y=y)
    check_sigmas(call, *sigmas)
    for name, tolerance in zip(("rtol", "atol"), options[:2], strict=True):
        if isinstance(tolerance, jax.Array):  # may be traced: one program for all tolerances
            check_same_shape(call, **{name: tolerance, "a number": 1.0})
        else:
            check_number(call, name, tolerance, "1e-5 suits float32.", within="(0, inf)")
    check_whole(call, "max_steps", options[2])
    y = jnp.asarray(y)
    if y.ndim == 0:
        raise ValueError(f"{call} needs a batch of events [B, ...], got a scalar.")
    if not isinstance(conditions, tuple | list):
        raise TypeError(
            f"{call} needs conditions, a tuple such as (labels,), got {describe(conditions)}."
        )
    for value in jax.tree.leaves(conditions):
        if not hasattr(value, "dtype") or value.shape[:1] != y.shape[:1]:
            raise ValueError(
                f"{call} needs conditions with a row for each of the {y.shape[0]} examples, got "
                f"{describe(value)}."
            )
    return y.astype(jnp.promote_types(y.dtype, jnp.float32))


def _check_probes(call: str, trace: str, probes: ArrayLike | None, y_0: Array) -> Array | None:
    """The probes in y_0's dtype, None for an exact trace, or ValueError."""
    check_choice(call, "trace", trace, TRACES)
    if trace == "exact":
        if probes is not None:
            raise ValueError(f"{call} with trace='exact' takes no probes; leave them out.")
        return None
    shape = None if probes is None else jnp.shape(probes)
    if shape is None or len(shape) != y_0.ndim + 1 or shape[0] < 1 or shape[1:] != y_0.shape:
        raise ValueError(
            f"{call} with trace='hutchinson' needs probes [K, *y_0.shape], K >= 1 and y_0.shape = "
            f"{y_0.shape}, got {'None' if shape is None else f'shape {shape}'}. Rademacher ones: "
            "jax.random.rademacher(key, (1, *y_0.shape), y_0.dtype)."
        )
    check_real(call, probes=probes)
    return jnp.asarray(probes, y_0.dtype)
