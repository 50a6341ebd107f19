"""The process, target and loss of a run: their configuration, and what goes together.

--diffusion.process   one of              its fields
ddpm                  schedules           schedule, beta_start, beta_end, sigma_min, sigma_max
vp, subvp             `vp_process`, …     beta_start, beta_end: β(t) from T beta_start on
ve, edm               `ve_process`, …     sigma_min, sigma_max
flow                  `flow_process`      time_shift
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ddpm_jax.denoisers.prediction import VarianceKind, is_learned
from ddpm_jax.losses import Weighting, edm_weighting
from ddpm_jax.programs.named import WEIGHTINGS, ScheduleName, WeightingName, named


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process, the network's target and the loss."""

    schedule: ScheduleName = "linear"
    """Noise schedule of ddpm; the paper uses linear. geometric: the noise levels of NCSN."""
    num_timesteps: int = 1000
    """T, the number of steps."""
    beta_start: float = 1e-4
    """First β, for schedules that have one. The default is for T = 1000; scale it by 1000/T."""
    beta_end: float = 0.02
    """Last β, as beta_start."""
    sigma_max: float = 2.0
    """Largest σ of the geometric schedule, ve and edm, for data in [-1, 1] (twice the value for
    [0, 1]). Use 100 for ve and 80 for edm."""
    sigma_min: float = 0.02
    """Smallest σ, in the same units. Use 0.002 for edm."""
    exploding: bool = False
    """Variance exploding: the network takes x_0 + σ ε, as in NCSN, instead of √ᾱ x_0 + √(1-ᾱ) ε,
    which is the same up to scale."""
    target: Literal["epsilon", "x_0", "v", "previous_mean", "score", "velocity"] = "epsilon"
    """What the network predicts. velocity: dx/dt of a continuous process, ε - x_0 of the flow."""
    variance: VarianceKind = "fixed_large"
    """Variance of p_θ(x_{t-1} | x_t): β_t, β̃_t, or learned, which doubles the output channels."""
    loss: Literal["simple", "hybrid", "bound"] = "simple"
    """L_simple; L_hybrid, for a learned variance; or the variational bound itself."""
    weighting: WeightingName = "none"
    """Weight of L_simple at each step, stated for the error of x̂_0, so that it means the same for
    every target. bound belongs to ddpm, likelihood (g² of Song et al. 2021) to continuous time."""
    min_snr_gamma: float = 5.0
    """γ of the weighting min_snr, min(SNR, γ)."""
    p2_gamma: float = 1.0
    """γ of the weighting p2, SNR/(1 + SNR)^γ."""
    timesteps: Literal[
        "uniform", "stratified", "importance", "likelihood", "lognormal", "logit_normal"
    ] = "uniform"
    """How training draws t: independently as in the paper, evenly spread over each batch, or more
    often where past losses were large. In continuous time: uniform; likelihood, uniform in log SNR;
    lognormal in σ, as EDM; logit_normal, as Stable Diffusion 3."""
    zero_terminal_snr: bool = False
    """Rescale the schedule to zero signal at x_T; needs the target v or x_0."""
    label_dropout: float = 0.1
    """Share of training examples without conditions: the label becomes "no class", the vector
    `cond` and the array `concat` become zeros, and all tokens of the `context` are masked."""
    clip: bool = True
    """Clip x̂_0 to [-1, 1] while sampling."""
    process: Literal["ddpm", "vp", "subvp", "ve", "edm", "flow"] = "ddpm"
    """ddpm: T discrete steps. The others are trained in continuous time and sampled on a grid of T
    times: the SDEs of Song et al. 2021, EDM of Karras et al. 2022, rectified flow."""
    sigma_data: float = 0.5
    """Standard deviation of the data, for edm's preconditioning and the weighting edm."""
    time_shift: float = 1.0
    """Shift α of the flow's times towards noise, t' = αt/(1 + (α-1)t), for large images."""


def weighting_of(config: DiffusionConfig) -> Weighting:
    """The weighting a configuration names."""
    return named("--diffusion.weighting", WEIGHTINGS, config.weighting)(config)


