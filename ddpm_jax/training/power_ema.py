"""Averages of parameters with power-function profiles, and how to change their width afterwards.

Karras et al. 2024 (EDM2, arXiv 2312.02696, §3): after step t the average is Σ_s p(s) θ_s with

    p(s) ∝ s^γ, 0 ≤ s ≤ t,    θ̂_t = β_t θ̂_{t-1} + (1 - β_t) θ_t,    β_t = (1 - 1/t)^(γ+1).

Its width is a fixed share of the training time: σ_rel = std(s) / t. Averages of two widths, stored
at several steps, span others well: `post_hoc_weights` finds the combination of stored averages
whose profile is nearest to a wanted one.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.checks import check_number, check_steps, check_whole
from ddpm_jax.types import Array, ArrayLike, describe

LARGEST_SIGMA_REL = 12**-0.5
"""Of the uniform profile, γ = 0."""


def power_gamma(sigma_rel: float, call: str = "power_gamma") -> float:
    """γ of the profile of relative width σ_rel = (γ+1)^½ (γ+2)^-1 (γ+3)^-½  (EDM2, §3.1).

    Raises TypeError, in the name of the call, for what is not a number, and ValueError unless
    0 < sigma_rel <= 12^-½, the width of the uniform profile, γ = 0.
    """
    remedy = "Karras et al. (2024) train with 0.05 and 0.1 (ema_sigma_rel)."
    within = f"(0, 12^-½={LARGEST_SIGMA_REL:.10f}]"  # rounded up
    check_number(call, "the relative width sigma_rel", sigma_rel, remedy, within=within)
    # (γ+2)² (γ+3) = (γ+1) / σ_rel².
    square = sigma_rel**-2.0
    return max(0.0, float(np.roots([1.0, 7.0, 16.0 - square, 12.0 - square]).real.max()))


def power_ema_decay_at(step: ArrayLike, sigma_rel: float) -> Array:
    """The decay β of the average at update `step` (0-based); 0 at the first."""
    call = "power_ema_decay_at"
    check_steps(call, step, 2**31)
    exponent = power_gamma(sigma_rel, call) + 1.0
    t = jnp.asarray(step, jnp.float32) + 1.0
    # As 1 - β is about γ / t, the power is taken of 1 - 1/t by its logarithm.
    return jnp.exp(exponent * jnp.log1p(-1.0 / t))


def post_hoc_weights(
    stored: Sequence[tuple[int, float]], step: int, sigma_rel: float
) -> tuple[np.ndarray, float]:
    """The weights [N] of stored averages (step, σ_rel) whose sum is nearest to a wanted average.

    Nearest in the squared distance of the profiles over training time, which is a linear system
    (EDM2, §3.2). Its matrix is

        ∫ p_a p_b ds = (γ_a+1) (γ_b+1) m^(γ_a+γ_b+1) / ((γ_a+γ_b+1) t_a^(γ_a+1) t_b^(γ_b+1)),

    m = min(t_a, t_b). The weights are computed in float64 and add up to about 1. Returned with them
    is the distance that remains, relative to the wanted profile: below 0.1 if the stored steps are
    dense enough.

    Raises TypeError for what is not pairs of numbers; ValueError for no averages, a width that no
    profile has, and a step outside 1 … the last stored one.
    """
    call = "post_hoc_weights"
    pairs = isinstance(stored, Sequence) and all(np.shape(pair) == (2,) for pair in stored)
    if not pairs or isinstance(stored, str):
        raise TypeError(f"{call} needs stored, pairs (step, sigma_rel), got {describe(stored)}.")
    if not stored:
        raise ValueError(f"{call} needs stored averages, got none.")
    stored = [(check_whole(call, "a stored step", s, least=0), w) for s, w in stored]
    step = check_whole(call, "step", step, least=0)
    last = max(s for s, _ in stored)
    if not 1 <= step <= last or min(s for s, _ in stored) < 1:
        raise ValueError(
            f"post_hoc_weights needs a step in 1..{last}, the last stored one, got {step}, and "
            f"averages of steps from 1, got {min(s for s, _ in stored)}."
        )
    t, gamma = np.array([(s, power_gamma(width, call)) for s, width in stored], np.float64).T
    matrix = _inner(t[:, None], gamma[:, None], t, gamma)
    goal = np.float64(step), power_gamma(sigma_rel, call)
    wanted, square = _inner(t, gamma, *goal), _inner(*goal, *goal)
    # Scaled to unit diagonal: early averages have narrow, high profiles.
    scale = np.diag(matrix) ** -0.5
    scaled = matrix * scale[:, None] * scale
    weights = np.linalg.lstsq(scaled, wanted * scale, rcond=1e-13)[0] * scale
    distance = weights @ matrix @ weights - 2 * weights @ wanted + square
    return weights, float(np.sqrt(max(0.0, distance / square)))


def _inner(t_a, gamma_a, t_b, gamma_b):
    """The integral over s of the product of two profiles."""
    shared = (gamma_a + gamma_b + 1) * np.log(np.minimum(t_a, t_b))
    alone = (gamma_a + 1) * np.log(t_a) + (gamma_b + 1) * np.log(t_b)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * np.exp(shared - alone)
