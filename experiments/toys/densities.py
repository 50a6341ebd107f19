"""Densities in two or three dimensions: samples, log-densities, and scores at every noise level.

The density of x + σz, z ~ N(0, I), is known for every σ. Mixtures of Gaussians stay mixtures,

    p_σ = Σ_m w_m N(μ_m, (c² + σ²) I),     ∇ log p_σ = Σ_m r_m(x) (μ_m - x)/(c² + σ²),

blurred circles lead to a Bessel function, blurred squares to products of differences of Φ. So the
error of a learned score can be measured against the truth, and samplers can be given the true one.

σ is a number, [] or [B]. Row i of a sample depends on keys[i] alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.scipy.special import i0e, i1e, log_ndtr, logsumexp

from ddpm_jax.keys import normal_per_example, split_each
from ddpm_jax.types import Array, ArrayLike, Key

LOG_2_PI = float(np.log(2.0 * np.pi))


class Density(NamedTuple):
    """A density on R^dim as functions.

    Attributes:
        dim: the number of dimensions.
        sample: `keys [B] -> x [B, dim]`, without the noise of any level.
        log_density: `(x [B, dim], sigma) -> log p_σ(x)` [B].
        score: `(x [B, dim], sigma) -> ∇ log p_σ(x)` [B, dim].

    Where p_0 has no density or no score, sigma must be above 0, as the docstring then says.
    """

    dim: int
    sample: Callable[[Key], Array]
    log_density: Callable[[Array, ArrayLike], Array]
    score: Callable[[Array, ArrayLike], Array]


def gaussian_mixture(weights: npt.ArrayLike, means: npt.ArrayLike, width: float) -> Density:
    """Σ_m w_m N(μ_m, width² I), weights [M] and means [M, D]. For width > 0 also smooth at σ = 0.

    Raises ValueError for mismatched shapes, weights that are not a distribution, and width < 0.
    """
    w, mu = np.asarray(weights, np.float64), np.asarray(means, np.float64)
    if mu.ndim != 2 or w.shape != mu.shape[:1] or (w <= 0).any() or abs(w.sum() - 1.0) > 1e-6:
        raise ValueError(
            "gaussian_mixture needs weights [M], positive with sum 1, and means [M, D], got shapes "
            f"{w.shape} and {mu.shape} and the sum {w.sum():.6g}."
        )
    if not width >= 0:
        raise ValueError(f"gaussian_mixture needs width >= 0, got {width}.")
    log_weights, centres = jnp.asarray(np.log(w), jnp.float32), jnp.asarray(mu, jnp.float32)
    dim = mu.shape[1]

    def terms(x: Array, sigma: ArrayLike) -> tuple[Array, Array]:
        """log w_m N(x; μ_m, v) [B, M] and v [B, 1]."""
        variance = width**2 + jnp.square(_column(sigma, x))
        squares = jnp.sum(jnp.square(x[:, None, :] - centres[None]), axis=-1)
        log_normal = -0.5 * (squares / variance + dim * (jnp.log(variance) + LOG_2_PI))
        return log_weights[None] + log_normal, variance

    def sample(keys: Key) -> Array:
        which_keys, noise_keys = split_each(keys, 2)
        which = jax.vmap(lambda key: jax.random.categorical(key, log_weights))(which_keys)
        return centres[which] + width * normal_per_example(noise_keys, (dim,))

    def log_density(x: Array, sigma: ArrayLike = 0.0) -> Array:
        return logsumexp(terms(x, sigma)[0], axis=1)

    def score(x: Array, sigma: ArrayLike = 0.0) -> Array:
        log_terms, variance = terms(x, sigma)
        return (jax.nn.softmax(log_terms, axis=1) @ centres - x) / variance

    return Density(dim, sample, log_density, score)


def two_gaussians(minor_weight: float = 0.2, distance: float = 5.0) -> Density:
    """w N((-a, -a), I) + (1-w) N((a, a), I): the example of NCSN (1907.05600, §3.2), a = distance.

    Raises ValueError for a weight outside (0, 1).
    """
    if not 0.0 < minor_weight < 1.0:
        raise ValueError(f"two_gaussians needs 0 < minor_weight < 1, got {minor_weight}.")
    means = [[-distance, -distance], [distance, distance]]
    return gaussian_mixture([minor_weight, 1.0 - minor_weight], means, 1.0)


def rings(radii: Sequence[float] = (1.0, 2.0), width: float = 0.1) -> Density:
    """Circles around 0, weighted by their length and blurred by N(0, width² I).

    With ρ = ‖x‖ and v = width² + σ², a circle of radius r has
    p_σ = exp(-(ρ² + r²)/(2v)) I_0(ρr/v)/(2πv), I_0 the modified Bessel function. Raises ValueError
    for radii or a width that are not positive.
    """
    r = np.asarray(radii, np.float64)
    if r.ndim != 1 or not r.size or (r <= 0).any() or not width > 0:
        raise ValueError(f"rings needs radii and a width above 0, got {radii=}, {width=}.")
    log_weights, circle = jnp.asarray(np.log(r / r.sum())), jnp.asarray(r, jnp.float32)
    log_weights = log_weights.astype(jnp.float32)

    def terms(x: Array, sigma: ArrayLike) -> tuple[Array, Array, Array]:
        """The log of each circle's share of p_σ [B, K], z = ρr/v [B, K], and v [B, 1]."""
        variance = width**2 + jnp.square(_column(sigma, x))
        # Kept above 0 at the centre, where the root has no derivative.
        rho = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=1, keepdims=True), 1e-12))
        z = rho * circle[None] / variance
        # The scaled Bessel function e^{-z} I_0(z): I_0 itself overflows at z = 89.
        log_circle = -jnp.square(rho - circle[None]) / (2.0 * variance) + jnp.log(i0e(z))
        return log_weights[None] + log_circle - LOG_2_PI - jnp.log(variance), z, variance

    def sample(keys: Key) -> Array:
        which_keys, angle_keys, noise_keys = split_each(keys, 3)
        which = jax.vmap(lambda key: jax.random.categorical(key, log_weights))(which_keys)
        angle = 2.0 * jnp.pi * jax.vmap(jax.random.uniform)(angle_keys)
        on_circle = circle[which][:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        return on_circle + width * normal_per_example(noise_keys, (2,))

    def log_density(x: Array, sigma: ArrayLike = 0.0) -> Array:
        return logsumexp(terms(x, sigma)[0], axis=1)

    def score(x: Array, sigma: ArrayLike = 0.0) -> Array:
        log_terms, z, variance = terms(x, sigma)
        # I_1(z)/(z I_0(z)), which is ½ at 0: the pull of the circle along x, in units of r²/v.
        pull = jnp.where(z > 1e-3, i1e(z) / (jnp.maximum(z, 1e-3) * i0e(z)), 0.5)
        shares = jax.nn.softmax(log_terms, axis=1)
        gain = jnp.sum(shares * pull * jnp.square(circle)[None], axis=1, keepdims=True) / variance
        return (gain - 1.0) * x / variance

    return Density(2, sample, log_density, score)


def checkerboard(cells: int = 4, half_width: float = 2.0) -> Density:
    """Uniform on every other square of a board of cells² squares on [-half_width, half_width]².

    p_σ is the mean over the squares of Π_j [Φ((b_j - x_j)/σ) - Φ((a_j - x_j)/σ)] / area. At σ = 0
    it jumps and has no score: sigma must be above 0. Raises ValueError for fewer than two cells,
    and if sigma is a Python number <= 0.
    """
    if cells < 2 or not half_width > 0:
        raise ValueError(
            f"checkerboard needs cells >= 2 and half_width > 0, got {cells=}, {half_width=}."
        )
    side = 2.0 * half_width / cells
    chosen = [(i, j) for i in range(cells) for j in range(cells) if (i + j) % 2 == 0]
    corners = jnp.asarray(-half_width + side * np.array(chosen), jnp.float32)
    log_share = -float(np.log(len(chosen) * side**2))

    def terms(x: Array, sigma: ArrayLike) -> tuple[Array, Array]:
        """The log of each square's part of p_σ [B, S], and the score of that part [B, S, 2]."""
        _needs_noise("checkerboard", sigma)
        scale = _column(sigma, x)[:, :, None]
        low = (corners[None] - x[:, None, :]) / scale
        high = (corners[None] + side - x[:, None, :]) / scale
        # Φ(high) - Φ(low) cancels in the upper tail, so it is mirrored into the lower one.
        mirrored = low + high > 0
        near, far = jnp.where(mirrored, -low, high), jnp.where(mirrored, -high, low)
        log_far = log_ndtr(far) - log_ndtr(near)
        log_mass = log_ndtr(near) + jnp.log1p(-jnp.exp(jnp.minimum(log_far, -1e-7)))

        def rate(edge: Array) -> Array:
            return jnp.exp(-0.5 * (jnp.square(edge) + LOG_2_PI) - log_mass)

        return log_share + jnp.sum(log_mass, axis=-1), (rate(low) - rate(high)) / scale

    def sample(keys: Key) -> Array:
        which_keys, place_keys = split_each(keys, 2)
        which = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(chosen)))(which_keys)
        return corners[which] + side * jax.vmap(lambda key: jax.random.uniform(key, (2,)))(
            place_keys
        )

    def log_density(x: Array, sigma: ArrayLike) -> Array:
        return logsumexp(terms(x, sigma)[0], axis=1)

    def score(x: Array, sigma: ArrayLike) -> Array:
        log_terms, scores = terms(x, sigma)
        return jnp.sum(jax.nn.softmax(log_terms, axis=1)[:, :, None] * scores, axis=1)

    return Density(2, sample, log_density, score)


