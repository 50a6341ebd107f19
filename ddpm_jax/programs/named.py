"""The schedules, weightings and samplers that a configuration can name, one row each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ddpm_jax import forward, losses, samplers
from ddpm_jax.denoisers.prediction import Variance
from ddpm_jax.forward import ContinuousProcess, NoiseSchedule
from ddpm_jax.forward.schedule import timesteps_at
from ddpm_jax.losses import Weighting
from ddpm_jax.samplers import Sampler
from ddpm_jax.score import geometric_noise_levels

if TYPE_CHECKING:
    from ddpm_jax.programs.config import SamplerOptions
    from ddpm_jax.programs.diffusion import DiffusionConfig


class SamplerInputs(NamedTuple):
    """The inputs from which a sampler is built.

    Attributes:
        grid: the steps it takes.
        schedule: all T steps of the process.
        options: the options of the command line.
        variance: the variance of ancestral steps.
        process: the process in continuous time; None for a DDPM.
        times: its times [S] at the steps of the grid; None for a DDPM.
    """

    grid: NoiseSchedule
    schedule: NoiseSchedule
    options: SamplerOptions
    variance: Variance = "fixed_large"
    process: ContinuousProcess | None = None
    times: np.ndarray | None = None


SCHEDULES: dict[str, Callable[[DiffusionConfig], NoiseSchedule]] = {
    "linear": lambda c: forward.linear_schedule(c.num_timesteps, c.beta_start, c.beta_end),
    "quadratic": lambda c: forward.quadratic_schedule(c.num_timesteps, c.beta_start, c.beta_end),
    "constant": lambda c: forward.constant_schedule(c.num_timesteps, c.beta_end),
    "warmup10": lambda c: forward.warmup_schedule(c.num_timesteps, c.beta_start, c.beta_end, 0.1),
    "warmup50": lambda c: forward.warmup_schedule(c.num_timesteps, c.beta_start, c.beta_end, 0.5),
    "jsd": lambda c: forward.jsd_schedule(c.num_timesteps),
    "cosine": lambda c: forward.cosine_schedule(c.num_timesteps),
    "sigmoid": lambda c: forward.sigmoid_schedule(c.num_timesteps, c.beta_start, c.beta_end),
    "geometric": lambda c: forward.schedule_from_noise_levels(
        geometric_noise_levels(c.sigma_max, c.sigma_min, c.num_timesteps)
    ),
}

# "bound" and "likelihood" are not here: they depend on more than the log SNR.
WEIGHTINGS: dict[str, Callable[[DiffusionConfig], Weighting]] = {
    "snr": lambda c: losses.snr_weighting,
    "snr_plus_one": lambda c: losses.snr_plus_one_weighting,
    "truncated_snr": lambda c: losses.truncated_snr_weighting,
    "min_snr": lambda c: losses.min_snr_weighting(c.min_snr_gamma),
    "p2": lambda c: losses.p2_weighting(1.0, c.p2_gamma),
    "edm": lambda c: losses.edm_weighting(c.sigma_data),
}

SAMPLERS: dict[str, Callable[[SamplerInputs], Sampler]] = {
    "ancestral": lambda s: samplers.ancestral(s.grid, variance=s.variance),
    "ddim": lambda s: samplers.ddim(s.grid, eta=s.options.eta),
    "dpm_solver_pp": lambda s: samplers.dpm_solver_pp(s.grid),
    "dpm_solver_pp_sde": lambda s: samplers.dpm_solver_pp(s.grid, sde=True),
    "dpm_solver_pp_3": lambda s: samplers.dpm_solver_pp(s.grid, order=3),
    "dpm_solver_pp_2s": lambda s: samplers.dpm_solver_pp(s.grid, singlestep=True),
    "unipc": lambda s: samplers.unipc(s.grid),
    "deis": lambda s: samplers.deis(s.grid, process=s.schedule),
    "heun": lambda s: samplers.heun(s.grid, churn=s.options.churn, process=s.schedule),
    "predictor_corrector": lambda s: samplers.predictor_corrector(
        samplers.ancestral(s.grid, variance=s.variance)
    ),
    "annealed_langevin": lambda s: samplers.annealed_langevin(
        s.grid, steps_per_level=s.options.langevin_steps, rate=s.options.langevin_rate
    ),
    "probability_flow_euler": lambda s: _in_time(samplers.probability_flow_euler, s),
    "probability_flow_heun": lambda s: _in_time(samplers.probability_flow_heun, s),
    "euler_maruyama": lambda s: _in_time(samplers.euler_maruyama, s),
}

# Type checkers accept only literal lists; the programs read the names from the tables.
if TYPE_CHECKING:
    ScheduleName = WeightingName = SamplerName = str
else:
    ScheduleName = Literal[tuple(SCHEDULES)]
    WeightingName = Literal[("none", *WEIGHTINGS, "bound", "likelihood")]
    SamplerName = Literal[tuple(SAMPLERS)]


def named(option: str, table: dict[str, Any], name: str) -> Any:
    """The row `name` of a table. Raises ValueError with the known names if there is none."""
    if name not in table:
        raise ValueError(f"{option} knows {sorted(table)}, got {name!r}.")
    return table[name]


def _in_time(
    make: Callable[[ContinuousProcess, np.ndarray], Sampler], inputs: SamplerInputs
) -> Sampler:
    """A sampler that follows the time of a continuous process."""
    process, grid, name = inputs.process, inputs.grid, inputs.options.sampler
    if process is None or inputs.times is None:
        raise ValueError(
            f"--sampler {name} follows the time of a continuous process, and this run has "
            "--diffusion.process ddpm. Use ddim, heun or ancestral."
        )
    if make is samplers.euler_maruyama and not float(grid.signal_scale[-1]):
        raise ValueError(
            f"--sampler {name} needs a reverse SDE with a finite g at its start, and "
            "--diffusion.process flow has none. Use ancestral, or probability_flow_heun."
        )
    sampler = make(process, inputs.times)

    def step(denoise, *arguments):
        # The sampler counts 0 … S-1; denoisers know these steps as `grid.timesteps`.
        return sampler.step(lambda x, t: denoise(x, timesteps_at(grid, t)), *arguments)

    return sampler._replace(schedule=grid, step=step)
