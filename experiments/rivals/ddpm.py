"""A denoising diffusion probabilistic model (Ho, Jain, Abbeel 2020, 2006.11239), from the package.

    min E ‖ε - ε_θ(√ᾱ_t x_0 + √(1-ᾱ_t) ε, t)‖²                           (Eq. 14)
    -log p(x_0) ≤ L_T + Σ_{t≥1} L_t + L_0                                (Eq. 5)

Data are continuous here, so L_0 is the density of the last Gaussian step and not the probability of
a pixel (Eq. 13). The probability flow of the same network has a likelihood of its own, exact but
for the solver's tolerance (Song et al. 2021, 2011.13456, §4.3); it is that of another sampler.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import ddpm_jax as dj
from ddpm_jax.denoisers.prediction import Target, Variance
from ddpm_jax.keys import fold_in_each
from ddpm_jax.likelihood import normal_kl, normal_log_density
from ddpm_jax.types import ApplyFn, Array, Key
from rivals.rival import Rival, descend

VARIANCE: Variance = "fixed_large"
FLOW_KIND = "probability flow"


def bound(
    schedule: dj.NoiseSchedule,
    apply_fn: ApplyFn,
    x_0: Array,
    keys: Key,
    variance: Variance = VARIANCE,
    *,
    target: Target = "epsilon",
    clip: bool = False,
) -> Array:
    """-(L_T + Σ_t L_t) ≤ log p(x_0) [B] in nats, from one draw of x_t per step."""

    def term(t):
        noise = dj.normal_per_example(fold_in_each(keys, t), x_0.shape[1:])
        x_t = dj.q_sample(schedule, x_0, t, noise)
        output = apply_fn(x_t, jnp.broadcast_to(t, x_0.shape[:1]))
        p = dj.p_mean_variance(
            schedule, output, x_t, t, target=target, variance=variance, clip=clip
        )
        q = dj.q_posterior(schedule, x_0, x_t, t)
        kl = normal_kl(q.mean, q.log_variance, p.mean, p.log_variance)
        last = -normal_log_density(x_0, p.mean, p.log_variance)
        return jnp.sum(jnp.where(t == 0, last, kl), axis=1)

    q_T = dj.q_mean_variance(schedule, x_0, schedule.num_timesteps - 1)
    prior = jnp.sum(normal_kl(q_T.mean, q_T.log_variance, 0.0, 0.0), axis=1)
    return -prior - jnp.sum(jax.lax.map(term, jnp.arange(schedule.num_timesteps)), axis=0)


def ddpm(
    dim: int,
    width: int,
    *,
    num_layers: int = 2,
    num_timesteps: int = 100,
    exact: bool = True,
    target: Target = "epsilon",
    clip: bool = False,
) -> Rival:
    """A DDPM of data [B, dim] with T ancestral steps on the cosine schedule.

    `exact` takes the divergence of the probability flow by d products, else by one random one.
    `clip` is for data in [-1, 1], to which every x̂_0 of a reverse step is then clipped.
    """
    network: Any = dj.MLP(features=width, num_layers=num_layers, embedding_features=32)
    schedule, T = dj.cosine_schedule(num_timesteps), num_timesteps

    def init(key: Key):
        return network.init(key, jnp.zeros((1, dim)), jnp.zeros((1,), jnp.int32))

    def loss(params, x: Array, key: Key) -> Array:
        key_t, key_noise = jax.random.split(key)
        t = jax.random.randint(key_t, (len(x),), 0, T)
        noise = jax.random.normal(key_noise, x.shape)
        apply_fn = lambda x, t: network.apply(params, x, t)  # noqa: E731
        return dj.simple_loss(schedule, apply_fn, x, t, noise, target=target)

    def sample(params, keys: Key) -> Array:
        apply_fn = lambda x, t: network.apply(params, x, t)  # noqa: E731
        denoise = dj.make_denoiser(schedule, apply_fn, target=target, clip=clip)
        x_T = dj.initial_noise(keys, (dim,))
        return dj.sample(dj.ancestral(schedule, variance=VARIANCE), denoise, x_T, keys=keys)

    def bound_of(params, x_0: Array, keys: Key) -> Array:
        apply_fn = lambda x, t: network.apply(params, x, t)  # noqa: E731
        return bound(schedule, apply_fn, x_0, keys, target=target, clip=clip)

    def flow_density(params, x_0: Array, keys: Key) -> Array:
        apply_fn = lambda x, t: network.apply(params, x, t)  # noqa: E731
        denoise = dj.sigma_denoiser(schedule, apply_fn, target=target)
        sigma_min, sigma_max = dj.sigma_range(schedule)
        probes = jax.vmap(lambda key: jax.random.rademacher(key, (dim,), jnp.float32))(keys)
        return dj.probability_flow_log_likelihood(
            denoise,
            x_0,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            trace="exact" if exact else "hutchinson",
            probes=None if exact else probes[None],
            rtol=1e-4,
            atol=1e-4,
        ).log_likelihood

    kinds = {"bound": bound_of, FLOW_KIND: flow_density}
    return Rival("DDPM", init, descend(loss), sample, T, kinds)
