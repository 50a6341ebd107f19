"""Score matching, noise levels, and Langevin dynamics, for any callable score or energy."""

from ddpm_jax.score.langevin import (
    AdjustedChains,
    Chains,
    annealed_langevin_chains,
    langevin,
    langevin_step,
    metropolis_adjusted_langevin,
)
from ddpm_jax.score.matching import (
    PROJECTIONS,
    ScoreFn,
    denoising_score_matching,
    exact_score_matching,
    ncsn_loss,
    projections,
    score_of_energy,
    sliced_score_matching,
)
from ddpm_jax.score.noise_levels import (
    geometric_noise_levels,
    geometric_ratio,
    langevin_step_size,
    largest_pairwise_distance,
    ncsnv2_noise_levels,
)
from ddpm_jax.types import LevelScore

__all__ = [
    "PROJECTIONS",
    "AdjustedChains",
    "Chains",
    "LevelScore",
    "ScoreFn",
    "annealed_langevin_chains",
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
