"""Truth to test against: the closed forms for Gaussian data, and the papers' tables in float64
NumPy.

Data x_0 ~ N(m, c² I) has x_t ~ N(√ᾱ m, (ᾱc² + 1-ᾱ) I), and everything one may ask of a denoiser
exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np


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
