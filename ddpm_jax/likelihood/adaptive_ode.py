"""An ODE in log σ for one example, with steps chosen by its error (diffrax)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.types import Array

# Where the flow is nearly still, steps grow until one passes over all of the data's structure
# unseen: at a tolerance of 1e-2 that cost an error of 0.9. At most one e-fold of σ per step
# prevents it, costs ten steps over the paper's range, and saves rejected ones.
_LONGEST_STEP = 1.0


def rms(x: Array) -> Array:
    """√(mean x²), the norm of a step's error."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def solve(
    call: str,
    field: Callable[[Any, Any], Any],
    start: Any,
    sigmas: tuple[float, float],
    norm: Callable[[Any], Array],
    options: tuple[float, float, int, Any],
) -> tuple[Any, Array, Array]:
    """Solves d state/du = field(u, state), u = log σ, from sigmas[0] to sigmas[1] for one example.

    `options` are (rtol, atol, max_steps, solver), solver None for Dormand and Prince's method.
    Returns (state at sigmas[1], evaluations of the field, converged); NaN where it failed.
    Raises ValueError for a solver that is no adaptive explicit Runge–Kutta method.
    """
    # Here and not above: importing the package must not cost importing diffrax.
    import diffrax

    rtol, atol, max_steps, solver = options
    solver = diffrax.Dopri5() if solver is None else solver
    if not isinstance(solver, diffrax.AbstractERK) or isinstance(solver, diffrax.Euler):
        raise ValueError(
            f"{call} needs an adaptive explicit Runge–Kutta method of diffrax, such as Dopri5(), "
            f"Tsit5() or Dopri8(), got {solver!r}."
        )
    dtype = jax.tree.leaves(start)[0].dtype
    u_from, u_to = (jnp.asarray(math.log(sigma), dtype) for sigma in sigmas)
    term = diffrax.ODETerm(lambda u, state, args: field(u, state))
    # Diffrax's own estimate of the first step would try noise levels far out of range.
    first_step = (u_to - u_from) / 100
    # NaNs make the steps ever smaller: give the example up once they no longer change u.
    control = diffrax.PIDController(
        rtol, atol, norm, dtmax=_LONGEST_STEP, dtmin=1e-6, force_dtmin=False
    )
    more = {"stepsize_controller": control, "max_steps": int(max_steps), "throw": False}
    solution = diffrax.diffeqsolve(term, solver, u_from, u_to, first_step, start, **more)
    # A method whose last stage is the next step's first (FSAL) evaluates the first stage once, at
    # the start. Retries of the very first step, of which there are few, are not counted.
    tableau: Any = solver.tableau
    reused = int(tableau.fsal)
    num_evaluations = solution.stats["num_steps"] * (tableau.num_stages - reused) + reused
    finite = jnp.stack([jnp.isfinite(leaf[-1]).all() for leaf in jax.tree.leaves(solution.ys)])
    converged = (solution.result == diffrax.RESULTS.successful) & finite.all()
    state = jax.tree.map(lambda leaf: jnp.where(converged, leaf[-1], jnp.nan), solution.ys)
    return state, jnp.asarray(num_evaluations, jnp.int32), converged
