"""Truth to test against: the closed forms for Gaussian data, and the papers' tables in float64
NumPy.

Data x_0 ~ N(m, c² I) has x_t ~ N(√ᾱ m, (ᾱc² + 1-ᾱ) I), and everything one may ask of a denoiser
exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp


@dataclass(frozen=True)
class GaussianData:
    """x_0 ~ N(mean, std² I), and what follows for a process with this table of ᾱ."""

    mean: float
    std: float
    alpha_bar: np.ndarray

    def denoise(self, x_t, t):
        """E[x_0 | x_t] = m + √ᾱ c² (x_t - √ᾱ m)/(ᾱ c² + 1 - ᾱ)."""
        alpha_bar = jnp.asarray(self.alpha_bar, x_t.dtype)[t]
        alpha_bar = alpha_bar.reshape(alpha_bar.shape + (1,) * (x_t.ndim - alpha_bar.ndim))
        gain = jnp.sqrt(alpha_bar) * self.std**2 / (alpha_bar * self.std**2 + 1 - alpha_bar)
        return self.mean + gain * (x_t - jnp.sqrt(alpha_bar) * self.mean)

    def marginal(self, t) -> tuple[float, float]:
        """Mean and standard deviation of x_t."""
        a = self.alpha_bar[t]
        return np.sqrt(a) * self.mean, np.sqrt(a * self.std**2 + 1 - a)

    def ode_solution(self, x_T, t_from: int):
        """x_0 at the end of the probability-flow ODE from x_T at step t_from: the map of
        quantiles."""
        mean, std = self.marginal(t_from)
        return self.mean + self.std * (x_T - mean) / std


class Tables:
    """The tables of a β schedule by the textbook formulas, in float64, one step at a time."""

    def __init__(self, beta):
        self.beta = np.asarray(beta, np.float64)
        products = [1.0]
        for value in self.beta:
            products.append(products[-1] * (1.0 - value))
        self.alpha_bar = np.array(products[1:])
        self.alpha_bar_prev = np.array(products[:-1])
        self.posterior_variance = self.beta * (1.0 - self.alpha_bar_prev) / (1.0 - self.alpha_bar)
        first = self.posterior_variance[1] if len(self.beta) > 1 else self.beta[0]
        self.log_variance = np.log(np.append(first, self.posterior_variance[1:]))
        self.coef_x_0 = self.beta * np.sqrt(self.alpha_bar_prev) / (1.0 - self.alpha_bar)
        self.coef_x_t = (
            (1.0 - self.alpha_bar_prev) * np.sqrt(1.0 - self.beta) / (1.0 - self.alpha_bar)
        )


@dataclass(frozen=True)
class MixtureData:
    """Coordinates drawn independently from Σ_k w_k N(m_k, s_k²), for a process with this ᾱ.

    Unlike Gaussian data it has a denoiser that is not linear in x_t.
    """

    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    alpha_bar: np.ndarray

    def denoise(self, x_t, t):
        """E[x_0 | x_t] = Σ_k r_k (m_k + √ᾱ s_k² (x_t - √ᾱ m_k)/v_k), v_k = ᾱ s_k² + 1 - ᾱ, with
        responsibilities r_k ∝ w_k N(x_t; √ᾱ m_k, v_k)."""
        alpha_bar = jnp.asarray(self.alpha_bar, x_t.dtype)[t]
        alpha_bar = alpha_bar.reshape(alpha_bar.shape + (1,) * (x_t.ndim + 1 - alpha_bar.ndim))
        weights, means, stds = (
            jnp.asarray(v, x_t.dtype).reshape((1,) * x_t.ndim + (-1,))
            for v in (self.weights, self.means, self.stds)
        )
        variance = alpha_bar * stds**2 + 1 - alpha_bar
        away = x_t[..., None] - jnp.sqrt(alpha_bar) * means
        logits = jnp.log(weights) - 0.5 * jnp.log(variance) - 0.5 * away**2 / variance
        share = jnp.exp(logits - logits.max(-1, keepdims=True))
        share = share / share.sum(-1, keepdims=True)
        return (share * (means + jnp.sqrt(alpha_bar) * stds**2 * away / variance)).sum(-1)

    def denoise_sigma(self, y, sigma):
        """The same of y = x_0 + σ ε, in float64 NumPy, y [N], σ a number."""
        variance = np.square(self.stds) + sigma**2
        away = y[:, None] - np.asarray(self.means)
        logits = np.log(self.weights) - 0.5 * np.log(variance) - 0.5 * away**2 / variance
        share = np.exp(logits - logits.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        return (share * (self.means + np.square(self.stds) * away / variance)).sum(-1)

    def ode_solution(self, y, sigma_from: float, sigma_to: float):
        """y at sigma_to on the probability-flow ODE dy/dσ = (y - E[x_0 | y])/σ from y at
        sigma_from; DOP853 in log σ."""

        def velocity(log_sigma, y):
            return y - self.denoise_sigma(y, np.exp(log_sigma))

        solved = solve_ivp(
            velocity, np.log([sigma_from, sigma_to]), y, "DOP853", rtol=1e-11, atol=1e-11
        )
        return solved.y[:, -1]

    @property
    def mean(self) -> float:
        """Of x_0."""
        return float(np.dot(self.weights, self.means))

    @property
    def std(self) -> float:
        """Of x_0."""
        second = np.dot(self.weights, np.square(self.means) + np.square(self.stds))
        return float(np.sqrt(second - self.mean**2))

    def draw(self, rng, shape):
        """Samples of the data, of this shape."""
        which = rng.choice(len(self.weights), size=shape, p=self.weights)
        return rng.normal(np.asarray(self.means)[which], np.asarray(self.stds)[which])


class GaussianBound:
    """E[L_t] in nats a dimension for N(m, c² I) and its exact denoiser, in float64.

    q(x_{t-1} | x_t) is Gaussian then, with mean μ̃_t(E[x_0|x_t], x_t) and variance β̃_t + w_t² m_t,
    w_t the weight of x_0 in μ̃_t, m_t = Var(x_0 | x_t). With reverse variances σ_t²

        E[L_t] = ½ (log σ_t²/β̃_t + (β̃_t + w_t² m_t)/σ_t² - 1),  t ≥ 1
        E[L_0] = ½ (log 2π σ_0² + m_0/σ_0²)                       (a density, not a bin)

    and the bound exceeds the entropy ½ log 2πe c² by a sum of divergences, one a step.
    """

    def __init__(self, mean: float, std: float, tables: Tables):
        a, beta = tables.alpha_bar, tables.beta
        self.mmse = 1 / (1 / std**2 + a / (1 - a))
        self.optimal = tables.posterior_variance + tables.coef_x_0**2 * self.mmse
        self.entropy = 0.5 * np.log(2 * np.pi * np.e * std**2)
        marginal = a[-1] * std**2 + 1 - a[-1]
        self.prior = 0.5 * (a[-1] * (std**2 + mean**2) - a[-1] - np.log(1 - a[-1]))
        self.prior_gap = 0.5 * (marginal + a[-1] * mean**2 - 1 - np.log(marginal))
        self.kinds = {
            "fixed_large": np.append(np.exp(tables.log_variance[0]), beta[1:]),
            "fixed_small": np.exp(tables.log_variance),
            "optimal": self.optimal,
        }
        self._posterior = tables.posterior_variance

    def terms(self, variance: np.ndarray) -> np.ndarray:
        """E[L_t] [T] for these σ_t² [T]."""
        kl = np.log(variance[1:] / self._posterior[1:]) + self.optimal[1:] / variance[1:] - 1
        first = np.log(2 * np.pi * variance[0]) + self.mmse[0] / variance[0]
        return 0.5 * np.append(first, kl)

    def gap(self, variance: np.ndarray) -> float:
        """How far the bound lies above the entropy: KL(q(x_0 … x_T) ‖ p_θ(x_0 … x_T))."""
        ratio = self.optimal / variance
        return self.prior_gap + 0.5 * np.sum(ratio - 1 - np.log(ratio))