def loss_name(config: DiffusionConfig) -> str:
    """The name of the training loss in titles and tables."""
    names = {"hybrid": "L_hybrid", "bound": "L (bits/dim)"}
    if config.loss in names:
        return names[config.loss]
    if config.exploding and config.target == "epsilon" and config.weighting == "none":
        return "NCSN's loss (2/d of it)"
    name = "L_simple" if config.target == "epsilon" else f"MSE of {config.target}"
    return name if config.weighting == "none" else f"{name}, weighted by {config.weighting}"


LEVELS = ("epsilon", "x_0", "v", "velocity", "score")
CONTINUOUS = ("uniform", "likelihood", "lognormal", "logit_normal")
OF_SNR = ("none", *WEIGHTINGS)
ONLY_DDPM = {
    "schedule": ("linear",),
    "loss": ("simple",),
    "variance": ("fixed_large", "fixed_small"),
    "exploding": (False,),
    "zero_terminal_snr": (False,),
}
SDE = {
    **ONLY_DDPM,
    "target": LEVELS,
    "timesteps": CONTINUOUS,
    "weighting": (*OF_SNR, "likelihood"),
    "time_shift": (1.0,),
}
FITTING: dict[str, dict[str, tuple]] = {
    "ddpm": {
        "target": ("epsilon", "x_0", "v", "previous_mean", "score"),
        "timesteps": ("uniform", "stratified", "importance"),
        "weighting": (*OF_SNR, "bound"),
        "time_shift": (1.0,),
    },
    "vp": SDE,
    "subvp": SDE,
    "ve": SDE,
    # Its network is inside a denoiser, and its times are noise levels.
    "edm": {**SDE, "target": ("x_0",), "timesteps": ("lognormal", "likelihood", "uniform")},
    # ε does not determine x_0 at t = 1, where the log SNR is -∞.
    "flow": {
        **ONLY_DDPM,
        "target": ("velocity", "v", "x_0"),
        "timesteps": ("uniform", "logit_normal", "lognormal"),
        "weighting": OF_SNR,
    },
}
"""The values of each field that go with a process; fields that are not named go with any value."""


def check_process_fields(config: DiffusionConfig) -> None:
    """Raises ValueError for fields that do not go with the process, naming those that do."""
    if config.process not in FITTING:
        raise ValueError(f"--diffusion.process knows {', '.join(FITTING)}, got {config.process!r}.")
    wrong = [
        f"--diffusion.{name.replace('_', '-')} {getattr(config, name)} (use "
        f"{' or '.join(map(str, values))})"
        for name, values in FITTING[config.process].items()
        if getattr(config, name) not in values
    ]
    if config.process in ("ve", "edm") and not config.sigma_max >= 20:
        least = "100" if config.process == "ve" else "80, with --diffusion.sigma-min 0.002"
        wrong.append(
            f"--diffusion.sigma-max {config.sigma_max:g}, at which x_0 is still seen (use {least})"
        )
    if wrong:
        raise ValueError(
            f"--diffusion.process {config.process} does not go with {'; '.join(wrong)}."
        )


def check_diffusion(config: DiffusionConfig) -> None:
    """Raises ValueError for fields that do not fit the process, the variance or the loss."""
    check_process_fields(config)
    learned = is_learned(config.variance)
    if config.loss == "simple" and learned:
        raise ValueError(
            f"--diffusion.loss simple leaves --diffusion.variance {config.variance} untrained. Use "
            "--diffusion.loss hybrid or bound."
        )
    if config.loss == "hybrid" and not learned:
        raise ValueError(
            "--diffusion.loss hybrid trains a learned variance, got --diffusion.variance "
            f"{config.variance}. Use learned_range or learned, or the loss simple."
        )
    if config.loss != "simple" and config.weighting != "none":
        raise ValueError(
            f"--diffusion.weighting {config.weighting} weights the loss simple, got "
            f"--diffusion.loss {config.loss}, which has its own weights."
        )
    if not 0.0 <= config.label_dropout < 1.0:
        raise ValueError(
            f"--diffusion.label-dropout must be in [0, 1), got {config.label_dropout}."
        )
    if config.weighting not in ("none", "bound", "likelihood"):
        weighting_of(config)
    if config.process == "edm":
        edm_weighting(config.sigma_data)
