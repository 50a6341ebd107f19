"""Score matching, ladders of noise, and Langevin dynamics, on any callable score or energy."""

from ddpm_jax.score.langevin import (
    AdjustedChains,
    Chains,
    annealed_langevin,
    langevin,
    langevin_step,
    metropolis_adjusted_langevin,
)
from ddpm_jax.score.noise_levels import (
    geometric_noise_levels,
    geometric_ratio,
    langevin_step_size,
    largest_pairwise_distance,
    ncsnv2_noise_levels,
)
from ddpm_jax.score.objectives import (
    PROJECTIONS,
    LevelScoreFn,
    ScoreFn,
    denoising_score_matching,
    exact_score_matching,
    ncsn_loss,
    projections,
    score_of_energy,
    sliced_score_matching,
)

__all__ = [
    "PROJECTIONS",
    "AdjustedChains",
    "Chains",
    "LevelScoreFn",
    "ScoreFn",
    "annealed_langevin",
    "denoising_score_matching",
    "exact_score_matching",
    "geometric_noise_levels",
    "geometric_ratio",
    "langevin",
    "langevin_step",
    "langevin_step_size",
    "largest_pairwise_distance",
    "metropolis_adjusted_langevin",
    "ncsn_loss",
    "ncsnv2_noise_levels",
    "projections",
    "score_of_energy",
    "sliced_score_matching",
]
