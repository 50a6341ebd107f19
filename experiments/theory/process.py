"""The process in closed form: what §6 to §9 of docs/theory.md show.

Data N(0, c² I) have every quantity of the bound in closed form; T = 1000 and the linear schedule of
Ho et al. 2020 throughout.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from scipy import stats

import ddpm_jax as dj
from ddpm_jax.denoisers.prediction import Variance
from ddpm_jax.losses import bound_weight
from ddpm_jax.types import Array
from ddpm_jax.visualize import Line, Panel
from toys.figure import Figure

Values = npt.NDArray[np.float64]


def paper(num_steps: int = 1000) -> dj.NoiseSchedule:
    """Ho et al.'s schedule in float64, whole or respaced."""
    whole = dj.linear_schedule(dtype=jnp.float64)
    return dj.respace(whole, dj.spaced_timesteps(1000, num_steps))


def host(table: Array) -> Values:
    """A table in NumPy."""
    return np.asarray(table, np.float64)


def all_schedules() -> dict[str, dj.NoiseSchedule]:
    """Every schedule of `ddpm_jax.forward.families` at its defaults, T = 1000."""
    makers = {
        "linear": dj.linear_schedule,
        "quadratic": dj.quadratic_schedule,
        "constant": dj.constant_schedule,
        "warmup10": dj.warmup_schedule,
        "sigmoid": dj.sigmoid_schedule,
        "cosine": dj.cosine_schedule,
        "jsd": dj.jsd_schedule,
    }
    return {name: make(dtype=jnp.float64) for name, make in makers.items()}


def schedules() -> Figure:
    """§6: β_t, ᾱ_t and log-SNR of all schedules."""
    tables = all_schedules()
    t = np.arange(1, 1001)
    half = {name: int(np.argmax(host(s.alpha_bar) < 0.5)) + 1 for name, s in tables.items()}

    def panel(title, of, ylabel, legend: str | None, **scale):
        lines = []
        for i, (name, schedule) in enumerate(tables.items()):
            values = of(schedule)
            known = np.isfinite(values)
            label = name if legend else None
            lines.append(Line(t[known], values[known], label=label, colour=i, width=1.3))
        return Panel(title, lines, xlabel="step t of 1000", ylabel=ylabel, legend=legend, **scale)

    return Figure(
        f"Half of the signal's variance is gone at t = {half['linear']} (linear), "
        f"{half['cosine']} (cosine), {half['constant']} (constant)",
        [
            panel("Noise added per step", lambda s: host(s.beta), "β_t", None, logy=True),
            panel("Signal left", lambda s: host(s.alpha_bar), "ᾱ_t", "upper right"),
            panel(
                "Signal to noise",
                lambda s: host(s.log_snr),
                "log ᾱ_t/(1-ᾱ_t), in nats",
                None,
                ylim=(-16, 10),
            ),
        ],
        {"first step with alpha_bar < 0.5": half},
        size=(3.7, 3.3),
    )


