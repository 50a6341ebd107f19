"""The processes of continuous time in a run: their table of times, their network and their loss.

A run samples, and measures its bound, on a table of T times (`schedule_from_process`): there the
network is a denoiser `(x_t, timestep) -> x̂_0` like any other. Only training sees times between
those of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from ddpm_jax import forward, losses
from ddpm_jax.denoisers.continuous import ContinuousTarget, edm_denoiser
from ddpm_jax.forward import ContinuousProcess
from ddpm_jax.programs.diffusion import DiffusionConfig, weighting_of
from ddpm_jax.types import ApplyFn, Array, Key, bcast_right

RHO = 7.0
"""Exponent of EDM's times (Karras et al. 2022, Eq. 5)."""


def build_process(config: DiffusionConfig) -> ContinuousProcess | None:
    """The continuous process that a configuration names; None for ddpm."""
    T, sigmas = config.num_timesteps, (config.sigma_min, config.sigma_max)
    rates = T * config.beta_start, T * config.beta_end
    makers: dict[str, Callable[[], ContinuousProcess | None]] = {
        "ddpm": lambda: None,
        "vp": lambda: forward.vp_process(*rates),
        "subvp": lambda: forward.sub_vp_process(*rates),
        "ve": lambda: forward.ve_process(*sigmas),
        "edm": lambda: forward.edm_process(*sigmas),
        "flow": lambda: forward.flow_process(),
    }
    return makers[config.process]()


def table_of_times(config: DiffusionConfig) -> np.ndarray:
    """The T times of the table, in float64: even in t, in log σ for ve, in σ^{1/7} for edm."""
    T = config.num_timesteps
    if config.process == "edm":
        low, high = config.sigma_min ** (1 / RHO), config.sigma_max ** (1 / RHO)
        return np.clip(np.linspace(low, high, T) ** RHO, config.sigma_min, config.sigma_max)
    if config.process == "ve":
        return np.linspace(0.0, 1.0, T)
    times = np.arange(1, T + 1) / T
    shift = config.time_shift
    return times if shift == 1.0 else np.asarray(losses.shift_times(times, shift), np.float64)


def network_of_time(
    config: DiffusionConfig, process: ContinuousProcess, apply: Callable[[Array, Array], Any]
) -> ApplyFn:
    """The network `(x_t, t) -> output` of a U-Net `(x, step) -> output`.

    The U-Net's steps are 1000 t, so that a U-Net of DDPM's sees the range that its embedding is
    made for; for edm 250 c_noise = 62.5 log σ. With ve it gets x_t/√(1+σ²), with edm it is the F
    inside of `edm_denoiser`: its inputs have variance one with every process.
    """
    if config.process == "edm":
        scaled = lambda x, c_noise: apply(x, 250.0 * c_noise)  # noqa: E731
        return edm_denoiser(scaled, sigma_data=config.sigma_data)

    def network(x_t: Array, t: Array) -> Any:
        if config.process == "ve":
            x_t = x_t / bcast_right(jnp.hypot(1.0, process.noise_scale(t)), x_t.ndim)
        return apply(x_t, 1000.0 * t)

    return network


def draw_times(
    config: DiffusionConfig, process: ContinuousProcess, keys: Key
) -> tuple[Array, Array | float]:
    """The times [B] of a training batch, and the factors of their losses that undo their density.

    The log-normal and the logit-normal distribution belong to their papers' losses: factor 1.
    """
    if config.timesteps == "likelihood":
        return losses.likelihood_times(keys, process)
    makers = {
        "uniform": losses.uniform_times,
        "lognormal": losses.lognormal_times,
        "logit_normal": losses.logit_normal_times,
    }
    t = makers[config.timesteps](keys, process)
    if config.time_shift != 1.0:
        t = jnp.clip(losses.shift_times(t, config.time_shift), process.t_min, process.t_max)
    return t, 1.0


def training_loss(
    config: DiffusionConfig,
    process: ContinuousProcess,
    network: ApplyFn,
    x_0: Array,
    t: Array,
    noise: Array,
) -> Array:
    """The weighted loss at times t, per example [B]."""
    target = cast(ContinuousTarget, config.target)
    errors = losses.continuous_loss(process, network, x_0, t, noise, target=target)
    if config.weighting == "none":
        return errors
    weighting = "likelihood" if config.weighting == "likelihood" else weighting_of(config)
    return errors * losses.continuous_weight(process, t, weighting, target=target)
