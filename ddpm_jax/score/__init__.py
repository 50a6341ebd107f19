"""Score matching, noise levels, and Langevin dynamics, for any callable score or energy."""

from ddpm_jax.score.langevin import Chains as Chains
from ddpm_jax.score.langevin import annealed_langevin_chains as annealed_langevin_chains
from ddpm_jax.score.langevin import langevin as langevin
from ddpm_jax.score.langevin import langevin_step as langevin_step
from ddpm_jax.score.matching import PROJECTIONS as PROJECTIONS
from ddpm_jax.score.matching import ScoreFn as ScoreFn
from ddpm_jax.score.matching import denoising_score_matching as denoising_score_matching
from ddpm_jax.score.matching import exact_score_matching as exact_score_matching
from ddpm_jax.score.matching import ncsn_loss as ncsn_loss
from ddpm_jax.score.matching import projections as projections
from ddpm_jax.score.matching import score_of_energy as score_of_energy
from ddpm_jax.score.matching import sliced_score_matching as sliced_score_matching
from ddpm_jax.score.metropolis import AdjustedChains as AdjustedChains
from ddpm_jax.score.metropolis import metropolis_adjusted_langevin as metropolis_adjusted_langevin
from ddpm_jax.score.noise_levels import geometric_noise_levels as geometric_noise_levels
from ddpm_jax.score.noise_levels import geometric_ratio as geometric_ratio
from ddpm_jax.score.noise_levels import langevin_step_size as langevin_step_size
from ddpm_jax.score.noise_levels import largest_pairwise_distance as largest_pairwise_distance
from ddpm_jax.score.noise_levels import ncsnv2_noise_levels as ncsnv2_noise_levels
from ddpm_jax.types import LevelScore as LevelScore