def posterior() -> Figure:
    """§7: a Gaussian prior times a Gaussian likelihood, and its coefficients over t."""
    coarse = paper(20)
    t, x_0, x_t = 6, 0.9, -0.2
    a, beta = host(coarse.alpha_bar)[t - 1], host(coarse.beta)[t]
    known = dj.q_posterior(coarse, jnp.array([x_0]), jnp.array([x_t]), jnp.array([t]))
    mean, variance = float(known.mean[0]), float(known.variance[0])
    x = np.linspace(-2.2, 2.6, 400)
    prior = stats.norm.pdf(x, np.sqrt(a) * x_0, np.sqrt(1 - a))
    root = np.sqrt(1 - beta)
    likelihood = stats.norm.pdf(x, x_t / root, np.sqrt(beta) / root)
    exact = stats.norm.pdf(x, mean, np.sqrt(variance))

    whole = paper()
    beta, before = host(whole.beta)[1:], host(whole.alpha_bar)[:-1]
    noise = host(whole.noise_scale)[1:] ** 2
    steps = np.arange(2, 1001)
    of_x_0 = np.sqrt(before) * beta / noise
    of_x_t = np.sqrt(1 - beta) * host(whole.posterior_variance)[1:] / beta
    share = host(whole.posterior_variance)[1:] / beta
    return Figure(
        f"Knowing x_0, the step back is Gaussian; its variance is {share[0]:.2f} β_t at t = 2 and "
        f"{share[98]:.3f} β_t at t = 100",
        [
            Panel(
                "Prior × likelihood = posterior (20 steps, t = 7)",
                [
                    Line(x, prior, "q(x_{t-1} | x_0)", 0),
                    Line(x, likelihood, "∝ q(x_t | x_{t-1})", 1),
                    Line(x, exact, "q(x_{t-1} | x_t, x_0)", 2, width=2.2),
                ],
                xlabel="x_{t-1}",
                ylabel="density",
                ylim=(0, 1.3),
                legend="upper right",
            ),
            Panel(
                "The mean μ̃_t leans on x_t after few steps",
                [Line(steps, of_x_0, "weight of x_0", 0), Line(steps, of_x_t, "weight of x_t", 1)],
                xlabel="step t",
                ylabel="coefficient in μ̃_t",
                logx=True,
            ),
            Panel(
                "The two variances differ only near the data",
                [Line(steps, share, colour=2)],
                xlabel="step t",
                ylabel="β̃_t/β_t",
                logx=True,
                ylim=(0.4, 1.02),
            ),
        ],
        {"mean": mean, "variance": variance, "ratio at 2": share[0], "ratio at 100": share[98]},
        size=(3.8, 3.3),
    )


class GaussianBound:
    """The bound of data N(0, c²) and its exact denoiser, in bits per dimension.

    q(x_{t-1} | x_t) is N(·, v_t) with v_t = β̃_t + w_t² Var(x_0 | x_t), so step t costs
    ½ (log σ_t²/β̃_t + v_t/σ_t² - 1) nats and lies ½ (v_t/σ_t² - 1 - log v_t/σ_t²) above the least.
    """

    def __init__(self, schedule: dj.NoiseSchedule, std: float):
        beta, small = host(schedule.beta), host(schedule.posterior_variance)
        snr = np.exp(host(schedule.log_snr))
        weight = np.sqrt(host(schedule.alpha_bar_prev)) * beta / host(schedule.noise_scale) ** 2
        self.mmse = 1 / (1 / std**2 + snr)
        self.exact = small + weight**2 * self.mmse
        self.posterior = small
        first = np.exp(host(schedule.posterior_log_variance)[0])
        self.kinds = {
            "β_t": np.append(first, beta[1:]),
            "β̃_t": np.append(first, small[1:]),
            "optimal": self.exact,
        }
        keep = host(schedule.alpha_bar)[-1]
        marginal = keep * std**2 + 1 - keep
        self.prior_gap = 0.5 * (marginal - 1 - np.log(marginal)) / np.log(2)

    def terms(self, kind: str) -> Values:
        """E[L_{t-1}] for the papers' t = 2 … T."""
        variance, v, small = self.kinds[kind][1:], self.exact[1:], self.posterior[1:]
        return 0.5 * (np.log(variance / small) + v / variance - 1) / np.log(2)

    def gap(self, kind: str) -> float:
        """What the steps t ≥ 2 and the prior put the bound above the entropy."""
        ratio = (self.exact / self.kinds[kind])[1:]
        return self.prior_gap + float(0.5 * np.sum(ratio - 1 - np.log(ratio)) / np.log(2))


