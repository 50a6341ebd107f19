"""Likelihood: Gaussians and the decoder, the variational bound, and the probability-flow ODE."""

from ddpm_jax.likelihood.bound import bound_term as bound_term
from ddpm_jax.likelihood.bound import prior_term as prior_term
from ddpm_jax.likelihood.coding import RateDistortion as RateDistortion
from ddpm_jax.likelihood.coding import mean_and_standard_error as mean_and_standard_error
from ddpm_jax.likelihood.coding import rate_distortion as rate_distortion
from ddpm_jax.likelihood.dequantization import bits_per_dim as bits_per_dim
from ddpm_jax.likelihood.dequantization import dequantize as dequantize
from ddpm_jax.likelihood.normal import discretized_log_likelihood as discretized_log_likelihood
from ddpm_jax.likelihood.normal import normal_kl as normal_kl
from ddpm_jax.likelihood.normal import normal_log_density as normal_log_density
from ddpm_jax.likelihood.probability_flow import FlowLikelihood as FlowLikelihood
from ddpm_jax.likelihood.probability_flow import FlowSolution as FlowSolution
from ddpm_jax.likelihood.probability_flow import probability_flow_encode as probability_flow_encode
from ddpm_jax.likelihood.probability_flow import (
    probability_flow_log_likelihood as probability_flow_log_likelihood,
)
from ddpm_jax.likelihood.probability_flow import probability_flow_sample as probability_flow_sample
from ddpm_jax.likelihood.variational import VariationalBound as VariationalBound
from ddpm_jax.likelihood.variational import estimate_bound as estimate_bound
from ddpm_jax.likelihood.variational import variational_bound as variational_bound
