"""Score matching: fitting s(x) ≈ ∇ log p(x) without the normaliser of p, oldest method first.

    exact      E[½ ‖s‖² + tr ∇s]                      Hyvärinen 2005
    sliced     E[½ (vᵀs)² + vᵀ ∇s v]                  Song, Garg, Shi, Ermon 2019 (1905.07088)
    denoising  E[½ ‖s(x + σz) + z/σ‖²]                Vincent 2011
    ladder     E[½ σ^p ‖s(x + σz, level) + z/σ‖²]     Song, Ermon 2019 (1907.05600), p = 2

The first two are ½ E‖s - ∇ log p‖² up to a constant independent of s, the last two the same for
the perturbed density p ∗ N(0, σ² I).

A score function is any callable `score_fn(x) -> [B, ...]` on x [B, ...] that works row by row: row
i of its value depends on row i of x alone (no batch normalisation). One forward-mode product of the
whole batch is then the product of every example with its own Jacobian.

Every loss is [B], *summed* over the event's axes as in the papers (the losses of `ddpm_jax.losses`
are means over them); the caller averages. Noise and projections are arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.forward.checks import (
    check_batch,
    check_choice,
    check_flag,
    check_function,
    check_number,
    check_per_example,
    check_real,
    check_same_shape,
    check_whole,
    real_table,
)
from ddpm_jax.keys import check_draw, fold_in_each, normal_per_example
from ddpm_jax.score.langevin import positive_of
from ddpm_jax.types import (
    Array,
    ArrayLike,
    Key,
    LevelScore,
    as_array,
    bcast_right,
    per_example,
    sum_per_example,
)

ScoreFn = Callable[[Array], Array]
"""`score_fn(x) -> s`, x and s [B, ...], row by row."""

PROJECTIONS = ("rademacher", "gaussian", "sphere")


def score_of_energy(energy: Callable[..., Array]) -> Callable[..., Array]:
    """The score of p ∝ e^{-f}: s = -∇f; the normaliser does not depend on x and drops out.

    `energy(x, *conditions) -> f` [B] of x [B, ...], row by row; the score takes the same arguments
    (an energy of x and a level makes a score for `ncsn_loss`). It is an ordinary function of
    whatever parameters `energy` closes over. Raises ValueError when the energy is not [B].

    >>> score.score_of_energy(lambda x: 0.5 * jnp.sum(x**2, axis=-1))(jnp.ones((2, 3)))[0]
    Array([-1., -1., -1.], dtype=float32)
    """

    check_function("score_of_energy", "energy", energy, "(x, *conditions) -> f")

    def score(x: Array, *conditions) -> Array:
        (x,) = check_batch("score_of_energy", x=x)

        def total(x: Array) -> Array:
            f = energy(x, *conditions)
            check_per_example("score_of_energy", "energy f", f, x)
            return jnp.sum(f)

        return -jax.grad(total)(x)

    return score


def exact_score_matching(score_fn: ScoreFn, x: Array) -> Array:
    """½ ‖s(x)‖² + tr ∇s(x), [B], for x [B, ...]  (Hyvärinen 2005).

    The trace is a sum of d Jacobian-vector products, d the number of an event's dimensions: it
    costs d evaluations of the score, and its gradient two to three times that. For toy densities
    and checks; for images use `sliced_score_matching` or `denoising_score_matching`.

    Assumes that p falls off at infinity (or at its border); on data of finitely many values the
    minimum is -∞. Raises ValueError when the score is not of x's shape, TypeError for other kinds.

    >>> score.exact_score_matching(lambda x: -x, jnp.ones((2, 3)))
    Array([-1.5, -1.5], dtype=float32)
    """
    (x,) = check_batch("exact_score_matching", x=x)
    d = int(np.prod(x.shape[1:], dtype=np.int64))

    def direction(i: Array) -> Array:
        basis = (jnp.arange(d) == i).astype(x.dtype).reshape((1, *x.shape[1:]))
        return jnp.broadcast_to(basis, x.shape)

    score, forms = _score_and_forms("exact_score_matching", score_fn, x, direction, d)
    return 0.5 * sum_per_example(jnp.square(score)) + jnp.sum(forms, axis=0)


def sliced_score_matching(
    score_fn: ScoreFn, x: Array, projections: Array, *, variance_reduced: bool = False
) -> Array:
    """½ (vᵀs)² + vᵀ ∇s v, [B], averaged over K projections v [K, B, ...]  (1905.07088, Eq. 7).

    With `variance_reduced`, ½ ‖s‖² + vᵀ ∇s v (Eq. 8): (vᵀs)² replaced by its mean. For E[vvᵀ] = I,
    as `projections` draws them, the mean of either over v is `exact_score_matching`, for 1 + K
    evaluations of the score. For Gaussian v the variance falls by ½‖s‖⁴ + 2 sᵀ ∇s s: a gain in
    many dimensions, though slightly worse near a mode, where ‖s‖ is small and ∇s negative.

    Args:
        score_fn: see the module's docstring.
        x: data [B, ...].
        projections: [K, *x.shape], K >= 1.
        variance_reduced: take ½ ‖s‖² exactly.

    Raises ValueError for projections or a score of another shape.

    >>> v = score.projections(dj.example_keys(jax.random.key(0), jnp.arange(2)), 1, (3,))
    >>> score.sliced_score_matching(lambda x: -x, jnp.ones((2, 3)), v).shape
    (2,)
    """
    (x,) = check_batch("sliced_score_matching", x=x)
    check_flag("sliced_score_matching", "variance_reduced", variance_reduced)
    check_real("sliced_score_matching", projections=projections)
    shape = jnp.shape(projections)
    if len(shape) != x.ndim + 1 or shape[0] < 1 or shape[1:] != x.shape:
        raise ValueError(
            "sliced_score_matching needs projections [K, *x.shape], K >= 1 and x.shape = "
            f"{x.shape}, got shape {shape}. Draw them with projections(keys, K, x.shape[1:])."
        )
    v = jnp.asarray(projections, x.dtype)
    score, forms = _score_and_forms("sliced_score_matching", score_fn, x, lambda i: v[i], shape[0])
    if variance_reduced:
        squares = sum_per_example(jnp.square(score))
    else:
        along = jax.vmap(lambda direction: sum_per_example(direction * score))(v)
        squares = jnp.mean(jnp.square(along), axis=0)
    return 0.5 * squares + jnp.mean(forms, axis=0)


def projections(
    keys: Key, num: int, shape: tuple[int, ...], kind: str = "rademacher", dtype=jnp.float32
) -> Array:
    """`num` random directions per example, [num, B, *shape], row i from keys[i], E[vvᵀ] = I.

    "rademacher" (±1; the least variance of vᵀ ∇s v), "gaussian", or "sphere": uniform on the sphere
    of radius √d, not 1, so that E[vvᵀ] = I holds for it too. The first k of them do not depend on
    `num`. Raises ValueError for another kind or num < 1, and as `check_keys` for keys.

    >>> score.projections(dj.example_keys(jax.random.key(0), jnp.arange(2)), 5, (3,)).shape
    (5, 2, 3)
    """
    num = check_whole("projections", "num", num)
    check_choice("projections", "kind", kind, PROJECTIONS)
    shape = check_draw("projections", keys, shape, dtype)

    def draw(index: Array) -> Array:
        drawn_keys = fold_in_each(keys, index)
        if kind == "rademacher":
            return jax.vmap(lambda key: jax.random.rademacher(key, shape, dtype))(drawn_keys)
        v = normal_per_example(drawn_keys, shape, dtype)
        if kind == "gaussian":
            return v
        d = np.prod(shape, dtype=np.float64)
        return v * bcast_right(jnp.sqrt(d / sum_per_example(jnp.square(v))), v.ndim).astype(dtype)

    return jax.vmap(draw)(jnp.arange(num))


def denoising_score_matching(score_fn: ScoreFn, x: Array, noise: Array, sigma: ArrayLike) -> Array:
    """½ ‖s(x + σz) + z/σ‖², [B], for x and noise z [B, ...], sigma [] or [B]  (Vincent 2011).

    Its minimiser is the score of x + σz. The loss grows as d/(2σ²); `ncsn_loss` is scaled. Raises
    ValueError for noise or a score that is not of x's shape, for a sigma that is neither [] nor
    [B], and for a Python number sigma <= 0.

    >>> x, noise = jnp.zeros((2, 3)), jnp.ones((2, 3))
    >>> score.denoising_score_matching(lambda x: -x, x, noise, 1.0)
    Array([0., 0.], dtype=float32)
    """
    (x,) = check_batch("denoising_score_matching", x=x)
    level = positive_of("denoising_score_matching", "sigma", sigma, x)
    residual = _scaled_residual("denoising_score_matching", score_fn, x, noise, level)
    return 0.5 * sum_per_example(jnp.square(residual / level))


def ncsn_loss(
    score_fn: LevelScore,
    x: Array,
    level: ArrayLike,
    noise: Array,
    sigmas: ArrayLike,
    *,
    power: float = 2.0,
) -> Array:
    """½ σ^p ‖s(x + σz, level) + z/σ‖², [B], σ = sigmas[level]  (1907.05600, Eq. 6).

    Computed as ½ σ^{p-2} ‖σ s + z‖², which for the paper's p = 2 has the same size at every level
    and no division by a small σ.

    Args:
        score_fn: `(x, level) -> s`, level int32 [B].
        x: data [B, ...].
        level: int [B] or [], 0 for sigmas[0]; outside the ladder the loss is NaN.
        noise: z, standard normal, of x's shape.
        sigmas: [L], as from `geometric_noise_levels`.
        power: p, the weight's exponent.

    Raises ValueError for noise or a score that is not of x's shape and levels that are neither []
    nor [B], and sigmas that are not positive; TypeError for levels that are not integers.

    >>> sigmas, x = score.geometric_noise_levels(1.0, 0.1, 5), jnp.zeros((2, 3))
    >>> score.ncsn_loss(lambda x, level: -x, x, jnp.array([0, 4]), jnp.ones((2, 3)), sigmas).shape
    (2,)
    """
    (x,) = check_batch("ncsn_loss", x=x)
    level = as_array("ncsn_loss", "level", level)
    check_function("ncsn_loss", "score_fn", score_fn, "(x, level) -> s")
    power = check_number("ncsn_loss", "power", power, "NCSN uses 2.", within="(-inf, inf)")
    if not jnp.issubdtype(level.dtype, jnp.integer):
        raise TypeError(
            f"ncsn_loss needs integer levels that index sigmas, got dtype {level.dtype}. Draw them "
            "with jax.random.randint(key, (), 0, len(sigmas)) per example."
        )
    level = per_example("ncsn_loss", "level", level, x).astype(jnp.int32)
    host = real_table("ncsn_loss", "sigmas", sigmas)
    if isinstance(host, np.ndarray) and not (host > 0).all():
        raise ValueError(f"ncsn_loss needs positive sigmas [L], got {host.min()}.")
    table = jnp.asarray(host, x.dtype)
    # Plain indexing would clamp a level beyond the ladder and wrap -1 round to its smallest σ.
    sigma = table.at[level].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    residual = _scaled_residual(
        "ncsn_loss", lambda x: score_fn(x, level), x, noise, bcast_right(sigma, x.ndim)
    )
    return 0.5 * sigma ** (power - 2.0) * sum_per_example(jnp.square(residual))


def _scaled_residual(call: str, score_fn: ScoreFn, x: Array, noise: Array, sigma: Array) -> Array:
    """σ s(x + σz) + z, which is σ times the residual of denoising score matching."""
    check_function(call, "score_fn", score_fn, "(x) -> s")
    check_batch(call, x=x, noise=noise)
    return sigma * _checked(call, score_fn(x + sigma * noise), x) + noise


def _score_and_forms(
    call: str, score_fn: ScoreFn, x: Array, direction: Callable[[Array], Array], num: int
) -> tuple[Array, Array]:
    """s(x) [B, ...] and vᵢᵀ ∇s(x) vᵢ [num, B] for the directions vᵢ = direction(i) [B, ...]."""
    check_function(call, "score_fn", score_fn, "(x) -> s")
    # The score is evaluated once, and only its linear part per direction.
    score, push = jax.linearize(lambda x: _checked(call, score_fn(x), x), x)

    def form(i: Array) -> Array:
        v = direction(i)
        return sum_per_example(v * push(v))

    if num == 1:
        return score, form(jnp.zeros((), jnp.int32))[None]
    # One direction after the other: side by side they would need `num` times the memory. So would
    # the gradient if it kept each direction's intermediates; it recomputes them instead.
    return score, jax.lax.map(jax.checkpoint(form), jnp.arange(num))


def _checked(call: str, score: Array, x: Array) -> Array:
    check_same_shape(call, score=score, x=x)
    return score