def swiss_roll(width: float = 0.1, outer_radius: float = 2.0, nodes: int = 256) -> Density:
    """(u cos u, u sin u) for u uniform in [3π/2, 9π/2], scaled to outer_radius, plus N(0, width²).

    p_σ is an integral over u, computed by Gauss–Legendre quadrature: a mixture of `nodes` normals.
    With 256 nodes the error is below 1e-6 if √(width² + σ²) ≥ 0.05 outer_radius. Raises ValueError
    for a width that is not positive or that the nodes cannot resolve.
    """
    if not width > 0 or width * nodes < 12.0 * outer_radius:
        raise ValueError(
            f"swiss_roll needs width > 0 and nodes >= 12 outer_radius/width, got {width=}, "
            f"{outer_radius=}, {nodes=}: the curve would break up into beads."
        )
    low, high = 1.5 * np.pi, 4.5 * np.pi
    scale = outer_radius / high
    points, weights = np.polynomial.legendre.leggauss(nodes)
    u = low + (high - low) * (points + 1.0) / 2.0
    curve = scale * u[:, None] * np.stack([np.cos(u), np.sin(u)], axis=1)
    blurred = gaussian_mixture(weights / 2.0, curve, width)

    def sample(keys: Key) -> Array:
        u_keys, noise_keys = split_each(keys, 2)
        u = low + (high - low) * jax.vmap(jax.random.uniform)(u_keys)
        on_curve = scale * u[:, None] * jnp.stack([jnp.cos(u), jnp.sin(u)], axis=1)
        return on_curve + width * normal_per_example(noise_keys, (2,))

    return blurred._replace(sample=sample)