def bound() -> Figure:
    """§8: where the bits are, and what few steps cost."""
    exact = GaussianBound(paper(), 0.5)
    steps = np.arange(2, 1001)
    terms = {kind: exact.terms(kind) for kind in exact.kinds}
    first = float(terms["optimal"][:99].sum() / terms["optimal"].sum())
    counts = np.array([10, 20, 50, 100, 200, 500, 1000])
    gaps = {
        kind: np.array([GaussianBound(paper(int(n)), 0.5).gap(kind) for n in counts])
        for kind in ("β_t", "β̃_t")
    }
    return Figure(
        f"Data N(0, ½²): {100 * first:.0f} % of the bits sent lie in the first 100 of 1000 steps",
        [
            Panel(
                "Terms of the bound",
                [Line(steps, terms[k], f"σ_t² = {k}", i) for i, k in enumerate(terms)],
                xlabel="step t",
                ylabel="L_{t-1}, in bits per dimension",
                logx=True,
                logy=True,
            ),
            Panel(
                f"Gap: with 10 steps {gaps['β_t'][0]:.2f} bits (β_t), {gaps['β̃_t'][0]:.0f} (β̃_t)",
                [Line(counts, gaps[k], f"σ_t² = {k}", i, marker="o") for i, k in enumerate(gaps)],
                xlabel="steps",
                ylabel="gap, in bits per dimension",
                logx=True,
                logy=True,
            ),
        ],
        {
            "share of the first 100": first,
            "gap": {
                kind: dict(zip(counts.tolist(), values.tolist(), strict=True))
                for kind, values in gaps.items()
            },
        },
        size=(4.4, 3.4),
    )


def weights() -> Figure:
    """§9: the bound's weight of ‖ε - ε_θ‖², beside L_simple's."""
    schedule, steps = paper(), np.arange(2, 1001)
    kinds: dict[str, Variance] = {"β_t": "fixed_large", "β̃_t": "fixed_small"}
    curves = {
        name: host(bound_weight(schedule, np.arange(1000), target="epsilon", variance=kind))[1:]
        for name, kind in kinds.items()
    }
    share = {name: float(w[:99].sum() / w.sum()) for name, w in curves.items()}
    lines = [Line(steps, w, f"bound, σ_t² = {n}", i) for i, (n, w) in enumerate(curves.items())]
    sums = [
        Line(steps, 100 * np.cumsum(w) / w.sum(), f"bound, σ_t² = {n}", i)
        for i, (n, w) in enumerate(curves.items())
    ]
    return Figure(
        f"The bound puts {100 * share['β_t']:.0f} % of its weight on the first 100 of 1000 steps, "
        "L_simple 10 %",
        [
            Panel(
                "Weight of ‖ε - ε_θ‖²",
                [*lines, Line(steps, np.ones(999), "L_simple", 2)],
                xlabel="step t",
                ylabel="w_t",
                logx=True,
                logy=True,
            ),
            Panel(
                "Cumulative share of the weight",
                [*sums, Line(steps, 100 * np.arange(1, 1000) / 999, "L_simple", 2)],
                xlabel="step t",
                ylabel="weight up to step t, in %",
                legend="lower right",
            ),
        ],
        {"share of the first 100": share, "w": {n: w[[0, 498, 998]] for n, w in curves.items()}},
        size=(4.4, 3.4),
    )


def variance() -> Figure:
    """§13: the variance that minimises the bound, between β̃_t and β_t."""
    panels, numbers = [], {}
    for count in (1000, 20):
        schedule = paper(count)
        beta = host(schedule.beta)[1:]
        steps = host(schedule.timesteps)[1:] + 1
        lines = [Line(steps, np.ones(count - 1), "β_t, optimal for N(0, 1)", 0)]
        for i, std in enumerate((0.5, 0.1)):
            share = GaussianBound(schedule, std).exact[1:] / beta
            lines.append(Line(steps, share, f"optimal for N(0, {std}²)", i + 2))
        small = host(schedule.posterior_variance)[1:] / beta
        lines.append(Line(steps, small, "β̃_t, optimal for one point", 1))
        marker = "" if count > 100 else "o"
        lines = [line._replace(marker=marker) for line in lines]
        far = int(np.sum(small < 0.95))
        numbers[f"steps with a ratio below 0.95, of {count}"] = far
        panels.append(
            Panel(
                f"{count} steps: β̃_t is below 0.95 β_t in {far} of them",
                lines,
                xlabel="step t of the process",
                ylabel="variance, in units of β_t",
                logx=True,
                ylim=(0.0, 1.08),
                legend="lower right",
            )
        )
    return Figure(
        "The best reverse variance lies between β̃_t and β_t, which differ most in few steps",
        panels,
        numbers,
        size=(4.4, 3.4),
    )
