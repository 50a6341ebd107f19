"""Converts between scheduler_config.json and a process: β_t, target, variance, clipping.

A scheduler of diffusers combines a process, what its network predicts, and a way to sample. Only
the first two belong to the model; the sampler is chosen when sampling.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import forward
from ddpm_jax.denoisers.prediction import Target, VarianceKind
from ddpm_jax.forward import NoiseSchedule
from ddpm_jax.forward.checks import check_kind
from ddpm_jax.interop.tensors import check_names

# Our names of schedules, targets and variances -> theirs.
SCHEDULES = {
    "linear": "linear",
    "quadratic": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
    "sigmoid": "sigmoid",
}
TARGETS: dict[Target, str] = {"epsilon": "epsilon", "x_0": "sample", "v": "v_prediction"}
VARIANCES: dict[VarianceKind, str] = {
    "fixed_large": "fixed_large",
    "fixed_small": "fixed_small",
    "learned_range": "learned_range",
}
MAX_TIMESTEPS = 1_000_000
CLASSES = ("DDPMScheduler", "DDIMScheduler", "GaussianDDPMScheduler")
# Settings of sampling alone, which our samplers take as arguments.
OF_SAMPLING = ("timestep_spacing", "steps_offset", "set_alpha_to_one", "dynamic_thresholding_ratio")
KNOWN = {
    "beta_end",
    "beta_schedule",
    "beta_start",
    "clip_sample",
    "clip_sample_range",
    "num_train_timesteps",
    "predict_epsilon",
    "prediction_type",
    "rescale_betas_zero_snr",
    "sample_max_value",
    "thresholding",
    "timesteps",
    "trained_betas",
    "variance_type",
    *OF_SAMPLING,
}


class Process(NamedTuple):
    """A diffusion process by name, and what its network predicts.

    Attributes:
        schedule: "linear", "quadratic", "cosine", "sigmoid", "constant", "warmup10", "warmup50" or
            "jsd" when read; any name when written.
        num_timesteps: T.
        beta_start, beta_end: of the schedules that have them.
        zero_terminal_snr: whether the schedule is rescaled to ᾱ_T = 0.
        target, variance: see `denoisers.prediction`.
        clip: whether x̂_0 is clipped to [-1, 1].
    """

    schedule: str
    num_timesteps: int
    beta_start: float
    beta_end: float
    zero_terminal_snr: bool
    target: Target
    variance: VarianceKind
    clip: bool


def process_from_diffusers_config(config: Mapping[str, Any]) -> Process:
    """Reads the process of a DDPMScheduler's or DDIMScheduler's scheduler_config.json.

    A DDIMScheduler has no variance and gets fixed_small, which is DDIM's at η = 1.

    Raises ValueError naming every setting, with its value, that has no counterpart here.

    >>> from ddpm_jax.interop import process_from_diffusers_config
    >>> process_from_diffusers_config({"beta_schedule": "squaredcos_cap_v2"}).schedule
    'cosine'
    """
    call = "process_from_diffusers_config"
    check_names(call, "config", config)
    kind = config.get("_class_name", "DDPMScheduler")
    if kind not in CLASSES:
        raise ValueError(
            f"{call} reads {', '.join(CLASSES[:2])}, got _class_name={kind!r}. If the model's card "
            "names the process it was trained on, replace the file by a DDPMScheduler's."
        )
    given = {name: value for name, value in config.items() if not name.startswith("_")}
    problems = [f"{n}={v!r} (unknown here)" for n, v in given.items() if n not in KNOWN]
    # The first versions had `timesteps` and `predict_epsilon`.
    T = given.get("num_train_timesteps", given.get("timesteps", 1000))
    if type(T) is not int or not 1 <= T <= MAX_TIMESTEPS:
        problems.append(f"num_train_timesteps={T!r} (a whole number from 1 to {MAX_TIMESTEPS:,})")
    for name in ("predict_epsilon", "thresholding"):
        if not isinstance(given.get(name, False), bool):
            problems.append(f"{name}={given[name]!r} (true or false)")
    said = given.get(
        "prediction_type", "epsilon" if given.get("predict_epsilon", True) else "sample"
    )
    target = _ours(TARGETS, "prediction_type", said, problems)
    default = "fixed_small"
    spelt = given.get("variance_type", default) if kind != "DDIMScheduler" else default
    # The same variance, computed from its logarithm.
    spelt = str(spelt).removesuffix("_log") if str(spelt).startswith("fixed_") else spelt
    variance = _ours(VARIANCES, "variance_type", spelt, problems)
    clip = _clip(given, problems)
    start, end = given.get("beta_start", 1e-4), given.get("beta_end", 0.02)
    rescaled = given.get("rescale_betas_zero_snr", False)
    if not isinstance(rescaled, bool):
        problems.append(f"rescale_betas_zero_snr={rescaled!r} (true or false)")
    betas = given.get("trained_betas")
    if betas is not None:
        betas = betas if isinstance(betas, (list, tuple)) else ()
        schedule, start, end = _recognised(betas, problems)
        if {"num_train_timesteps", "timesteps"} & set(given) and T != len(betas):
            problems.append(f"num_train_timesteps={T!r} with {len(betas):,} trained_betas")
        T = len(betas)
    else:
        schedule = _ours(SCHEDULES, "beta_schedule", given.get("beta_schedule", "linear"), problems)
        numbers = all(type(b) in (int, float) for b in (start, end))
        if not numbers or not 0 < start <= end < 1:
            problems.append(f"beta_start={start!r}, beta_end={end!r} (0 < start <= end < 1)")
    if rescaled is True and target == "epsilon":
        problems.append("rescale_betas_zero_snr=True with prediction_type='epsilon' (0/0 at T)")
    if problems:
        raise ValueError(f"{call}: no counterpart for " + "; ".join(problems) + ".")
    return Process(schedule, T, float(start), float(end), rescaled, target, variance, clip)


def process_to_diffusers_config(process: Process, schedule: NoiseSchedule) -> dict[str, Any]:
    """Writes the scheduler_config.json of the DDPMScheduler with this process.

    `schedule` is the table of the process. Its β_t are written out if diffusers has no name for it.

    Raises ValueError for a target or variance without counterpart.
    """
    call = "process_to_diffusers_config"
    check_kind(call, "process", process, Process, "interop.Process(...)")
    check_kind(call, "schedule", schedule, NoiseSchedule, "such as dj.linear_schedule()")
    if schedule.num_timesteps != process.num_timesteps:
        raise ValueError(
            f"{call} needs the schedule of the process, of {process.num_timesteps} steps, got one "
            f"of {schedule.num_timesteps}."
        )
    for name, ours, theirs in (
        ("target", process.target, TARGETS),
        ("variance", process.variance, VARIANCES),
    ):
        if ours not in theirs:
            more = " (there that output is the variance, here its logarithm)"
            more = more if ours == "learned" else ""
            raise ValueError(
                f"{call}: DDPMScheduler has no counterpart of {name}={ours!r}{more}. It has "
                f"counterparts of {', '.join(theirs)}."
            )
    named = process.schedule in SCHEDULES
    # Their shortest decimals read back as the same float32.
    betas = [float(str(value)) for value in np.asarray(schedule.beta, np.float32)]
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.35.0",
        "beta_end": process.beta_end,
        "beta_schedule": SCHEDULES[process.schedule] if named else "linear",
        "beta_start": process.beta_start,
        "clip_sample": process.clip,
        "clip_sample_range": 1.0,
        "num_train_timesteps": process.num_timesteps,
        "prediction_type": TARGETS[process.target],
        "rescale_betas_zero_snr": process.zero_terminal_snr and named,
        "steps_offset": 0,
        "thresholding": False,
        "timestep_spacing": "leading",
        "trained_betas": None if named else betas,
        "variance_type": VARIANCES[process.variance],
    }


def _ours(names: Mapping[Any, str], setting: str, value: Any, problems: list[str]) -> Any:
    """Our name for their `value`; None, and one more problem, if there is none."""
    for ours, theirs in names.items():
        if value == theirs:
            return ours
    problems.append(f"{setting}={value!r} (only {', '.join(names.values())})")
    return None


def _clip(given: Mapping[str, Any], problems: list[str]) -> bool:
    """Whether x̂_0 is clipped to [-1, 1]."""
    clip, limit = given.get("clip_sample", True), given.get("clip_sample_range", 1.0)
    if given.get("thresholding", False):
        # With its largest value at 1, dynamic thresholding is a clip to [-1, 1].
        largest = given.get("sample_max_value", 1.0)
        if largest != 1.0 or isinstance(largest, bool):
            problems.append(
                f"thresholding=True with sample_max_value={given['sample_max_value']!r} (a choice "
                "of sampling here: remove it, and sample with --threshold dynamic)"
            )
        return True
    if not isinstance(clip, bool):
        problems.append(f"clip_sample={clip!r} (true or false)")
    elif clip and (limit != 1.0 or isinstance(limit, bool)):
        problems.append(f"clip_sample_range={limit!r} (only 1.0)")
    return bool(clip)


def _recognised(betas: Sequence[Any], problems: list[str]) -> tuple[str, float, float]:
    """Finds the schedule with this table, and its first and last β."""
    if 1 < len(betas) <= MAX_TIMESTEPS and all(type(b) in (int, float) for b in betas):
        table = np.asarray(betas, np.float64)
        start, end = float(table[0]), float(table[-1])
        makers: dict[str, Callable[..., NoiseSchedule]] = {
            "constant": lambda T, start, end: forward.constant_schedule(T, end),
            "linear": forward.linear_schedule,
            "quadratic": forward.quadratic_schedule,
            "warmup10": functools.partial(forward.warmup_schedule, warmup_fraction=0.1),
            "warmup50": functools.partial(forward.warmup_schedule, warmup_fraction=0.5),
            "cosine": lambda T, start, end: forward.cosine_schedule(T),
            "jsd": lambda T, start, end: forward.jsd_schedule(T),
        }
        for name, make in makers.items():
            try:
                beta = np.asarray(make(len(table), start, end).beta)
            except ValueError:  # a first or last β that this family cannot have
                continue
            if np.allclose(beta, table, rtol=1e-5, atol=0):
                return name, start if 0 < start <= end < 1 else 1e-4, end if end < 1 else 0.02
    problems.append("trained_betas of no schedule that has a name here")
    return "linear", 1e-4, 0.02