def on_plane(density: Density, basis: npt.ArrayLike) -> Density:
    """Embeds a density into R^D, on the plane through 0 with the orthonormal basis B [D, d].

    Without noise all mass lies on the plane and there is no density in R^D: sigma must be above 0.
    Then log p_σ(x) = log p_σ(Bᵀx) + log N(x - BBᵀx; 0, σ² I), the normal in the D - d dimensions
    off the plane. Raises ValueError for a basis that is not orthonormal, and if sigma is a Python
    number <= 0.
    """
    B = np.asarray(basis, np.float64)
    if B.ndim != 2 or B.shape[1] != density.dim or B.shape[0] <= B.shape[1]:
        raise ValueError(
            f"on_plane needs a basis [D, {density.dim}] with D > {density.dim}, got {B.shape}."
        )
    if not np.allclose(B.T @ B, np.eye(B.shape[1]), atol=1e-6):
        raise ValueError("on_plane needs orthonormal columns; np.linalg.qr makes them.")
    plane = jnp.asarray(B, jnp.float32)
    codimension = B.shape[0] - B.shape[1]

    def off_plane(x: Array) -> Array:
        return x - (x @ plane) @ plane.T

    def log_density(x: Array, sigma: ArrayLike) -> Array:
        _needs_noise("on_plane", sigma)
        variance = jnp.square(_column(sigma, x))[:, 0]
        squares = jnp.sum(jnp.square(off_plane(x)), axis=1)
        log_normal = -0.5 * (squares / variance + codimension * (jnp.log(variance) + LOG_2_PI))
        return density.log_density(x @ plane, sigma) + log_normal

    def score(x: Array, sigma: ArrayLike) -> Array:
        _needs_noise("on_plane", sigma)
        along = density.score(x @ plane, sigma) @ plane.T
        return along - off_plane(x) / jnp.square(_column(sigma, x))

    def sample(keys: Key) -> Array:
        return density.sample(keys) @ plane.T

    return Density(B.shape[0], sample, log_density, score)


def _column(sigma: ArrayLike, x: Array) -> Array:
    """σ [] or [B] as [B, 1] in x's dtype."""
    return jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])[:, None]


def _needs_noise(call: str, sigma: ArrayLike) -> None:
    if isinstance(sigma, int | float) and not sigma > 0:
        raise ValueError(f"{call} has no density without noise: it needs sigma > 0, got {sigma}.")
